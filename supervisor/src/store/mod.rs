//! The state directory: what must survive the daemon.
//!
//! | what | where | how it survives SIGKILL |
//! |---|---|---|
//! | success and error counts | `counters` | a shared mapping: an acknowledged call is counted in the page cache |
//! | crash records, what operators want, generations | `stockade.db` | SQLite in WAL mode, one writer thread |
//! | what operators want, once more | `wanted` | replaced as a whole |
//! | what plugins store through the host, workspaces, provenance | `data.db` | SQLite in WAL mode, synced at each commit |
//! | plugins' own data | `data/NAME/` | theirs |
//! | which of these files there have been | `made` | replaced as a whole, written first |
//! | one daemon per directory | `lock` | flock |

mod counters;
mod crash;
mod data;
mod database;
mod lock;
mod made;
mod wishes;
mod writer;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

pub use counters::Counters;
pub use crash::{CrashRecord, InFlight};
pub use data::{
    Author, Data, DataError, Document, DocumentPart, Edit, Entry, Expectation, Payer, Provenance,
    ProvenanceQuery, Row, Swap, Usage, Workspace, Workspaces, check_workspace, enabled_plugins,
    operators_turn, time_text,
};
pub use database::{Database, Recovered, Remembered};

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It cannot be made or read.
    #[error(
        "state directory {path}: {source}; make it a directory that the daemon may write, or choose \
         another with --state-dir"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another daemon has it.
    #[error(
        "state directory {path} is in use by another stockade daemon (pid {pid}); \
         stop it or choose another with --state-dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// Who holds the lock, as it wrote.
        pid: String,
    },
}

/// How many records are kept, per plugin.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    /// Deaths.
    pub crash_records: usize,
    /// Changes of what is stored.
    pub provenance_records: usize,
}

/// An open state directory. Dropping it releases the lock.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    counters: counters::CounterFile,
    /// Crash records and the rest.
    pub database: Database,
    /// What plugins have stored, and workspaces.
    pub data: Arc<Data>,
    /// What was wrong with the files found, and what was done about it.
    pub problems: Vec<String>,
    _lock: lock::Lock,
}

impl Store {
    /// Opens (and makes) the directory. A damaged file is put aside under a name that
    /// ends in `.corrupt-…`, and nothing is deleted; one that is only locked, or on a full
    /// disk, is tried again until it opens.
    ///
    /// # Errors
    /// The directory cannot be used, or another daemon uses it.
    pub fn open(directory: &Path, keep: Keep) -> Result<Arc<Self>, StoreError> {
        let failed = |source| StoreError::Directory { path: directory.to_owned(), source };
        fs::create_dir_all(directory).map_err(failed)?;
        let lock = lock::Lock::take(directory)?;
        let mut problems = Vec::new();
        if let Some(problem) = open_to_others(directory) {
            note(&mut problems, problem);
        }
        let made = Arc::new(made::Made::read(directory));
        let file = |name: &str| directory.join(name);
        let counters = counters::CounterFile::open(&file("counters"), &made, &mut problems);
        let (crash_records, provenance_records) = (keep.crash_records, keep.provenance_records);
        let database =
            Database::open(&file("stockade.db"), crash_records, made.clone(), &mut problems);
        let data = Data::open(&file("data.db"), provenance_records, made, &mut problems);
        Ok(Arc::new(Store {
            directory: directory.to_owned(),
            counters,
            database,
            data: Arc::new(data),
            problems,
            _lock: lock,
        }))
    }

    /// The state directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The counters of a plugin, made when it is new.
    pub fn counters(&self, plugin: &str) -> Arc<Counters> {
        self.counters.of(plugin)
    }
}

/// The file is no database, or not one any more. Everything else may pass.
fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    matches!(error.sqlite_error_code(), Some(DatabaseCorrupt | NotADatabase))
}

/// What an operator can do about it.
fn advice(error: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked, DiskFull};
    match error.sqlite_error_code() {
        Some(DatabaseBusy | DatabaseLocked) => "End the process that holds it",
        Some(DiskFull) => "Free its disk",
        _ => "Make it a file that the daemon may write, on a disk with room",
    }
}

/// What a check of ours has found.
fn damage(text: String) -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
    rusqlite::Error::SqliteFailure(code, Some(text))
}

/// Looks for damage; the first that there is says enough.
fn check_whole(connection: &rusqlite::Connection) -> rusqlite::Result<()> {
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    match verdict.as_str() {
        "ok" => Ok(()),
        _ => Err(damage(format!("quick_check: {}", verdict.replace('\n', " ")))),
    }
}

