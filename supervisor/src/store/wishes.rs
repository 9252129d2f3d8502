//! What operators want of plugins, in a small text file: one line for each plugin that
//! is not simply to run. It is known when the database is locked, damaged, or on a disk
//! that is full.

use std::{
    collections::HashMap,
    fs, io,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use rusqlite::Connection;

use super::Remembered;
use crate::lifecycle::Wanted;

/// The file. None: there was none, so the database tells.
#[derive(Debug)]
pub(super) struct Wishes {
    path: PathBuf,
    known: Mutex<Option<HashMap<String, Wanted>>>,
}

pub(super) fn word(wanted: Wanted) -> &'static str {
    match wanted {
        Wanted::Stopped => "stopped",
        Wanted::Disabled => "disabled",
        Wanted::Run | Wanted::Removed => "run",
    }
}

pub(super) fn read_word(word: &str) -> Wanted {
    match word {
        "stopped" => Wanted::Stopped,
        "disabled" => Wanted::Disabled,
        _ => Wanted::Run,
    }
}

impl Wishes {
    pub(super) fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).ok();
        let known = text.map(|text| {
            let lines = text.lines().filter_map(|line| line.split_once(' '));
            lines.map(|(word, name)| (name.to_owned(), read_word(word))).collect()
        });
        Wishes { path: path.to_owned(), known: Mutex::new(known) }
    }

    /// What is wanted of a plugin; None when this file cannot tell.
    pub(super) fn of(&self, plugin: &str) -> Option<Wanted> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Some(known.as_ref()?.get(plugin).copied().unwrap_or(Wanted::Run))
    }

    /// Takes over what a database of before this file knows.
    pub(super) fn adopt(&self, connection: &Connection) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.is_some() {
            return;
        }
        let rows = || -> rusqlite::Result<HashMap<String, Wanted>> {
            let mut select = connection.prepare("SELECT name, wanted FROM plugin")?;
            let rows = select.query_map([], |row| {
                let wanted: String = row.get(1)?;
                Ok((row.get(0)?, read_word(&wanted)))
            })?;
            rows.collect()
        };
        let Ok(mut rows) = rows() else { return };
        rows.retain(|_, wanted| *wanted != Wanted::Run);
        if write(&self.path, &rows).is_ok() {
            *known = Some(rows);
        }
    }

    /// Notes what has changed.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn note(&self, changed: &HashMap<String, Remembered>) -> io::Result<()> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = known.clone().unwrap_or_default();
        for (name, remembered) in changed {
            match remembered.wanted {
                Wanted::Run | Wanted::Removed => all.remove(name),
                wanted => all.insert(name.clone(), wanted),
            };
        }
        if known.as_ref() == Some(&all) {
            return Ok(());
        }
        write(&self.path, &all)?;
        *known = Some(all);
        Ok(())
    }
}

/// Whole or not at all.
fn write(path: &Path, wishes: &HashMap<String, Wanted>) -> io::Result<()> {
    let mut lines: Vec<String> =
        wishes.iter().map(|(name, wanted)| format!("{} {name}\n", word(*wanted))).collect();
    lines.sort();
    let new = path.with_extension("new");
    let mut file = fs::File::create(&new)?;
    file.write_all(lines.concat().as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_survive_and_only_those_that_differ_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted");
        let wishes = Wishes::read(&path);
        assert_eq!(wishes.of("a"), None);
        let wanted = |wanted| Remembered { wanted, generation: 1 };
        let changed = [("a", Wanted::Disabled), ("b", Wanted::Run), ("c", Wanted::Stopped)];
        let changed = changed.map(|(name, one)| (name.to_owned(), wanted(one)));
        wishes.note(&changed.into()).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "disabled a\nstopped c\n");
        let wishes = Wishes::read(&path);
        assert_eq!(wishes.of("a"), Some(Wanted::Disabled));
        assert_eq!(wishes.of("b"), Some(Wanted::Run));
        wishes.note(&[("a".to_owned(), wanted(Wanted::Run))].into()).unwrap();
        assert_eq!(Wishes::read(&path).of("a"), Some(Wanted::Run));
    }
}
