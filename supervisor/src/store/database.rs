//! Crash records and what operators want, in SQLite. One thread writes; a
//! write is never waited for on the path of a call or a restart.
//!
//! A file that cannot be opened now (locked, on a full disk) is no damaged file: it is
//! tried again until it opens, and what is to be written waits. What operators want is
//! besides kept in a small text file, so that it is known without the database.

use std::{
    collections::{HashMap, VecDeque},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::watch;

use super::{crash::CrashRecord, is_damage, note, put_aside_database, wishes::Wishes};
use crate::{capacity::limits, lifecycle::Wanted};

/// What is remembered of a plugin between two lives of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// What the operator wants.
    pub wanted: Wanted,
    /// Its last process.
    pub generation: u64,
}

type Query = Box<dyn FnOnce(Option<&Connection>) + Send>;

enum Job {
    /// There is something to write.
    Write,
    Read(Query),
}

/// Handle of the writer thread.
#[derive(Debug)]
pub struct Database {
    jobs: Option<SyncSender<Job>>,
    writer: Option<std::thread::JoinHandle<()>>,
    shared: Arc<Shared>,
    damaged: Arc<Mutex<Vec<String>>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    keep: usize,
    problem: Mutex<Option<String>>,
    /// Since when the disk has been working at something.
    busy: Mutex<Option<Instant>>,
    waiting: Mutex<Waiting>,
    wishes: Wishes,
    /// How many of what was to be remembered are on the disk.
    noted: watch::Sender<u64>,
}

