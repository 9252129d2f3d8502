//! The tables of stockade.toml as lines of `stockade config show`.

use std::path::Path;

use super::{Layer, Setting};

/// Every value in a table, by its whole key: `limits.memory_total`. Nothing of a text
/// that is no TOML; what a secret is is not told.
pub(super) fn settings(path: &Path, text: &str) -> Vec<Setting> {
    let document: toml::Table = text.parse().unwrap_or_default();
    let mut found = Vec::new();
    for (name, value) in &document {
        if let toml::Value::Table(table) = value {
            flatten(name, table, path, &mut found);
        }
    }
    found
}

fn flatten(prefix: &str, table: &toml::Table, path: &Path, found: &mut Vec<Setting>) {
    for (name, value) in table {
        let key = format!("{prefix}.{name}");
        let value = match value {
            toml::Value::Table(table) => {
                flatten(&key, table, path, found);
                continue;
            }
            _ if name == "secret" => "(not shown)".to_owned(),
            toml::Value::String(text) => text.clone(),
            value => value.to_string(),
        };
        found.push(Setting { key: key.into(), value, layer: Layer::File(path.to_owned()) });
    }
}
