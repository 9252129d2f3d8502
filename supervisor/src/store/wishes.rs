//! What operators want of plugins, in a small text file: one line for each plugin that
//! is not simply to run, and one that tells whether the file is whole. It is known when the
//! database is locked, damaged, or on a disk that is full.

use std::{
    collections::HashMap,
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use rusqlite::Connection;

use super::{Remembered, write_whole};
use crate::{document::read_start, lifecycle::Wanted};

/// More bytes than the file of any daemon has.
const MOST: usize = 16 << 20;
/// The first word of the last line.
const WHOLE: &str = "whole";

/// The file. None: there was none that could be read, so the database tells.
#[derive(Debug)]
pub(super) struct Wishes {
    path: PathBuf,
    known: Mutex<Option<HashMap<String, Wanted>>>,
    /// The file that says what is known, if there is one.
    kept: Mutex<Option<Mark>>,
}

/// Tells a file from another one that has its place, also when that one was made with its
/// number: which one, and when it was last changed.
type Mark = (u64, i64, i64);

fn mark(path: &Path) -> Option<Mark> {
    let file = std::fs::symlink_metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    Some((file.ino(), file.ctime(), file.ctime_nsec()))
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
    /// With what is wrong with the file. `is_first`: there is no database either, and never was.
    pub(super) fn read(path: &Path, is_first: bool) -> (Self, Option<String>) {
        let (known, problem) = match read_start(path, MOST) {
            Ok(bytes) => match parse(&bytes) {
                Some(known) => (Some(known), None),
                None => {
                    let kept = super::put_aside(path).unwrap_or_else(|why| why);
                    let path = path.display();
                    let text = format!(
                        "{path} was damaged; which plugins are disabled or stopped is taken from \
                         stockade.db; {kept}"
                    );
                    (None, Some(text))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => match is_first {
                true => (Some(HashMap::new()), None),
                false => {
                    let text = format!(
                        "{} is missing; which plugins are disabled or stopped is taken from \
                         stockade.db",
                        path.display()
                    );
                    (None, Some(text))
                }
            },
            Err(error) => {
                let path = path.display();
                let text = format!(
                    "{path} could not be read when the daemon started: {error}; which plugins \
                     are disabled or stopped is taken from stockade.db"
                );
                (None, Some(text))
            }
        };
        let kept = known.as_ref().and_then(|_| mark(path));
        let (path, known, kept) = (path.to_owned(), Mutex::new(known), Mutex::new(kept));
        (Wishes { path, known, kept }, problem)
    }

    /// Neither this file nor, so far, the database has told.
    pub(super) fn are_unknown(&self) -> bool {
        self.known().is_none()
    }

    /// What is wanted of a plugin; None when this file cannot tell.
    pub(super) fn of(&self, plugin: &str) -> Option<Wanted> {
        let known = self.known();
        Some(known.as_ref()?.get(plugin).copied().unwrap_or(Wanted::Run))
    }

    /// Those that are not to run; none when this file cannot tell.
    pub(super) fn at_rest(&self) -> Vec<(String, Wanted)> {
        let known = self.known();
        let all = known.iter().flatten().filter(|(_, wanted)| **wanted != Wanted::Run);
        all.map(|(plugin, wanted)| (plugin.clone(), *wanted)).collect()
    }

    /// Takes over what the database knows when this file does not; else the database does:
    /// each must be able to tell without the other.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(super) fn reconcile(&self, connection: &Connection) -> rusqlite::Result<()> {
        let rows = in_database(connection)?;
        let known = self.known().clone();
        let wishes = known.clone().unwrap_or_else(|| rows.clone());
        if wishes != rows
            && let Err(error) = into_database(connection, &wishes)
        {
            tracing::warn!("what operators want cannot be written into the database: {error}");
        }
        *self.known() = Some(wishes);
        let _ = self.keep();
        Ok(())
    }

    /// Writes the file when it is not there, or is another one than was written; true: it
    /// has. A lost one is replaced before the database is lost, too.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn keep(&self) -> io::Result<bool> {
        let kept = *self.kept();
        if kept.is_some() && kept == mark(&self.path) {
            return Ok(false);
        }
        let known = self.known().clone();
        known.map_or(Ok(false), |known| self.write(&known).map(|()| true))
    }

    fn write(&self, wishes: &HashMap<String, Wanted>) -> io::Result<()> {
        write(&self.path, wishes)?;
        *self.kept() = mark(&self.path);
        Ok(())
    }

    fn kept(&self) -> MutexGuard<'_, Option<Mark>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what has changed; false: not yet. Nobody but the thread of the store does, so
    /// nothing is held while the disk works.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(super) fn note(&self, changed: &HashMap<String, Remembered>) -> io::Result<bool> {
        let known = self.known().clone();
        // What the database knows must not be lost: it waits for it.
        let Some(mut all) = known.clone() else { return Ok(false) };
        for (name, remembered) in changed {
            match remembered.wanted {
                Wanted::Run | Wanted::Removed => all.remove(name),
                wanted => all.insert(name.clone(), wanted),
            };
        }
        if known.as_ref() != Some(&all) {
            self.write(&all)?;
            *self.known() = Some(all);
        }
        Ok(true)
    }

    fn known(&self) -> MutexGuard<'_, Option<HashMap<String, Wanted>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn in_database(connection: &Connection) -> rusqlite::Result<HashMap<String, Wanted>> {
    let mut select = connection.prepare("SELECT name, wanted FROM plugin WHERE wanted <> 'run'")?;
    let rows = select.query_map([], |row| {
        Ok((super::row_text(row, 0)?, read_word(&super::row_text(row, 1)?)))
    })?;
    rows.collect()
}