/// What is to be written: of each plugin the last word, and the records that fit.
#[derive(Debug, Default)]
struct Waiting {
    remembered: HashMap<String, Remembered>,
    crashes: VecDeque<CrashRecord>,
    dropped: u64,
    /// How much has come that is to be remembered.
    asked: u64,
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
const HELD: Duration = Duration::from_secs(1);
/// A disk that does not answer is waited for this long by whoever asks.
const ANSWER: Duration = Duration::from_secs(5);
/// One that takes longer for what is asked of it is told.
const HANGS: Duration = Duration::from_secs(3);
/// Questions that may wait.
const QUESTIONS: usize = 256;

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
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn busy(&self) -> MutexGuard<'_, Option<Instant>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says it once, and that it is over.
    fn tell(&self, now: Option<String>) {
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
struct Writer {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    tried: Instant,
    /// Since when another process has been holding the file.
    held: Option<Instant>,
    damaged: Arc<Mutex<Vec<String>>>,
}

impl Writer {
    fn run(mut self, inbox: &Receiver<Job>) {
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
            self.write();
            if let Some(Job::Read(query)) = job {
                // A defect costs the question, not the thread.
                let connection = self.connection.as_ref();
                let _ = catch_unwind(AssertUnwindSafe(|| query(connection)));
            }
            *self.shared.busy() = None;
        }
    }

    fn open(&mut self, patience: Duration) {
        let path = &self.shared.path;
        let opened = open(path, patience).or_else(|error| {
            if !is_damage(&error) {
                return Err(error);
            }
            let kept = put_aside_database(path)
                .map_err(|why| super::damage(format!("it is damaged ({error}), and {why}")))?;
            let text = format!("{} was damaged ({error}) and starts empty; {kept}", path.display());
            let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
            note(&mut damaged, text);
            if self.shared.wishes.are_unknown() {
                let text = "which plugins were stopped or disabled is not known any more: all of \
                            them run; stop or disable them again";
                note(&mut damaged, text.to_owned());
            }
            drop(damaged);
            open(path, patience)
        });
        self.tried = Instant::now();
        match opened {
            Ok(connection) => {
                self.shared.wishes.adopt(&connection);
                self.connection = Some(connection);
                self.shared.tell(None);
            }
            Err(error) => self.shared.tell(Some(format!(
                "{} cannot be opened: {error}; crash records wait, and it is tried again each \
                 second. Free its disk, make it writable, or end the process that holds it.",
                path.display()
            ))),
        }
    }

    /// Writes what waits. What cannot be written waits on.
    fn write(&mut self) {
        let waiting = self.shared.waiting().take();
        if waiting.is_empty() {
            return;
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
            (Err(error), _) => Some((path.clone(), error.to_string())),
            (Ok(()), Err(error)) => Some((path.with_file_name("wanted"), error.to_string())),
            (Ok(()), Ok(_)) => None,
        };
        let problem = failed.as_ref().map(|(path, error)| {
            format!("cannot write {}: {error}; free its disk, or make it writable", path.display())
        });
        if !briefly {
            self.shared.tell(problem);
        }
        if failed.is_some() {
            // What is in the database is not written twice.
            let crashes = if is_written { VecDeque::new() } else { waiting.crashes };
            self.put_back(Waiting { crashes, ..waiting });
        }
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

impl Database {
    pub(super) fn open(path: &Path, keep: usize, problems: &mut Vec<String>) -> Self {
        let (wishes, problem) = Wishes::read(&path.with_file_name("wanted"), !path.exists());
        if let Some(problem) = problem {
            note(problems, problem);
        }
        let shared = Arc::new(Shared {
            path: path.to_owned(),
            keep,
            problem: Mutex::default(),
            busy: Mutex::default(),
            waiting: Mutex::default(),
            wishes,
            noted: watch::Sender::new(0),
        });
        let (jobs, inbox) = mpsc::sync_channel::<Job>(QUESTIONS);
        let damaged: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut writer = Writer {
            shared: shared.clone(),
            connection: None,
            tried: Instant::now(),
            held: None,
            damaged: damaged.clone(),
        };
        // Once before anybody asks: most often it opens.
        writer.open(HELD);
        let writer = std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer.run(&inbox))
            .map_err(|error| {
                note(problems, format!("the store thread could not be started: {error}"));
            })
            .ok();
        Database { jobs: Some(jobs), writer, shared, damaged }
    }

    /// What was lost with a file that was damaged, at the opening or later.
    pub fn damaged(&self) -> Vec<String> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why nothing can be written now.
    pub fn problem(&self) -> Option<String> {
        let busy = self.shared.busy().map(|since| since.elapsed());
        if let Some(busy) = busy.filter(|busy| *busy > HANGS) {
            let folder = self.shared.path.parent().unwrap_or(&self.shared.path).display();
            return Some(format!(
                "the disk of {folder} has not answered for {} s: what operators want and crash \
                 records are in memory only. Look for a disk or a network file system that hangs.",
                busy.as_secs()
            ));
        }
        self.shared.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a query on the writer's connection, after everything written before. None:
    /// the file is not open, or its disk does not answer.
    fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let job: Query = Box::new(move |connection| {
            let result = connection.map(query);
            if let Some(Err(error)) = &result {
                tracing::error!("cannot read the database: {error}");
            }
            let _ = reply.send(result.and_then(Result::ok));
        });
        self.jobs.as_ref()?.try_send(Job::Read(job)).ok()?;
        answer.recv_timeout(ANSWER).ok().flatten()
    }

    fn wake(&self) {
        if let Some(jobs) = &self.jobs {
            // A full queue is being worked on: what waits is seen then.
            let _ = jobs.try_send(Job::Write);
        }
    }

    /// Keeps a record; the oldest ones of the plugin go. Never waits.
    pub fn record_crash(&self, record: CrashRecord) {
        let mut waiting = self.shared.waiting();
        waiting.crashes.push_back(record);
        if waiting.crashes.len() > limits::RECORDS_WAITING {
            waiting.crashes.pop_front();
            waiting.dropped += 1;
        }
        drop(waiting);
        self.wake();
    }

    /// Records of one plugin (or all), newest first, as many as fit into a page. None: the
    /// store does not answer. Blocks on the store.
    pub fn crashes(&self, plugin: Option<String>, limit: usize) -> Option<Vec<CrashRecord>> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT id, record FROM crash WHERE ?1 IS NULL OR plugin = ?1 \
                 ORDER BY id DESC LIMIT ?2",
            )?;
            let rows =
                query.query_map(params![plugin, limit.min(limits::PAGE_ROWS) as i64], |row| {
                    let id: i64 = row.get(0)?;
                    let json: String = row.get(1)?;
                    let mut record: CrashRecord = serde_json::from_str(&json).unwrap_or_default();
                    record.id = id as u64;
                    Ok((record, json.len()))
                })?;
            let mut bytes = 0;
            let mut page = Vec::new();
            for row in rows {
                let (record, length): (CrashRecord, usize) = row?;
                bytes += length;
                if bytes > limits::PAGE_BYTES && !page.is_empty() {
                    break;
                }
                page.push(record);
            }
            Ok(page)
        })
    }

    /// What is known of a plugin from before. Blocks on the store.
    pub fn remembered(&self, plugin: &str) -> Option<Remembered> {
        let name = plugin.to_owned();
        let row = self.read(move |connection| {
            let mut query = connection
                .prepare_cached("SELECT wanted, generation FROM plugin WHERE name = ?1")?;
            query
                .query_row(params![name], |row| {
                    let wanted: String = row.get(0)?;
                    let generation: i64 = row.get(1)?;
                    let wanted = super::wishes::read_word(&wanted);
                    Ok(Remembered { wanted, generation: generation as u64 })
                })
                .optional()
        });
        let row = row.flatten();
        // The small file is written first.
        match self.shared.wishes.of(plugin) {
            Some(wanted) if row.is_some() || wanted != Wanted::Run => {
                Some(Remembered { wanted, generation: row.map_or(0, |row| row.generation) })
            }
            _ => row,
        }
    }

    /// Remembers a plugin. Never waits.
    pub fn remember(&self, plugin: &str, remembered: Remembered) {
        let mut waiting = self.shared.waiting();
        waiting.remembered.insert(plugin.to_owned(), remembered);
        waiting.asked += 1;
        drop(waiting);
        self.wake();
    }

    /// Resolves when what operators want is on the disk, so that a daemon that is killed
    /// now knows it the next time; false: not in time.
    pub async fn noted(&self) -> bool {
        let asked = self.shared.waiting().asked;
        let mut noted = self.shared.noted.subscribe();
        let noted = noted.wait_for(|noted| *noted >= asked);
        tokio::time::timeout(ANSWER, noted).await.is_ok()
    }

    /// Returns when everything written before is in the file, or its disk has had its
    /// time.
    pub fn flush(&self) {
        let (reply, answer) = mpsc::sync_channel(1);
        let job: Query = Box::new(move |_| {
            let _ = reply.send(());
        });
        if self.jobs.as_ref().is_some_and(|jobs| jobs.try_send(Job::Read(job)).is_ok()) {
            let _ = answer.recv_timeout(limits::FLUSH);
        }
    }
}

