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

/// The list: a file with a name on each line.
#[derive(Debug)]
pub(super) struct Made {
    path: PathBuf,
    names: Mutex<BTreeSet<String>>,
}

impl Made {
    pub(super) fn read(path: &Path) -> Self {
        let bytes = read_start(path, MOST).unwrap_or_default();
        let names = String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect();
        Made { path: path.to_owned(), names: Mutex::new(names) }
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
        let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
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
        let path = folder.path().join("made");
        let made = Made::read(&path);
        let (one, other) = (folder.path().join("one.db"), folder.path().join("other.db"));
        assert!(!made.has(&one));
        made.note(&one);
        let made = Made::read(&path);
        assert!(made.has(&one) && !made.has(&other));
        made.note(&other);
        assert!(Made::read(&path).has(&one) && Made::read(&path).has(&other));
    }
}
