//! The thread that writes `stockade.db`, what waits for it, and what is wrong with the
//! file.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};
use tokio::sync::watch;

use super::{
    Recovered, Remembered, advice, crash::CrashRecord, identity, is_damage, log_of, log_path,
    made::Made, note, place, put_aside_database, wishes::Wishes,
};
use crate::{capacity::limits, lifecycle::Wanted};

pub(super) type Query = Box<dyn FnOnce(Option<&Connection>) + Send>;

pub(super) enum Job {
    /// There is something to write.
    Write,
    Read(Query),
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) path: PathBuf,
    pub(super) keep: usize,
    pub(super) problem: Mutex<Option<String>>,
    /// Since when the disk has been working at something.
    pub(super) busy: Mutex<Option<Instant>>,
    pub(super) waiting: Mutex<Waiting>,
    pub(super) wishes: Wishes,
    /// Plugins that operators enabled (true) or started while nobody knew what they
    /// wanted before.
    pub(super) said: Mutex<HashMap<String, bool>>,
    /// What was found out too late.
    pub(super) recovered: watch::Sender<Recovered>,
    /// How many of what was to be remembered are on the disk.
    pub(super) noted: watch::Sender<u64>,
}

/// What is to be written: of each plugin the last word, and the records that fit.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    pub(super) remembered: HashMap<String, Remembered>,
    pub(super) crashes: VecDeque<CrashRecord>,
    pub(super) dropped: u64,
    /// How much has come that is to be remembered.
    pub(super) asked: u64,
}

impl Waiting {
    /// All of it; the count goes on.
    fn take(&mut self) -> Self {
        let asked = self.asked;
        std::mem::replace(self, Waiting { asked, ..Waiting::default() })
    }

    fn is_empty(&self) -> bool {
        self.remembered.is_empty() && self.crashes.is_empty()
    }
}

/// Between two tries of a file that cannot be opened or written.
const AGAIN: Duration = Duration::from_secs(1);
/// Another process that holds the file is waited for this long at a time: what operators
/// want is noted by the same thread.
const PATIENCE: Duration = Duration::from_millis(50);
/// One that holds it for longer is told. As long is waited where nobody else waits.
pub(super) const HELD: Duration = Duration::from_secs(1);

const SCHEMA: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS crash (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        plugin TEXT NOT NULL,
        time TEXT NOT NULL,
        cause TEXT NOT NULL,
        record TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS crash_plugin ON crash (plugin, id);
    CREATE TABLE IF NOT EXISTS plugin (
        name TEXT PRIMARY KEY,
        wanted TEXT NOT NULL DEFAULT 'run',
        generation INTEGER NOT NULL DEFAULT 0
    );
";

impl Shared {
    pub(super) fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn said(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn busy(&self) -> MutexGuard<'_, Option<Instant>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says it once, and that it is over.
    pub(super) fn tell(&self, now: Option<String>) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if *problem == now {
            return;
        }
        match &now {
            Some(text) => tracing::error!("{text}"),
            None => tracing::info!("{} can be written again", self.path.display()),
        }
        *problem = now;
    }
}

/// The thread.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) connection: Option<Connection>,
    pub(super) tried: Instant,
    /// Since when another process has been holding the file.
    pub(super) held: Option<Instant>,
    /// Which file was opened.
    pub(super) file: Option<(u64, u64)>,
    /// Which file its log was.
    pub(super) log: Option<(u64, u64)>,
    pub(super) made: Arc<Made>,
    pub(super) damaged: Arc<Mutex<Vec<String>>>,
}

