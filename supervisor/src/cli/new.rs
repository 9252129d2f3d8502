//! `stockade new`

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::Args;
use stockade::{Config, manifest::valid_name};

use super::{failure::Failure, output};

/// Make a new plugin's directory: it builds, runs and tests as it is
#[derive(Args)]
#[command(
    after_help = "Example:\n  stockade new my-plugin && make -C my-plugin test build\n  stockade new --python my-plugin && make -C my-plugin test\n  stockade serve --plugins ."
)]
pub(super) struct New {
    /// The plugin's name
    name: String,
    /// In Python instead of Rust
    #[arg(long, conflicts_with = "sdk")]
    python: bool,
    /// Where to make it [default: ./NAME]
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// Use the SDK of a checkout instead of the published crate
    #[arg(long, value_name = "PATH")]
    sdk: Option<PathBuf>,
}

const MAIN: &str = include_str!("new/main.rs.txt");
const CARGO: &str = include_str!("new/Cargo.toml.txt");
const PLUGIN: &str = include_str!("new/plugin.toml.txt");
const MAKEFILE: &str = include_str!("new/Makefile.txt");
const PYTHON: &str = include_str!("new/plugin.py.txt");
const PYTHON_TEST: &str = include_str!("new/test_plugin.py.txt");
const PYTHON_PLUGIN: &str = include_str!("new/python.toml.txt");
const PYTHON_MAKEFILE: &str = include_str!("new/python-Makefile.txt");

pub(super) fn run(new: &New) -> Result<(), Failure> {
    if !valid_name(&new.name) {
        return Err(Failure::usage(format!(
            "{:?} is not a valid plugin name: use a lower-case letter, then letters, digits, `-` \
             and `_`, 63 at most",
            new.name
        )));
    }
    let directory = new.directory.clone().unwrap_or_else(|| PathBuf::from(&new.name));
    let taken = fs::read_dir(&directory).is_ok_and(|mut entries| entries.next().is_some());
    if taken {
        let text = format!("{} is there already and not empty", directory.display());
        return Err(Failure::usage(text));
    }
    for (name, text) in files(new) {
        let path = directory.join(name);
        let made =
            path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| fs::write(&path, text));
        made.map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    }
    let shown = directory.display();
    let make = if new.python { "test" } else { "test build" };
    output::line(&format!(
        "Made {shown}. Next:\n  make -C {shown} {make}\n  stockade check {shown}\n  \
         stockade serve --plugins {}\n  stockade call {} greet --arg name=Ada",
        directory
            .parent()
            .filter(|parent| *parent != Path::new(""))
            .unwrap_or(Path::new("."))
            .display(),
        new.name
    ));
    Ok(())
}

/// The files of the new directory.
fn files(new: &New) -> Vec<(&'static str, String)> {
    let host = Config::new(".", ".").python_host.display().to_string();
    let fill = |text: &str| {
        text.replace("{{name}}", &new.name)
            .replace("{{sdk}}", &dependency(new.sdk.as_deref()))
            .replace("{{host}}", &host)
    };
    if new.python {
        return vec![
            ("plugin.toml", fill(PYTHON_PLUGIN)),
            ("plugin.py", fill(PYTHON)),
            ("test_plugin.py", fill(PYTHON_TEST)),
            ("Makefile", fill(PYTHON_MAKEFILE)),
            (".gitignore", "__pycache__/\n/.venv\n".to_owned()),
        ];
    }
    vec![
        ("Cargo.toml", fill(CARGO)),
        ("plugin.toml", fill(PLUGIN)),
        ("Makefile", fill(MAKEFILE)),
        (".gitignore", "/target\n/bin\n".to_owned()),
        ("src/main.rs", fill(MAIN)),
    ]
}

/// The published crate, or the one of a checkout (this program's own, when it
/// was built in one).
fn dependency(sdk: Option<&Path>) -> String {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk");
    let path = sdk.map(Path::to_owned).or_else(|| own.join("Cargo.toml").exists().then_some(own));
    match path.and_then(|path| fs::canonicalize(path).ok()) {
        Some(path) => format!("{{ path = {:?} }}", path.display().to_string()),
        None => format!("\"{}\"", env!("CARGO_PKG_VERSION")),
    }
}