fn into_database(
    connection: &Connection,
    wishes: &HashMap<String, Wanted>,
) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    transaction.execute("UPDATE plugin SET wanted = 'run' WHERE wanted <> 'run'", [])?;
    for (name, wanted) in wishes {
        transaction.execute(
            "INSERT INTO plugin (name, wanted) VALUES (?1, ?2) \
             ON CONFLICT (name) DO UPDATE SET wanted = ?2",
            [name.as_str(), word(*wanted)],
        )?;
    }
    transaction.commit()
}

/// None when it is not what was written.
fn parse(bytes: &[u8]) -> Option<HashMap<String, Wanted>> {
    let text = str::from_utf8(bytes).ok()?;
    let last = text.strip_suffix('\n')?.rfind('\n').map_or(0, |end| end + 1);
    let (lines, mark) = text.split_at(last);
    if mark.trim_end() != format!("{WHOLE} {}", digest(lines)) {
        return None;
    }
    let lines = lines.lines().filter_map(|line| line.split_once(' '));
    Some(lines.map(|(word, name)| (name.to_owned(), read_word(word))).collect())
}

fn digest(lines: &str) -> String {
    use sha2::{Digest as _, Sha256};
    let digest = Sha256::digest(lines.as_bytes());
    digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

fn write(path: &Path, wishes: &HashMap<String, Wanted>) -> io::Result<()> {
    let mut lines: Vec<String> =
        wishes.iter().map(|(name, wanted)| format!("{} {name}\n", word(*wanted))).collect();
    lines.sort();
    lines.push(format!("{WHOLE} {}\n", digest(&lines.concat())));
    write_whole(path, lines.concat().as_bytes())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(path: &Path) -> Wishes {
        let (wishes, problem) = Wishes::read(path, true);
        assert_eq!(problem, None);
        wishes
    }

    fn noted(changed: &[(&str, Wanted)]) -> HashMap<String, Remembered> {
        let wanted = |wanted| Remembered { wanted, generation: 1 };
        changed.iter().map(|(name, one)| ((*name).to_owned(), wanted(*one))).collect()
    }

    #[test]
    fn wishes_survive_and_only_those_that_differ_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted");
        let wishes = read(&path);
        assert_eq!(wishes.of("a"), Some(Wanted::Run));
        let changed = [("a", Wanted::Disabled), ("b", Wanted::Run), ("c", Wanted::Stopped)];
        wishes.note(&noted(&changed)).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("disabled a\nstopped c\nwhole "), "{text}");
        let wishes = read(&path);
        assert_eq!(wishes.of("a"), Some(Wanted::Disabled));
        assert_eq!(wishes.of("b"), Some(Wanted::Run));
        wishes.note(&noted(&[("a", Wanted::Run)])).unwrap();
        assert_eq!(read(&path).of("a"), Some(Wanted::Run));
    }

    #[test]
    fn whatever_lies_where_it_is_written_is_neither_waited_for_nor_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted");
        let new = folder.path().join("wanted.new");
        let wishes = read(&path);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &new, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let disabled = noted(&[("a", Wanted::Disabled)]);
        assert!(wishes.note(&disabled).unwrap_err().to_string().contains("remove it"));
        fs::remove_file(&new).unwrap();
        let other = folder.path().join("other");
        fs::write(&other, "other").unwrap();
        std::os::unix::fs::symlink(&other, &new).unwrap();
        assert!(wishes.note(&disabled).unwrap_err().to_string().contains("remove it"));
        fs::remove_file(&new).unwrap();
        wishes.note(&disabled).unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "other");
        assert_eq!(read(&path).of("a"), Some(Wanted::Disabled));
    }

    #[test]
    fn a_file_that_is_lost_is_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted");
        let wishes = read(&path);
        wishes.note(&noted(&[("a", Wanted::Disabled)])).unwrap();
        assert!(!wishes.keep().unwrap());
        fs::remove_file(&path).unwrap();
        assert!(wishes.keep().unwrap());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        fs::write(path.join("x"), "x").unwrap();
        wishes.keep().unwrap_err();
        fs::remove_dir_all(&path).unwrap();
        assert!(wishes.keep().unwrap());
        assert_eq!(read(&path).of("a"), Some(Wanted::Disabled));
    }

    #[test]
    fn a_file_that_is_not_whole_tells_nothing_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("wanted");
        read(&path).note(&noted(&[("a", Wanted::Disabled), ("c", Wanted::Stopped)])).unwrap();
        let whole = fs::read(&path).unwrap();
        let mut altered = whole.clone();
        altered[10] ^= 1;
        let cut = |bytes: usize| whole[..bytes].to_vec();
        for damaged in [cut(0), cut(5), cut(11), cut(whole.len() - 1), altered, vec![0; 64]] {
            fs::write(&path, &damaged).unwrap();
            let (wishes, problem) = Wishes::read(&path, false);
            assert!(problem.unwrap().contains("was damaged"), "{damaged:?}");
            assert_eq!(wishes.of("a"), None, "{damaged:?}");
            // What the database knows is not overwritten before it has told.
            assert!(!wishes.note(&noted(&[("b", Wanted::Stopped)])).unwrap());
            assert!(!path.exists());
        }
    }
}