impl Writer {
    pub(super) fn run(mut self, inbox: &Receiver<Job>) {
        loop {
            let job = match inbox.recv_timeout(AGAIN) {
                Ok(job) => Some(job),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.connection.as_ref().map(|one| one.busy_timeout(HELD));
                    self.write();
                    return;
                }
            };
            *self.shared.busy() = Some(Instant::now());
            if self.connection.is_none() && self.tried.elapsed() >= AGAIN {
                // What operators want does not wait for the database.
                self.write();
                self.open(PATIENCE);
            }
            self.stay();
            self.write();
            if let Some(Job::Read(query)) = job {
                // A defect costs the question, not the thread.
                let connection = self.connection.as_ref();
                let _ = catch_unwind(AssertUnwindSafe(|| query(connection)));
            }
            *self.shared.busy() = None;
        }
    }

    /// Of a file that was removed nothing that is written into it remains, and SQLite does
    /// not say so.
    fn stay(&mut self) {
        let path = &self.shared.path;
        if self.connection.is_none() {
            return;
        }
        if identity(path) == self.file {
            let log = log_path(path);
            if self.log.is_some() && place(&log) != self.log {
                tracing::warn!("{} was removed or replaced while the daemon runs", log.display());
                // What is in the old one is written into the database at its close.
                self.connection = None;
                self.open(PATIENCE);
            }
            return;
        }
        let text = format!(
            "{} was removed or replaced while the daemon ran: deaths that only the old one had \
             are lost",
            path.display()
        );
        note(&mut self.damaged.lock().unwrap_or_else(PoisonError::into_inner), text);
        self.connection = None;
        self.open(PATIENCE);
    }

    pub(super) fn open(&mut self, patience: Duration) {
        let path = &self.shared.path;
        let opened = open(path, patience).or_else(|error| {
            if !is_damage(&error) {
                return Err(error);
            }
            let kept = put_aside_database(path)
                .map_err(|why| super::damage(format!("it is damaged ({error}), and {why}")))?;
            let text = format!("{} was damaged ({error}) and starts empty; {kept}", path.display());
            self.lost(text, self.shared.wishes.are_unknown());
            open(path, patience)
        });
        self.tried = Instant::now();
        let were_unknown = self.shared.wishes.are_unknown();
        let opened = opened.and_then(|(connection, is_new)| {
            self.shared.wishes.reconcile(&connection)?;
            Ok((connection, is_new))
        });
        match opened {
            Ok((connection, is_new)) => {
                // One that went while the daemon ran was told of.
                if is_new && self.file.is_none() && self.made.has(path) && !self.is_told() {
                    let text = format!(
                        "{} was missing or empty: the deaths that it knew of are lost",
                        path.display()
                    );
                    self.lost(text, were_unknown);
                }
                self.made.note(path);
                if were_unknown {
                    self.recover();
                }
                self.log = log_of(&connection, path);
                self.connection = Some(connection);
                self.file = identity(&self.shared.path);
                self.shared.tell(None);
            }
            Err(error) => self.shared.tell(Some(format!(
                "{} cannot be opened: {error}; crash records wait, and it is tried again each \
                 second. {}.",
                path.display(),
                advice(&error)
            ))),
        }
    }

    /// What waits was remembered when nobody knew what operators want: who runs, or would
    /// when it can, for that reason alone is not to run.
    fn recover(&self) {
        let said = std::mem::take(&mut *self.shared.said());
        let mut waiting = self.shared.waiting();
        let mut late = Recovered::new();
        for (name, wanted) in self.shared.wishes.at_rest() {
            let enabled = said.get(&name);
            match waiting.remembered.get_mut(&name) {
                // An operator has said otherwise meanwhile.
                Some(remembered) if remembered.wanted != Wanted::Run => continue,
                Some(_) if enabled.is_some_and(|enabled| *enabled || wanted == Wanted::Stopped) => {
                    continue;
                }
                Some(remembered) => remembered.wanted = wanted,
                None => {}
            }
            late.push((name, wanted));
        }
        drop(waiting);
        if !late.is_empty() {
            self.shared.recovered.send_replace(late);
        }
    }

    /// The database is not what it was, and with it what only it knew.
    fn lost(&self, text: String, with_wishes: bool) {
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut damaged, text);
        if with_wishes {
            let text = "which plugins were stopped or disabled is not known any more: all of \
                        them run; stop or disable them again";
            note(&mut damaged, text.to_owned());
        }
    }

    /// Something has been said of what was lost.
    fn is_told(&self) -> bool {
        !self.damaged.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Writes what waits. What cannot be written waits on.
    fn write(&mut self) {
        let waiting = self.shared.waiting().take();
        if waiting.is_empty() {
            return self.keep();
        }
        let noted = self.shared.wishes.note(&waiting.remembered);
        if matches!(noted, Ok(true)) {
            self.shared.noted.send_replace(waiting.asked);
        }
        let Some(connection) = &self.connection else { return self.put_back(waiting) };
        let written = write(connection, &waiting, self.shared.keep);
        let (path, is_written) = (&self.shared.path, written.is_ok());
        let briefly = match is_locked(&written) {
            true => self.held.get_or_insert_with(Instant::now).elapsed() < HELD,
            false => {
                self.held = None;
                false
            }
        };
        let failed = match (written, noted) {
            (Err(error), _) => {
                Some(format!("cannot write {}: {error}. {}.", path.display(), advice(&error)))
            }
            (Ok(()), Err(error)) => Some(self.unwritten(&error)),
            (Ok(()), Ok(_)) => None,
        };
        let is_failed = failed.is_some();
        if !briefly {
            self.shared.tell(failed);
        }
        if is_failed {
            // What is in the database is not written twice.
            let crashes = if is_written { VecDeque::new() } else { waiting.crashes };
            self.put_back(Waiting { crashes, ..waiting });
        }
    }

    /// What operators want is in a file of its own at all times.
    fn keep(&self) {
        let kept = self.shared.wishes.keep();
        // Of a database that cannot be opened more is told already.
        if self.connection.is_some() && !matches!(kept, Ok(false)) {
            self.shared.tell(kept.err().map(|error| self.unwritten(&error)));
        }
    }

    fn unwritten(&self, error: &std::io::Error) -> String {
        format!(
            "cannot write {}: {error}. Free its disk, or make it a file that the daemon may write.",
            self.shared.path.with_file_name("wanted").display()
        )
    }

    fn put_back(&self, old: Waiting) {
        let mut waiting = self.shared.waiting();
        for (name, remembered) in old.remembered {
            waiting.remembered.entry(name).or_insert(remembered);
        }
        for record in old.crashes.into_iter().rev() {
            waiting.crashes.push_front(record);
        }
        while waiting.crashes.len() > limits::RECORDS_WAITING {
            waiting.crashes.pop_front();
            waiting.dropped += 1;
        }
        waiting.dropped += old.dropped;
    }
}

