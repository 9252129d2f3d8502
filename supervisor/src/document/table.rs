//! A TOML table that is asked key by key. What is of the wrong kind, out of
//! range or unknown becomes a problem; reading goes on.

use std::{cell::RefCell, collections::BTreeMap, path::PathBuf, rc::Rc, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    Problems, nearest,
    units::{parse_bytes, parse_duration},
};

/// Parses TOML; syntax errors (all of them) go to `problems`.
pub fn parse_toml<'i>(text: &'i str, problems: &mut Problems) -> Spanned<DeTable<'i>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let offset = error.span().map(|span| span.start);
        problems.error(offset, error.message().replace('\n', ", "));
    }
    table
}

/// One table of the file and its path (`limits`, `run.remote`).
pub struct Table<'t> {
    table: &'t DeTable<'t>,
    path: String,
    offset: usize,
    problems: Rc<RefCell<&'t mut Problems>>,
    known: RefCell<Vec<&'static str>>,
}

type Value<'t> = (&'t DeValue<'t>, usize);

impl<'t> Table<'t> {
    /// The table at the top of the file.
    pub fn root(table: &'t Spanned<DeTable<'t>>, problems: &'t mut Problems) -> Self {
        Table {
            table: table.get_ref(),
            path: String::new(),
            offset: 0,
            problems: Rc::new(RefCell::new(problems)),
            known: RefCell::default(),
        }
    }

    /// Where this table stands in the text.
    pub fn offset(&self) -> usize {
        self.offset
    }

    fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// The value of a key, which is known from now on.
    fn get(&self, key: &'static str) -> Option<Value<'t>> {
        self.known.borrow_mut().push(key);
        self.table
            .iter()
            .find(|(name, _)| name.get_ref() == key)
            .map(|(_, value)| (value.get_ref(), value.span().start))
    }

    /// True when the key is there, whatever it holds.
    pub fn has(&self, key: &'static str) -> bool {
        self.get(key).is_some()
    }

    /// Byte offset of a key's value.
    pub fn offset_of(&self, key: &'static str) -> Option<usize> {
        self.get(key).map(|(_, offset)| offset)
    }

    /// Adds an error at the key (or at the table, when the key is absent).
    pub fn error(&self, key: &'static str, message: impl Into<String>) {
        let offset = self.offset_of(key).unwrap_or(self.offset);
        self.problems.borrow_mut().error(Some(offset), message);
    }

    /// Adds an error with what would be right.
    pub fn error_with(
        &self,
        key: &'static str,
        message: impl Into<String>,
        suggestion: impl Into<String>,
    ) {
        let offset = self.offset_of(key).unwrap_or(self.offset);
        self.problems.borrow_mut().error_with(Some(offset), message, suggestion);
    }

    /// Adds a warning at the key.
    pub fn warn(&self, key: &'static str, message: impl Into<String>) {
        let offset = self.offset_of(key).unwrap_or(self.offset);
        self.problems.borrow_mut().warn(Some(offset), message);
    }

    fn wrong(&self, key: &str, (value, offset): Value<'_>, expected: &str) {
        let message = format!("`{}` must be {expected}, not {}", self.name(key), kind(value));
        self.problems.borrow_mut().error(Some(offset), message);
    }

    fn read<T>(
        &self,
        key: &'static str,
        expected: &str,
        convert: impl FnOnce(&'t DeValue<'t>) -> Option<T>,
    ) -> Option<T> {
        let value = self.get(key)?;
        let converted = convert(value.0);
        if converted.is_none() {
            self.wrong(key, value, expected);
        }
        converted
    }

    /// Text.
    pub fn text(&self, key: &'static str) -> Option<String> {
        self.read(key, "text", |value| value.as_str().map(str::to_owned))
    }

    /// A path.
    pub fn path(&self, key: &'static str) -> Option<PathBuf> {
        self.read(key, "a path (text)", |value| value.as_str().map(PathBuf::from))
    }

    /// true or false.
    pub fn boolean(&self, key: &'static str) -> Option<bool> {
        self.read(key, "true or false", DeValue::as_bool)
    }

    /// A whole number within the range.
    pub fn integer(&self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        self.read(key, &expected, |value| integer(value).filter(|n| range.contains(n)))
    }

    /// A number above 0.
    pub fn positive(&self, key: &'static str) -> Option<f64> {
        self.read(key, "a number above 0", |value| {
            let number = match value {
                DeValue::Float(float) => float.as_str().parse().ok()?,
                other => integer(other)? as f64,
            };
            (number > 0.0).then_some(number)
        })
    }

    /// A duration such as `"10s"`; a bare number is seconds.
    pub fn duration(&self, key: &'static str) -> Option<Duration> {
        self.read(key, "a duration such as \"10s\" or \"500ms\"", |value| match value.as_str() {
            Some(text) => parse_duration(text),
            None => parse_duration(&format!("{}s", integer(value)?)),
        })
    }

    /// A size such as `"1GiB"`; a bare number is bytes.
    pub fn bytes(&self, key: &'static str) -> Option<u64> {
        self.read(key, "a size such as \"512MiB\" or \"1GiB\"", |value| match value.as_str() {
            Some(text) => parse_bytes(text),
            None => integer(value),
        })
    }

    /// One of some words.
    pub fn choice<T: Copy>(&self, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let words = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>();
        self.read(key, &format!("one of {}", words.join(", ")), |value| {
            let text = value.as_str()?;
            choices.iter().find(|(word, _)| *word == text).map(|(_, choice)| *choice)
        })
    }

    /// A list of texts.
    pub fn texts(&self, key: &'static str) -> Option<Vec<String>> {
        self.read(key, "a list of texts", |value| {
            let items = value.as_array()?;
            items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        })
    }

    /// A table of texts.
    pub fn map(&self, key: &'static str) -> Option<BTreeMap<String, String>> {
        self.read(key, "a table of texts", |value| {
            let entries = value.as_table()?.iter();
            entries
                .map(|(name, value)| {
                    Some((name.get_ref().to_string(), value.get_ref().as_str()?.to_owned()))
                })
                .collect()
        })
    }

    /// A table inside this one.
    pub fn table(&self, key: &'static str) -> Option<Table<'t>> {
        let (value, offset) = self.get(key)?;
        let Some(table) = value.as_table() else {
            self.wrong(key, (value, offset), "a table");
            return None;
        };
        Some(self.child(table, self.name(key), offset))
    }

    /// The named tables inside this one (`[plugin.NAME]`); all keys are known.
    pub fn tables(&self) -> Vec<(String, Table<'t>)> {
        let mut tables = Vec::new();
        for (name, value) in self.table {
            let (key, offset) = (name.get_ref().to_string(), value.span().start);
            match value.get_ref().as_table() {
                Some(table) => {
                    let child = self.child(table, self.name(&key), offset);
                    tables.push((key, child));
                }
                None => self.wrong(&key, (value.get_ref(), offset), "a table"),
            }
        }
        tables
    }

    /// The value of a free-form key.
    pub fn value_of(&self, key: &str) -> Option<&'t DeValue<'t>> {
        self.table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, v)| v.get_ref())
    }

