//! Crash records and what operators want, in SQLite. One thread writes; a
//! write is never waited for on the path of a call or a restart.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{crash::CrashRecord, put_aside};
use crate::lifecycle::Wanted;

/// What is remembered of a plugin between two lives of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remembered {
    /// What the operator wants.
    pub wanted: Wanted,
    /// Its last process.
    pub generation: u64,
}

type Job = Box<dyn FnOnce(&Connection) + Send>;

/// Handle of the writer thread and a connection for reading.
#[derive(Debug)]
pub struct Database {
    jobs: Option<mpsc::Sender<Job>>,
    writer: Option<std::thread::JoinHandle<()>>,
    path: PathBuf,
    keep: usize,
    problem: Arc<Mutex<Option<String>>>,
}

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

impl Database {
    pub(super) fn open(path: &Path, keep: usize, problems: &mut Vec<String>) -> Self {
        let connection = open(path).or_else(|error| {
            let kept = put_aside(path);
            for suffix in ["-wal", "-shm"] {
                let mut side = path.as_os_str().to_owned();
                side.push(suffix);
                let _ = std::fs::remove_file(PathBuf::from(side));
            }
            problems.push(format!("the database was damaged ({error}) and starts empty; {kept}"));
            open(path)
        });
        let connection = connection.or_else(|error| {
            problems.push(format!(
                "crash records cannot be kept in {}: {error}; they last until the daemon ends",
                path.display()
            ));
            let memory = Connection::open_in_memory()?;
            memory.execute_batch(SCHEMA)?;
            Ok::<_, rusqlite::Error>(memory)
        });
        let (jobs, inbox) = mpsc::channel::<Job>();
        let writer = std::thread::Builder::new().name("store".into()).spawn(move || {
            let Ok(connection) = connection else { return };
            for job in inbox {
                job(&connection);
            }
        });
        let writer = writer
            .map_err(|error| {
                problems.push(format!("the store thread could not be started: {error}"));
            })
            .ok();
        Database { jobs: Some(jobs), writer, path: path.to_owned(), keep, problem: Arc::default() }
    }

    /// The last write that failed, if the one after it has not succeeded.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn write(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<()> + Send + 'static) {
        let problem = self.problem.clone();
        let path = self.path.clone();
        let job: Job = Box::new(move |connection| {
            let result = work(connection);
            let mut problem = problem.lock().unwrap_or_else(PoisonError::into_inner);
            *problem = result.err().map(|error| {
                let text =
                    format!("cannot write {}: {error}; free space on its disk", path.display());
                if problem.as_ref() != Some(&text) {
                    tracing::error!("{text}");
                }
                text
            });
        });
        self.send(job);
    }

    fn send(&self, job: Job) -> Option<()> {
        self.jobs.as_ref()?.send(job).ok()
    }

    /// Runs a query on the writer's connection, after everything written before.
    fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = mpsc::channel();
        let job: Job = Box::new(move |connection| {
            let result = query(connection);
            if let Err(error) = &result {
                tracing::error!("cannot read the database: {error}");
            }
            let _ = reply.send(result.ok());
        });
        self.send(job)?;
        answer.recv().ok().flatten()
    }

    /// Keeps a record; the oldest ones of the plugin go.
    pub fn record_crash(&self, record: CrashRecord) {
        let keep = self.keep as i64;
        self.write(move |connection| {
            let json = serde_json::to_string(&record).unwrap_or_default();
            let mut insert = connection.prepare_cached(
                "INSERT INTO crash (plugin, time, cause, record) VALUES (?1, ?2, ?3, ?4)",
            )?;
            insert.execute(params![record.plugin, record.time, record.cause, json])?;
            let mut prune = connection.prepare_cached(
                "DELETE FROM crash WHERE plugin = ?1 AND id <= \
                 (SELECT id FROM crash WHERE plugin = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
            )?;
            prune.execute(params![record.plugin, keep])?;
            Ok(())
        });
    }

    /// Records of one plugin (or all), newest first. Blocks on the store.
    pub fn crashes(&self, plugin: Option<String>, limit: usize) -> Vec<CrashRecord> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT id, record FROM crash WHERE ?1 IS NULL OR plugin = ?1 \
                 ORDER BY id DESC LIMIT ?2",
            )?;
            let rows = query.query_map(params![plugin, limit as i64], |row| {
                let id: i64 = row.get(0)?;
                let json: String = row.get(1)?;
                let mut record: CrashRecord = serde_json::from_str(&json).unwrap_or_default();
                record.id = id as u64;
                Ok(record)
            })?;
            rows.collect()
        })
        .unwrap_or_default()
    }

    /// What is known of a plugin from before. Blocks on the store.
    pub fn remembered(&self, plugin: &str) -> Option<Remembered> {
        let plugin = plugin.to_owned();
        self.read(move |connection| {
            let mut query = connection
                .prepare_cached("SELECT wanted, generation FROM plugin WHERE name = ?1")?;
            query
                .query_row(params![plugin], |row| {
                    let wanted: String = row.get(0)?;
                    let generation: i64 = row.get(1)?;
                    let wanted = match wanted.as_str() {
                        "stopped" => Wanted::Stopped,
                        "disabled" => Wanted::Disabled,
                        _ => Wanted::Run,
                    };
                    Ok(Remembered { wanted, generation: generation as u64 })
                })
                .optional()
        })
        .flatten()
    }

    /// Remembers a plugin.
    pub fn remember(&self, plugin: &str, remembered: Remembered) {
        let plugin = plugin.to_owned();
        let wanted = match remembered.wanted {
            Wanted::Stopped => "stopped",
            Wanted::Disabled => "disabled",
            Wanted::Run | Wanted::Removed => "run",
        };
        self.write(move |connection| {
            let mut upsert = connection.prepare_cached(
                "INSERT INTO plugin (name, wanted, generation) VALUES (?1, ?2, ?3) \
                 ON CONFLICT (name) DO UPDATE SET wanted = ?2, generation = ?3",
            )?;
            upsert.execute(params![plugin, wanted, remembered.generation as i64]).map(drop)
        });
    }

    /// Returns when everything written before is in the file.
    pub fn flush(&self) {
        self.read(|_| Ok(()));
    }
}

/// Closes the file: everything written before is in it.
impl Drop for Database {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.execute_batch(SCHEMA)?;
    let verdict: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(rusqlite::Error::InvalidPath(format!("quick_check: {verdict}").into()));
    }
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
            database.crashes(Some("a".into()), 10).iter().map(|c| c.generation).collect();
        assert_eq!(generations, [5, 4, 3]);
        assert_eq!(database.crashes(None, 10).len(), 4);
        assert_eq!(database.remembered("a"), Some(remembered));
        assert_eq!(database.remembered("c"), None);
        database.flush();
        drop(database);
        assert_eq!(problems, Vec::<String>::new());
        std::fs::write(&path, vec![0x55; 8192]).unwrap();
        let database = Database::open(&path, 3, &mut problems);
        assert!(problems[0].contains("damaged"), "{problems:?}");
        assert_eq!(database.crashes(None, 10), []);
    }
}