fn write(connection: &Connection, waiting: &Waiting, keep: usize) -> rusqlite::Result<()> {
    let transaction = connection.unchecked_transaction()?;
    for record in &waiting.crashes {
        let json = serde_json::to_string(record).unwrap_or_default();
        let mut insert = transaction.prepare_cached(
            "INSERT INTO crash (plugin, time, cause, record) VALUES (?1, ?2, ?3, ?4)",
        )?;
        insert.execute(params![record.plugin, record.time, record.cause, json])?;
        let mut prune = transaction.prepare_cached(
            "DELETE FROM crash WHERE plugin = ?1 AND id <= \
             (SELECT id FROM crash WHERE plugin = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?;
        prune.execute(params![record.plugin, keep as i64])?;
    }
    for (name, remembered) in &waiting.remembered {
        let mut upsert = transaction.prepare_cached(
            "INSERT INTO plugin (name, wanted, generation) VALUES (?1, ?2, ?3) \
             ON CONFLICT (name) DO UPDATE SET wanted = ?2, generation = ?3",
        )?;
        let wanted = super::wishes::word(remembered.wanted);
        upsert.execute(params![name, wanted, remembered.generation as i64])?;
    }
    transaction.commit()
}

fn is_locked(written: &rusqlite::Result<()>) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    let code = written.as_ref().err().and_then(rusqlite::Error::sqlite_error_code);
    matches!(code, Some(DatabaseBusy | DatabaseLocked))
}

/// With whether it is new.
fn open(path: &Path, patience: Duration) -> rusqlite::Result<(Connection, bool)> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(patience)?;
    let is_new = super::is_new(&connection)?;
    super::check_form(connection.execute_batch(SCHEMA))?;
    for table in [
        "SELECT id, plugin, time, cause, record FROM crash",
        "SELECT name, wanted, generation FROM plugin",
    ] {
        super::check_form(connection.prepare(table).map(drop))?;
    }
    super::check_whole(&connection)?;
    super::keep_private(path);
    connection.busy_timeout(PATIENCE)?;
    Ok((connection, is_new))
}
