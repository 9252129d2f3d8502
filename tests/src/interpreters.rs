//! The Pythons of this machine.

use std::{collections::BTreeMap, path::PathBuf, process::Command};

use crate::{as_test_user, target_dir};

/// One interpreter per minor version from 3.9 on, by `3.11`.
pub fn interpreters() -> BTreeMap<String, PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let mut candidates: Vec<PathBuf> = vec!["/usr/bin/python3".into()];
    for folder in [home.join(".pyenv/versions"), target_dir().join("../interpreters")] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        candidates.extend(entries.map(|entry| entry.path().join("bin/python3")));
    }
    for minor in 9..20 {
        candidates.push(format!("/usr/bin/python3.{minor}").into());
        candidates.push(format!("/usr/local/bin/python3.{minor}").into());
    }
    let mut found = BTreeMap::new();
    for python in candidates {
        let script = "import sys; print('%d.%d' % sys.version_info[:2])";
        let mut command = Command::new(&python);
        let Ok(output) = as_test_user(&mut command).args(["-c", script]).output() else { continue };
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let minor = version.strip_prefix("3.").and_then(|minor| minor.parse::<u32>().ok());
        if minor.is_some_and(|minor| minor >= 9) {
            found.entry(version).or_insert(python);
        }
    }
    found
}
