//! What is printed: tables, JSON, colours where they are wanted.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use stockade::document::Bytes;

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Columns for people
    Table,
    /// More columns
    Wide,
    /// One JSON document
    Json,
    /// One JSON object per line
    Jsonl,
    /// Names only
    Name,
}

/// What starts and ends a colour of ours.
const PAINTS: [&str; 6] = ["\x1b[32m", "\x1b[36m", "\x1b[31m", "\x1b[33m", "\x1b[90m", "\x1b[0m"];

/// A text for a terminal: what plugins say in it moves no cursor and sets no title.
pub(super) fn harmless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(sign) = rest.chars().next() {
        let paint = PAINTS.into_iter().find(|paint| rest.starts_with(paint));
        match paint {
            Some(paint) => shown.push_str(paint),
            None if sign.is_control() && !matches!(sign, '\n' | '\t') => {
                shown.extend(sign.escape_default());
            }
            None => shown.push(sign),
        }
        rest = &rest[paint.map_or(sign.len_utf8(), str::len)..];
    }
    shown
}

/// Prints a line. A reader that is gone (`| head`) ends the command quietly.
pub(super) fn line(text: &str) {
    raw(&harmless(text));
}

/// Begins at the top of an empty terminal.
pub(super) fn clear() {
    raw("\x1b[2J\x1b[H");
}

fn raw(text: &str) {
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// Prints JSON: indented for people, on one line for programs.
pub(super) fn json(value: &impl serde::Serialize) {
    let text = match std::io::stdout().is_terminal() {
        true => serde_json::to_string_pretty(value),
        false => serde_json::to_string(value),
    };
    raw(&text.unwrap_or_default());
}

/// Prints JSON on one line.
pub(super) fn json_line(value: &impl serde::Serialize) {
    raw(&serde_json::to_string(value).unwrap_or_default());
}

/// Colours are wanted: a terminal, and nobody said NO_COLOR.
pub(super) fn colours() -> bool {
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !no_color
}

/// The colour of a state, around `text`.
pub(super) fn state_colour(state: &str, text: &str) -> String {
    if !colours() {
        return text.to_owned();
    }
    let code = match state {
        "INITIALIZED" => "32",
        "RUNNING" => "36",
        "FAILED" => "31",
        "UNAVAILABLE" => "33",
        _ => "90",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// Aligned columns. `paint` colours a cell after it has been padded.
pub(super) fn table(
    head: &[&str],
    rows: &[Vec<String>],
    paint: impl Fn(usize, &str, String) -> String,
) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut text = String::new();
    let mut add = |cells: Vec<(String, String)>| {
        let last = cells.len() - 1;
        for (column, (cell, raw)) in cells.into_iter().enumerate() {
            let padded = match column == last {
                true => cell,
                false => format!("{cell:width$}  ", width = widths[column]),
            };
            text.push_str(&paint(column, &raw, padded));
        }
        while text.ends_with(' ') {
            text.pop();
        }
        text.push('\n');
    };
    add(head.iter().map(|cell| ((*cell).to_owned(), String::new())).collect());
    for row in rows {
        add(row.iter().map(|cell| (cell.clone(), cell.clone())).collect());
    }
    text.pop();
    text
}

/// `12s`, `3m10s`, `2h05m`, `4d3h`.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        3600..86_400 => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
        _ => format!("{}d{}h", s / 86_400, s % 86_400 / 3600),
    }
}

/// `12.3MiB`, `-` when unknown.
pub(super) fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| Bytes(bytes).to_string())
}

/// `-` for what is not there.
pub(super) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The first part of a text that fits in a column.
pub(super) fn short(text: &str, width: usize) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let cut: String = line.chars().take(width.saturating_sub(1)).collect();
    format!("{cut}…")
}

/// Columns of the terminal; plenty when there is none.
pub(super) fn columns() -> usize {
    if !std::io::stdout().is_terminal() {
        return 400;
    }
    rustix::termios::tcgetwinsize(std::io::stdout())
        .map_or(100, |size| usize::from(size.ws_col).max(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_says_moves_no_cursor() {
        let said = "a\x1b[2Jb\x07\r\u{9b}1m\tc\nd";
        assert_eq!(harmless(said), "a\\u{1b}[2Jb\\u{7}\\r\\u{9b}1m\tc\nd");
        let painted = "\x1b[31mFAILED\x1b[0m é";
        assert_eq!(harmless(painted), painted);
    }
}
