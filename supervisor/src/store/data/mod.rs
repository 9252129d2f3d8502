//! What plugins have stored and who changed it: `data.db`, SQLite in WAL mode.
//! What was acknowledged is on the disk (`synchronous = FULL`).
//!
//! One thread writes; changes that wait together are committed together, and those who
//! make them come in turn. So do those who read, on connections of their own; the last
//! values read are kept in memory.

mod cache;
mod documents;
mod kv;
mod provenance;
mod queue;
mod shares;
mod usage;
mod workspaces;
mod writer;

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, ErrorCode};

pub use documents::{Document, DocumentPart, Edit};
pub use kv::{Entry, Expectation, Row, Swap};
pub use provenance::{Author, Provenance, ProvenanceQuery};
pub use usage::Usage;
pub use workspaces::{Workspace, Workspaces, check_workspace, enabled_plugins};

use super::{damage, is_damage, made::Made, note, put_aside_database};
use crate::{
    capacity::{Account, Charge, Crew, Lane, weigh},
    manifest::Quota,
};
use cache::Cache;
use writer::Writer;

/// Why something was not stored or not found out. The store goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DataError {
    /// The disk is full.
    #[error("the store cannot grow: {0}; free space on the disk of the state directory")]
    Full(String),
    /// Another process holds the file.
    #[error("the store is locked by another process ({0}); nothing was changed, try again")]
    Locked(String),
    /// Too much waits.
    #[error("too much waits for the store; nothing was changed, try again")]
    Busy,
    /// What is stored is larger than what may be held now.
    #[error("there is no room to read it: {0}; nothing was changed, try again")]
    Room(String),
    /// The plugin has used up what it may store.
    #[error("{0}")]
    Quota(String),
    /// The change cannot be made.
    #[error("{0}")]
    Invalid(String),
    /// The file cannot be used.
    #[error("the store cannot be used: {0}; nothing was changed")]
    Broken(String),
}