/// Closes the file: everything written before is in it, unless its disk does not
/// answer.
impl Drop for Database {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            super::join_within(writer, limits::FLUSH);
        }
    }
}

fn is_locked(written: &rusqlite::Result<()>) -> bool {
    use rusqlite::ErrorCode::{DatabaseBusy, DatabaseLocked};
    let code = written.as_ref().err().and_then(rusqlite::Error::sqlite_error_code);
    matches!(code, Some(DatabaseBusy | DatabaseLocked))
}

fn open(path: &Path, patience: Duration) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(patience)?;
    connection.execute_batch(SCHEMA)?;
    let verdict: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(super::damage(format!("quick_check: {verdict}")));
    }
    super::keep_private(path);
    connection.busy_timeout(PATIENCE)?;
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_are_bounded_and_a_damaged_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stockade.db");
        let mut problems = Vec::new();
        let database = Database::open(&path, 3, &mut problems);
        for n in 1..=5 {
            let record = CrashRecord { plugin: "a".into(), generation: n, ..Default::default() };
            database.record_crash(record);
        }
        database.record_crash(CrashRecord { plugin: "b".into(), ..Default::default() });
        let remembered = Remembered { wanted: Wanted::Disabled, generation: 9 };
        database.remember("a", remembered);
        database.flush();
        drop(database);
        let database = Database::open(&path, 3, &mut problems);
        let generations: Vec<u64> =
            database.crashes(Some("a".into()), 10).unwrap().iter().map(|c| c.generation).collect();
        assert_eq!(generations, [5, 4, 3]);
        assert_eq!(database.crashes(None, 10).unwrap().len(), 4);
        assert_eq!(database.remembered("a"), Some(remembered));
        assert_eq!(database.remembered("c"), None);
        database.flush();
        drop(database);
        assert_eq!(problems, Vec::<String>::new());
        std::fs::write(&path, vec![0x55; 8192]).unwrap();
        let database = Database::open(&path, 3, &mut problems);
        assert!(database.damaged()[0].contains("starts empty"), "{problems:?}");
        assert_eq!(database.crashes(None, 10).unwrap(), []);
        // What the operator wanted is known all the same.
        assert_eq!(database.remembered("a").map(|known| known.wanted), Some(Wanted::Disabled));
    }

    #[test]
    fn a_locked_file_is_no_damaged_one_and_is_written_once_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stockade.db");
        let mut problems = Vec::new();
        let database = Database::open(&path, 3, &mut problems);
        let disabled = Remembered { wanted: Wanted::Disabled, generation: 4 };
        database.remember("x", disabled);
        database.flush();
        drop(database);
        let holder = Connection::open(&path).unwrap();
        holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE;").unwrap();
        let database = Database::open(&path, 3, &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        assert!(database.problem().unwrap().contains("stockade.db cannot be opened"));
        assert_eq!(database.remembered("x").map(|known| known.wanted), Some(Wanted::Disabled));
        database.record_crash(CrashRecord { plugin: "x".into(), ..Default::default() });
        let files = std::fs::read_dir(folder.path()).unwrap();
        let aside =
            files.flatten().any(|file| file.file_name().to_string_lossy().contains("corrupt"));
        assert!(!aside, "nothing was renamed");
        drop(holder);
        let begun = Instant::now();
        while database.problem().is_some()
            || database.crashes(None, 10).is_none_or(|all| all.is_empty())
        {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", database.problem());
            std::thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(database.remembered("x"), Some(disabled));
    }
}
