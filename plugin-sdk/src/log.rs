//! Log lines: written to standard error at once, with the level in front in
//! the way of syslog (`<6>text`), so that the last words before a crash arrive.

use std::io::Write as _;

/// How important a log line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For the author.
    Debug,
    /// Normal life.
    Info,
    /// Should be looked at.
    Warn,
    /// Something failed.
    Error,
}

impl Level {
    fn priority(self) -> u8 {
        match self {
            Level::Debug => 7,
            Level::Info => 6,
            Level::Warn => 4,
            Level::Error => 3,
        }
    }
}

/// Writes to the plugin's log, one line per line of `text`; a stderr that is
/// closed loses it, nothing more.
pub fn write(level: Level, text: &str) {
    let mut lines = String::with_capacity(text.len() + 8);
    for line in text.lines() {
        lines.push_str(&format!("<{}>{line}\n", level.priority()));
    }
    let _ = std::io::stderr().write_all(lines.as_bytes());
}