    /// The table of a free-form key.
    pub fn table_of(&self, key: &str) -> Option<Table<'t>> {
        let (_, value) = self.table.iter().find(|(name, _)| name.get_ref() == key)?;
        let table = value.get_ref().as_table()?;
        Some(self.child(table, self.name(key), value.span().start))
    }

    /// Adds an error at a byte offset.
    pub fn error_at(&self, offset: usize, message: impl Into<String>) {
        self.problems.borrow_mut().error(Some(offset), message);
    }

    /// The keys and offsets of this table (for free-form tables).
    pub fn keys(&self) -> Vec<(String, usize)> {
        self.table.keys().map(|key| (key.get_ref().to_string(), key.span().start)).collect()
    }

    /// The boolean of a key when it is one, else None without a problem.
    pub fn boolean_if(&self, key: &'static str) -> Option<bool> {
        self.get(key)?.0.as_bool()
    }

    fn child(&self, table: &'t DeTable<'t>, path: String, offset: usize) -> Table<'t> {
        Table { table, path, offset, problems: self.problems.clone(), known: RefCell::default() }
    }

    /// A key that is part of the format but not built yet.
    pub fn not_built_yet(&self, key: &'static str) {
        if self.has(key) {
            let message = format!("`{}` is not supported by this release yet", self.name(key));
            self.error_with(key, message, "remove it");
        }
    }

    /// Every key that nobody asked for is a problem.
    pub fn finish(self) {
        let known = self.known.borrow();
        for key in self.table.keys() {
            if known.contains(&key.get_ref().as_ref()) {
                continue;
            }
            let message = format!("unknown key `{}`", self.name(key.get_ref()));
            let suggestion = nearest(key.get_ref(), known.iter().copied());
            self.problems.borrow_mut().add(
                super::Severity::Error,
                Some(key.span().start),
                message,
                suggestion.or_else(|| Some("remove it".to_owned())),
            );
        }
    }
}

fn integer(value: &DeValue<'_>) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

fn kind(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("\"{text}\""),
        DeValue::Integer(number) => number.as_str().to_owned(),
        DeValue::Float(number) => number.as_str().to_owned(),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(_) => "a date".to_owned(),
        DeValue::Array(_) => "a list".to_owned(),
        DeValue::Table(_) => "a table".to_owned(),
    }
}
