//! Crash records and what operators want, in SQLite. One thread writes; a
//! write is never waited for on the path of a call or a restart.
//!
//! A file that cannot be opened now (locked, on a full disk) is no damaged file: it is
//! tried again until it opens, and what is to be written waits. What operators want is
//! besides kept in a small text file, so that it is known without the database.

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, SyncSender},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, OptionalExtension as _, params};
use tokio::sync::watch;

use super::{
    crash::CrashRecord,
    made::Made,
    note,
    wishes::Wishes,
    writer::{HELD, Job, Query, Shared, Writer},
};
use crate::{capacity::limits, lifecycle::Wanted};

/// What is remembered of a plugin between two lives of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// What the operator wants.
    pub wanted: Wanted,
    /// Its last process.
    pub generation: u64,
}

/// What operators wanted of these plugins, and nobody knew before.
pub type Recovered = Vec<(String, Wanted)>;

/// Handle of the writer thread.
#[derive(Debug)]
pub struct Database {
    jobs: Option<SyncSender<Job>>,
    writer: Option<std::thread::JoinHandle<()>>,
    shared: Arc<Shared>,
    damaged: Arc<Mutex<Vec<String>>>,
}

/// A disk that does not answer is waited for this long by whoever asks.
const ANSWER: Duration = Duration::from_secs(5);
/// One that takes longer for what is asked of it is told.
const HANGS: Duration = Duration::from_secs(3);
/// Questions that may wait.
const QUESTIONS: usize = 256;

impl Database {
    pub(super) fn open(
        path: &Path,
        keep: usize,
        made: Arc<Made>,
        problems: &mut Vec<String>,
    ) -> Self {
        let is_first = !path.exists() && !made.has(path);
        let (wishes, problem) = Wishes::read(&path.with_file_name("wanted"), is_first);
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
            said: Mutex::default(),
            noted: watch::Sender::new(0),
            recovered: watch::Sender::default(),
        });
        let (jobs, inbox) = mpsc::sync_channel::<Job>(QUESTIONS);
        let damaged: Arc<Mutex<Vec<String>>> = Arc::default();
        let mut writer = Writer {
            shared: shared.clone(),
            connection: None,
            tried: Instant::now(),
            held: None,
            file: None,
            log: None,
            made,
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
        let shared = self.shared.clone();
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
            // Those that could not be written yet are the newest.
            let waiting = shared.waiting().crashes.clone();
            let of_it = |record: &CrashRecord| plugin.as_ref().is_none_or(|p| *p == record.plugin);
            let (mut page, mut bytes) = (Vec::new(), 0);
            for record in waiting.into_iter().rev().filter(of_it).take(limit) {
                bytes += serde_json::to_vec(&record).map_or(0, |json| json.len());
                if bytes > limits::PAGE_BYTES && !page.is_empty() {
                    return Ok(page);
                }
                page.push(record);
            }
            let rest = limit - page.len();
            for row in rows.take(rest) {
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

    /// An operator has enabled a plugin, or started it: what was wanted before, if that is
    /// still unknown, does not hold any more. Never waits.
    pub fn said(&self, plugin: &str, remembered: Remembered, enabled: bool) {
        if self.shared.wishes.are_unknown() {
            let mut said = self.shared.said();
            let known = said.entry(plugin.to_owned()).or_default();
            *known |= enabled;
            drop(said);
            self.remember(plugin, remembered);
        }
    }

    /// Plugins that run although they were not to, as the file tells now that it can be
    /// read.
    pub fn recovered(&self) -> watch::Receiver<Recovered> {
        self.shared.recovered.subscribe()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, problems: &mut Vec<String>) -> Database {
        let made = Arc::new(Made::read(path.parent().unwrap()));
        Database::open(path, 3, made, problems)
    }

    #[test]
    fn records_survive_are_bounded_and_a_damaged_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stockade.db");
        let mut problems = Vec::new();
        let database = open(&path, &mut problems);
        for n in 1..=5 {
            let record = CrashRecord { plugin: "a".into(), generation: n, ..Default::default() };
            database.record_crash(record);
        }
        database.record_crash(CrashRecord { plugin: "b".into(), ..Default::default() });
        let remembered = Remembered { wanted: Wanted::Disabled, generation: 9 };
        database.remember("a", remembered);
        database.flush();
        drop(database);
        let database = open(&path, &mut problems);
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
        let database = open(&path, &mut problems);
        assert!(database.damaged()[0].contains("starts empty"), "{problems:?}");
        assert_eq!(database.crashes(None, 10).unwrap(), []);
        // What the operator wanted is known all the same.
        assert_eq!(database.remembered("a").map(|known| known.wanted), Some(Wanted::Disabled));
    }

    #[test]
    fn what_an_operator_says_while_nothing_is_known_holds() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stockade.db");
        let database = open(&path, &mut Vec::new());
        let wishes = [
            ("enabled", Wanted::Disabled),
            ("started", Wanted::Stopped),
            ("restarted", Wanted::Disabled),
            ("rested", Wanted::Disabled),
        ];
        for (name, wanted) in wishes {
            database.remember(name, Remembered { wanted, generation: 1 });
        }
        database.flush();
        drop(database);
        std::fs::remove_file(folder.path().join("wanted")).unwrap();
        let holder = Connection::open(&path).unwrap();
        holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE;").unwrap();
        let database = open(&path, &mut Vec::new());
        let mut recovered = database.recovered();
        let runs = Remembered { wanted: Wanted::Run, generation: 2 };
        wishes.iter().for_each(|(name, _)| database.remember(name, runs));
        database.said("enabled", runs, true);
        database.said("started", runs, false);
        database.said("restarted", runs, false);
        drop(holder);
        let begun = Instant::now();
        while recovered.borrow_and_update().is_empty() {
            assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", database.problem());
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut names: Vec<String> =
            recovered.borrow().iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        assert_eq!(names, ["restarted", "rested"]);
        database.flush();
        let wanted = |name| database.remembered(name).unwrap().wanted;
        assert_eq!((wanted("enabled"), wanted("started")), (Wanted::Run, Wanted::Run));
        assert_eq!(wanted("restarted"), Wanted::Disabled);
    }

    #[test]
    fn a_database_of_somebody_else_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stockade.db");
        let foreign = Connection::open(&path).unwrap();
        foreign.execute_batch("CREATE TABLE plugin (id INTEGER); CREATE TABLE x (y);").unwrap();
        drop(foreign);
        let database = open(&path, &mut Vec::new());
        let damaged = database.damaged();
        assert!(
            damaged.iter().any(|one| one.contains("not ours")),
            "{damaged:?} {:?}",
            database.problem()
        );
        let disabled = Remembered { wanted: Wanted::Disabled, generation: 1 };
        database.remember("a", disabled);
        database.flush();
        assert_eq!(database.remembered("a"), Some(disabled));
        let wanted = std::fs::read_to_string(folder.path().join("wanted")).unwrap();
        assert!(wanted.contains("disabled a"), "{wanted}");
    }

    #[test]
    fn a_locked_file_is_no_damaged_one_and_is_written_once_it_is_free() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stockade.db");
        let mut problems = Vec::new();
        let database = open(&path, &mut problems);
        let disabled = Remembered { wanted: Wanted::Disabled, generation: 4 };
        database.remember("x", disabled);
        database.flush();
        drop(database);
        let holder = Connection::open(&path).unwrap();
        holder.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE;").unwrap();
        let database = open(&path, &mut problems);
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