/// An error of the statement itself, which other tables than ours lead to, is damage.
fn check_form(done: rusqlite::Result<()>) -> rusqlite::Result<()> {
    use rusqlite::{Error::SqlInputError, ffi::SQLITE_ERROR};
    done.map_err(|error| {
        let of_statement = matches!(error, SqlInputError { .. })
            || error.sqlite_extended_error_code() == Some(SQLITE_ERROR);
        match of_statement {
            true => damage(format!("its tables are not ours: {error}")),
            false => error,
        }
    })
}

/// The text in a column, also where a bit of its type is wrong; empty, if it is none. One
/// row costs no more than itself.
fn row_text(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<String> {
    use rusqlite::types::ValueRef::{Blob, Text};
    Ok(match row.get_ref(column)? {
        Text(bytes) | Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        _ => String::new(),
    })
}

/// Which file the log of an open database is; None when its file system can have none.
fn log_of(connection: &rusqlite::Connection, path: &Path) -> Option<(u64, u64)> {
    let mode = connection.query_row("PRAGMA journal_mode", [], |row| row.get::<_, String>(0));
    let is_log = mode.is_ok_and(|mode| mode == "wal");
    is_log.then(|| place(&log_path(path)).unwrap_or_default())
}

/// Where its log is.
fn log_path(path: &Path) -> PathBuf {
    path.with_extension("db-wal")
}

/// Whoever may write there may replace every file.
fn open_to_others(directory: &Path) -> Option<String> {
    let mode = fs::metadata(directory).ok()?.permissions().mode();
    (mode & 0o022 != 0).then(|| {
        format!(
            "other users may write in the state directory {path} (mode {mode:o}), and so undo what \
             operators want and change what plugins store. Close it: chmod go-w {path}",
            path = directory.display(),
            mode = mode & 0o7777
        )
    })
}

/// What plugins store is for the daemon's user alone, whatever the umask.
fn keep_private(path: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let mut file = path.as_os_str().to_owned();
        file.push(suffix);
        let mode = fs::Permissions::from_mode(0o600);
        let _ = fs::set_permissions(file, mode);
    }
}

/// Puts a database aside with what belongs to it.
fn put_aside_database(path: &Path) -> Result<String, String> {
    let kept = put_aside(path)?;
    for suffix in ["-wal", "-shm"] {
        let mut side = path.as_os_str().to_owned();
        side.push(suffix);
        let side = PathBuf::from(side);
        if side.exists() {
            put_aside(&side)?;
        }
    }
    Ok(kept)
}

/// Nothing has ever been in it.
fn is_new(connection: &rusqlite::Connection) -> rusqlite::Result<bool> {
    let count = "SELECT count(*) FROM sqlite_master";
    connection.query_row(count, [], |row| Ok(row.get::<_, i64>(0)? == 0))
}

/// Replaces a small file: whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    // A pipe left there would be waited for, and a link be followed.
    if fs::symlink_metadata(&new).is_ok_and(|there| !there.is_file()) {
        let text = format!("{} is no regular file; remove it", new.display());
        return Err(io::Error::other(text));
    }
    let mut file = fs::File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // Else a loss of power brings the old one back.
    path.parent().map_or(Ok(()), |folder| fs::File::open(folder)?.sync_all())
}

/// Which file it is; None when there is none, or nothing in it.
fn identity(path: &Path) -> Option<(u64, u64)> {
    // An open database is never empty.
    fs::metadata(path).ok().filter(|file| file.len() > 0).and_then(|_| place(path))
}

/// Which file it is, empty or not.
fn place(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    let file = fs::metadata(path).ok()?;
    Some((file.dev(), file.ino()))
}

/// Says at once what was found at the opening, and keeps it.
fn note(problems: &mut Vec<String>, problem: String) {
    tracing::warn!("{problem}");
    problems.push(problem);
}

/// Waits for a thread, but not for a disk that does not answer.
fn join_within(thread: std::thread::JoinHandle<()>, patience: std::time::Duration) {
    let deadline = std::time::Instant::now() + patience;
    while !thread.is_finished() {
        if std::time::Instant::now() >= deadline {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let _ = thread.join();
}

/// `NAME.corrupt-TIME`.
///
/// # Errors
/// It cannot be moved, and is left as it is.
fn put_aside(path: &Path) -> Result<String, String> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".corrupt-{}", jiff::Timestamp::now().as_second()));
    match fs::rename(path, &aside) {
        Ok(()) => Ok(format!("kept as {}", PathBuf::from(aside).display())),
        Err(error) => Err(format!("it cannot be put aside: {error}; make its folder writable")),
    }
}
