//! Values as they stand in the file, the environment or a flag: text, or a list.

use std::path::PathBuf;

use crate::document::Table;

/// A value before it is read as what it should be.
#[derive(Clone)]
pub(super) enum Raw {
    Text(String),
    List(Vec<String>),
}

impl std::fmt::Display for Raw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Raw::Text(text) => f.write_str(text),
            Raw::List(items) => f.write_str(&items.join(":")),
        }
    }
}

/// A key's value as text, whatever TOML kind it has.
pub(super) fn raw(root: &Table<'_>, key: &'static str) -> Option<Raw> {
    use toml::de::DeValue;
    if !root.has(key) {
        return None;
    }
    match root.value_of(key)? {
        DeValue::String(text) => Some(Raw::Text(text.to_string())),
        DeValue::Integer(number) => Some(Raw::Text(number.as_str().to_owned())),
        DeValue::Float(number) => Some(Raw::Text(number.as_str().to_owned())),
        DeValue::Boolean(value) => Some(Raw::Text(value.to_string())),
        DeValue::Array(_) => root.texts(key).map(Raw::List),
        DeValue::Datetime(_) | DeValue::Table(_) => {
            root.error(key, format!("`{key}` must be a plain value"));
            None
        }
    }
}

pub(super) fn absolute(path: &str) -> PathBuf {
    let expanded = match path.strip_prefix("~/") {
        Some(rest) => std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default().join(rest),
        None => PathBuf::from(path),
    };
    std::path::absolute(&expanded).unwrap_or(expanded)
}
