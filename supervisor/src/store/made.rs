//! Which files of the state directory there have been: one of them that is missing or empty
//! at a start was lost, and is not simply new.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use super::write_whole;
use crate::document::read_start;

/// More bytes than the list has.
const MOST: usize = 4096;

/// The list, which names itself, too.
const FILE: &str = "made";
/// What it can name besides.
const FILES: [&str; 3] = ["counters", "data.db", "stockade.db"];

/// The list: a file with a name on each line.
#[derive(Debug)]
pub(super) struct Made {
    path: PathBuf,
    names: Mutex<BTreeSet<String>>,
}

impl Made {
    /// The list of a state directory. It is written before any other file: where it is not
    /// and others are, or it is not whole, each of them has been.
    pub(super) fn read(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let bytes = read_start(&path, MOST).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let mut names: BTreeSet<String> = text.lines().map(str::to_owned).collect();
        let others = [FILES.as_slice(), &["wanted"]].concat();
        if !names.contains(FILE) && others.iter().any(|other| directory.join(other).exists()) {
            names.extend(FILES.map(str::to_owned));
        }
        let made = Made { path: path.clone(), names: Mutex::new(names) };
        made.note(&path);
        made
    }

    /// There has been such a file.
    pub(super) fn has(&self, file: &Path) -> bool {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        name(file).is_some_and(|name| names.contains(&name))
    }

    /// There is such a file.
    pub(super) fn note(&self, file: &Path) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(name) = name(file).filter(|name| !names.contains(name)) else { return };
        names.insert(name.clone());
        // Itself last: a list that was cut off does not have it.
        let lines = names.iter().map(String::as_str).filter(|name| *name != FILE).chain([FILE]);
        let lines: String = lines.map(|name| format!("{name}\n")).collect();
        if let Err(error) = write_whole(&self.path, lines.as_bytes()) {
            // The next start tries it again.
            names.remove(&name);
            tracing::debug!("{} cannot be written: {error}", self.path.display());
        }
    }
}

fn name(file: &Path) -> Option<String> {
    Some(file.file_name()?.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_is_known_at_the_next_start() {
        let folder = tempfile::tempdir().unwrap();
        let [counters, data, _] = FILES.map(|name| folder.path().join(name));
        let made = Made::read(folder.path());
        assert!(!made.has(&data));
        made.note(&data);
        let made = Made::read(folder.path());
        assert!(made.has(&data) && !made.has(&counters));
        made.note(&counters);
        let made = Made::read(folder.path());
        assert!(made.has(&data) && made.has(&counters));
    }

    #[test]
    fn a_list_that_is_lost_is_no_first_start() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data.db");
        assert!(!Made::read(folder.path()).has(&data));
        // Killed there: nothing has been made.
        assert!(!Made::read(folder.path()).has(&data));
        for lost in ["", "\0\0\0\0", "cou", "counters\ndata.db\nstocka"] {
            std::fs::write(folder.path().join("wanted"), "").unwrap();
            std::fs::write(folder.path().join(FILE), lost).unwrap();
            assert!(Made::read(folder.path()).has(&data), "{lost:?}");
        }
        std::fs::remove_file(folder.path().join(FILE)).unwrap();
        assert!(Made::read(folder.path()).has(&data));
        assert!(Made::read(folder.path()).has(&data), "and stays so");
    }
}
