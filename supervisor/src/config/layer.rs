//! A value of the configuration, and where it came from.

use std::{borrow::Cow, path::PathBuf};

/// Where a value came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// Nobody said otherwise.
    Default,
    /// This file.
    File(PathBuf),
    /// This environment variable.
    Env(String),
    /// This flag of the command line.
    Flag(String),
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Layer::Default => f.write_str("default"),
            Layer::File(path) => write!(f, "file {}", path.display()),
            Layer::Env(name) => write!(f, "env {name}"),
            Layer::Flag(name) => write!(f, "flag --{name}"),
        }
    }
}

/// One line of `stockade config show`.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key in stockade.toml.
    pub key: Cow<'static, str>,
    /// The value in force, as text.
    pub value: String,
    /// Where it came from.
    pub layer: Layer,
}
