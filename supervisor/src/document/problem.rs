//! A problem of a file: what, where, and what to do instead.

use std::fmt;

/// Whether a problem stops the file from being used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file is used; the problem is shown.
    Warning,
    /// The file is not used.
    Error,
}

/// One problem, displayed as `plugin.toml:12:5: message; suggestion`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Warning or error.
    pub severity: Severity,
    /// File name as shown (relative to the plugin's directory).
    pub file: String,
    /// Line from 1; 0 when the problem is the whole file's.
    pub line: usize,
    /// Column from 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub suggestion: Option<String>,
}

impl Problem {
    /// What makes the whole file unusable.
    pub fn of_file(file: &str, message: String) -> Self {
        Problem {
            severity: Severity::Error,
            file: file.to_owned(),
            line: 0,
            column: 0,
            message,
            suggestion: None,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}:{}", self.line, self.column)?;
        }
        write!(f, ": {}", self.message)?;
        match &self.suggestion {
            Some(suggestion) => write!(f, "; {suggestion}"),
            None => Ok(()),
        }
    }
}

/// Collects the problems of one file.
#[derive(Clone, Debug)]
pub struct Problems {
    file: String,
    text: String,
    list: Vec<Problem>,
}

impl Problems {
    /// Of the file with this name and content.
    pub fn new(file: impl Into<String>, text: impl Into<String>) -> Self {
        Problems { file: file.into(), text: text.into(), list: Vec::new() }
    }

    /// Adds one at a byte offset of the text (None = the whole file).
    pub fn add(
        &mut self,
        severity: Severity,
        offset: Option<usize>,
        message: impl Into<String>,
        suggestion: Option<String>,
    ) {
        let (line, column) = offset.map_or((0, 0), |offset| position(&self.text, offset));
        let message = message.into();
        self.list.push(Problem {
            severity,
            file: self.file.clone(),
            line,
            column,
            message,
            suggestion,
        });
    }

    /// Adds an error.
    pub fn error(&mut self, offset: Option<usize>, message: impl Into<String>) {
        self.add(Severity::Error, offset, message, None);
    }

    /// Adds an error with what would be right.
    pub fn error_with(
        &mut self,
        offset: Option<usize>,
        message: impl Into<String>,
        suggestion: impl Into<String>,
    ) {
        self.add(Severity::Error, offset, message, Some(suggestion.into()));
    }

    /// Adds a warning.
    pub fn warn(&mut self, offset: Option<usize>, message: impl Into<String>) {
        self.add(Severity::Warning, offset, message, None);
    }

    /// The text that offsets refer to.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// True when the file cannot be used.
    pub fn fatal(&self) -> bool {
        self.list.iter().any(|problem| problem.severity == Severity::Error)
    }

    /// All of them, in the order of their places.
    pub fn into_list(mut self) -> Vec<Problem> {
        self.list.sort_by_key(|problem| (problem.line, problem.column));
        self.list
    }
}

/// Line and column, both from 1, of a byte offset.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let mut end = offset.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |last| last.chars().count()) + 1;
    (line, column)
}

/// Byte offset of a JSON key, for files that are parsed without positions.
pub(crate) fn key_position(text: &str, key: &str) -> Option<usize> {
    text.find(&format!("\"{key}\""))
}

/// "did you mean …?" when a known word is near.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<String> {
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.len() / 3))
        .min()
        .map(|(_, candidate)| format!("did you mean `{candidate}`?"))
}