impl From<rusqlite::Error> for DataError {
    fn from(error: rusqlite::Error) -> Self {
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => DataError::Full(text),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => DataError::Locked(text),
            _ => DataError::Broken(text),
        }
    }
}

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS kv (
        plugin TEXT NOT NULL,
        key TEXT NOT NULL,
        value BLOB NOT NULL,
        binary INTEGER NOT NULL,
        expires INTEGER NOT NULL,
        modified INTEGER NOT NULL,
        PRIMARY KEY (plugin, key)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS kv_expires ON kv (expires) WHERE expires > 0;
    CREATE TABLE IF NOT EXISTS document (
        workspace TEXT NOT NULL,
        entity TEXT NOT NULL,
        text TEXT NOT NULL,
        modified INTEGER NOT NULL,
        PRIMARY KEY (workspace, entity)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS part (
        workspace TEXT NOT NULL,
        entity TEXT NOT NULL,
        name TEXT NOT NULL,
        plugin TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        PRIMARY KEY (workspace, entity, name, plugin)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS part_plugin ON part (plugin, bytes);
    DROP TABLE IF EXISTS share;
    CREATE TABLE IF NOT EXISTS workspace (
        name TEXT PRIMARY KEY,
        text TEXT NOT NULL,
        modified INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS provenance (
        actor TEXT NOT NULL,
        id INTEGER NOT NULL,
        time INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        call TEXT NOT NULL,
        workspace TEXT NOT NULL,
        operation TEXT NOT NULL,
        key TEXT NOT NULL,
        PRIMARY KEY (actor, id)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS note (
        name TEXT PRIMARY KEY,
        text TEXT NOT NULL
    ) WITHOUT ROWID;
";

/// On whose account something is stored.
#[derive(Clone, Debug)]
pub struct Payer {
    /// What it may store.
    pub quota: Quota,
    /// Holds what waits, and what is read for it; None: an operator.
    pub account: Option<Account>,
}

impl Payer {
    /// An operator, for whom the disk is the only bound.
    pub fn operators() -> Self {
        let quota = Quota { keys: u64::MAX >> 1, bytes: u64::MAX >> 1, ..Quota::default() };
        Payer { quota, account: None }
    }

    /// Room for so many bytes.
    fn hold(&self, bytes: usize) -> Result<Option<Charge>, DataError> {
        let charge = self.account.as_ref().map(|account| account.charge(bytes)).transpose();
        charge.map_err(|why| DataError::Room(why.to_string()))
    }

    /// Room for what a text becomes when it is read.
    fn hold_read(&self, text: &[u8]) -> Result<Option<Charge>, DataError> {
        self.hold(weigh(text).bytes)
    }
}

/// Another process that holds the file is waited for this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Reads at once, and their connections: a disk that does not answer holds no more
/// threads, and one plugin no more than half of them.
const READERS: usize = 4;

/// Others may change so often what is being changed aside.
const TRIES: usize = 2;

/// The open store.
#[derive(Debug)]
pub struct Data {
    path: PathBuf,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
    /// None: the system gave no thread.
    reading: Option<Crew>,
    cache: Arc<Cache>,
    /// Where changes are prepared that take long: one at a time.
    preparing: Option<Crew>,
    /// In whose turn what was prepared is written.
    prepared: Arc<str>,
    /// Which plugins are enabled where.
    pub workspaces: Arc<Workspaces>,
}

impl Data {
    /// Opens (and makes) the file; a damaged one is put aside. One that cannot be
    /// opened now is tried again until it can; meanwhile every request is answered with
    /// why, and workspaces are closed.
    pub(super) fn open(
        path: &Path,
        keep: usize,
        made: Arc<Made>,
        problems: &mut Vec<String>,
    ) -> Self {
        let workspaces: Arc<Workspaces> = Arc::default();
        let opened = open_or_put_aside(path, &workspaces, &made, problems);
        let writer = Writer::start(path.to_owned(), opened, keep, workspaces.clone(), made);
        Data {
            path: path.to_owned(),
            writer,
            readers: Mutex::default(),
            reading: Crew::start("data-reader", READERS)
                .inspect_err(|error| tracing::error!("no thread to read data.db: {error}"))
                .ok(),
            cache: Arc::default(),
            preparing: Crew::start("data-changer", 1)
                .inspect_err(|error| tracing::error!("no thread for large changes: {error}"))
                .ok(),
            prepared: "prepared".into(),
            workspaces,
        }
    }

    /// Makes a change in its author's turn; answers once it is on the disk.
    async fn write<T: Send + 'static>(
        &self,
        author: &Arc<str>,
        work: impl FnOnce(&mut writer::Change<'_>) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        self.writer.write(author, work).await
    }

    /// Asks in the turn of `lane`, on a connection of its own and a thread that may block.
    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        lane: impl Into<Lane>,
        query: impl FnOnce(&Connection) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        self.ask(self.reading.as_ref(), lane, query).await
    }

    /// The same for a change that takes long to prepare.
    async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        lane: impl Into<Lane>,
        query: impl FnOnce(&Connection) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        self.ask(self.preparing.as_ref(), lane, query).await
    }

    async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        crew: Option<&Crew>,
        lane: impl Into<Lane>,
        query: impl FnOnce(&Connection) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        if let Some(why) = self.writer.closed() {
            return Err(DataError::Broken(why));
        }
        let ended = || DataError::Broken("there is no thread to read it".to_owned());
        let crew = crew.ok_or_else(ended)?;
        let data = self.clone();
        let asked = crew.run(lane, move || {
            let free = data.readers().pop();
            let connection = match free {
                Some(connection) => connection,
                None => reader(&data.path)?,
            };
            let result = query(&connection)?;
            let mut readers = data.readers();
            if readers.len() < READERS {
                readers.push(connection);
            }
            Ok(result)
        });
        asked.await.map_err(|_| DataError::Busy)?
    }

    fn readers(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an operator should know: why nothing can be stored, or the last change that
    /// could not be made, and workspaces that are closed.
    pub fn problem(&self) -> Option<String> {
        self.writer.problem().or_else(|| self.workspaces.problem())
    }
}

/// The turn of all operators who read.
pub fn operators_turn() -> Lane {
    Lane::Operator("operators".into())
}

/// Opens the file and reads the workspaces, putting a damaged file aside.
fn open_or_put_aside(
    path: &Path,
    workspaces: &Workspaces,
    made: &Made,
    told: &mut Vec<String>,
) -> rusqlite::Result<Connection> {
    let opened = open(path).and_then(|(connection, is_new)| {
        if is_new && made.has(path) {
            let text = format!("{} was missing or empty", path.display());
            close(&connection, &text)?;
            note(told, format!("what plugins stored is lost: {text}"));
        }
        workspaces.load(&connection)?;
        Ok(connection)
    });
    let error = match opened {
        Err(error) if is_damage(&error) => error,
        Ok(connection) => {
            made.note(path);
            if let Some(problem) = workspaces.problem() {
                tracing::warn!("{problem}");
            }
            return Ok(connection);
        }
        Err(error) => return Err(error),
    };
    let kept = put_aside_database(path)
        .map_err(|why| damage(format!("it is damaged ({error}), and {why}")))?;
    let text = format!("what plugins stored ({}) was damaged ({error}); {kept}", path.display());
    note(told, text);
    let (connection, _) = open(path)?;
    close(&connection, &format!("{} was damaged", path.display()))?;
    workspaces.load(&connection)?;
    made.note(path);
    Ok(connection)
}

/// Which plugins may run where is not known any more.
fn close(connection: &Connection, why: &str) -> rusqlite::Result<()> {
    let note = "INSERT OR REPLACE INTO note (name, text) VALUES ('workspaces', ?1)";
    connection.execute(note, [why]).map(drop)
}

/// With whether it is new.
fn open(path: &Path) -> rusqlite::Result<(Connection, bool)> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(PATIENCE)?;
    let is_new = super::is_new(&connection)?;
    super::check_form(connection.execute_batch(SCHEMA))?;
    for table in [
        "SELECT plugin, key, value, binary, expires, modified FROM kv",
        "SELECT workspace, entity, text, modified FROM document",
        "SELECT workspace, entity, name, plugin, bytes FROM part",
        "SELECT name, text, modified FROM workspace",
        "SELECT actor, id, time, generation, call, workspace, operation, key FROM provenance",
        "SELECT name, text FROM note",
    ] {
        super::check_form(connection.prepare(table).map(drop))?;
    }
    super::check_whole(&connection)?;
    super::keep_private(path);
    Ok((connection, is_new))
}

fn reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags =
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY | rusqlite::OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

/// Milliseconds since 1970.
fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// As RFC 3339.
pub fn time_text(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map(|time| time.to_string()).unwrap_or_default()
}
