//! The one thread that writes. Changes that wait together become one commit;
//! each is answered when that commit is on the disk.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    DataError, Workspaces, kv, open_or_put_aside,
    provenance::Pruner,
    queue::{Queue, Untaken},
    usage::Ledger,
};
use crate::{
    capacity::limits,
    store::{advice, identity, log_of, log_path, made::Made, place},
};

/// Changes of one commit, and how long they may have taken before one more is made.
const TOGETHER: usize = 256;
const LONGEST: Duration = Duration::from_millis(20);
/// Between two tries of a file that cannot be opened.
const AGAIN: Duration = Duration::from_secs(1);
/// Between looks for what has expired.
const SWEEP: Duration = Duration::from_secs(30);
/// Between the parts of one that has much to delete.
const PAUSE: Duration = Duration::from_millis(50);

/// Where a change is made: inside the transaction.
pub(super) struct Change<'c> {
    /// The writer's connection.
    pub(super) connection: &'c Connection,
    /// What each plugin has stored.
    pub(super) ledger: &'c mut Ledger,
    /// Bounds the records of who changed what.
    pub(super) pruner: &'c mut Pruner,
    after: &'c mut Vec<AfterCommit>,
}

/// What is kept in memory follows the file.
type AfterCommit = Box<dyn FnOnce() + Send>;

impl Change<'_> {
    /// Runs once the change is on the disk, in the order of the changes.
    pub(super) fn after_commit(&mut self, run: impl FnOnce() + Send + 'static) {
        self.after.push(Box::new(run));
    }
}

/// Tells what came of a change once its commit has succeeded or failed.
type Answer = Box<dyn FnOnce(Result<(), DataError>) + Send>;
/// Makes the change, or hears why no transaction could be begun.
type Job = Box<dyn FnOnce(Result<&mut Change<'_>, DataError>) -> Answer + Send>;

/// Handle of the thread.
#[derive(Debug)]
pub(super) struct Writer {
    jobs: Arc<Queue<Job>>,
    thread: Option<std::thread::JoinHandle<()>>,
    problem: Arc<Mutex<Option<String>>>,
    /// Why the file is not open.
    closed: Arc<Mutex<Option<String>>>,
}

impl Writer {
    pub(super) fn start(
        path: PathBuf,
        opened: rusqlite::Result<Connection>,
        keep: usize,
        workspaces: Arc<Workspaces>,
        made: Arc<Made>,
    ) -> Self {
        let jobs: Arc<Queue<Job>> = Arc::default();
        let inbox = jobs.clone();
        let problem: Arc<Mutex<Option<String>>> = Arc::default();
        let closed: Arc<Mutex<Option<String>>> = Arc::default();
        let opening = Opening { path, closed: closed.clone(), workspaces, made };
        let connection = opened.map_err(|error| opening.tell(&error)).ok();
        let told = problem.clone();
        let thread = std::thread::Builder::new().name("data".into()).spawn(move || {
            let _ended = Ended(inbox.clone());
            let Some(connection) = connection.or_else(|| opening.wait(&inbox)) else { return };
            let (path, file) = (opening.path.clone(), identity(&opening.path));
            let pruner = Pruner::new(&connection, keep);
            let (ledger, swept) = (Ledger::default(), Instant::now());
            let log = log_of(&connection, &path);
            Thread { connection, path, file, log, ledger, pruner, problem: told, swept }
                .run(&inbox);
        });
        let thread = thread.map_err(|error| tracing::error!("no thread for data.db: {error}")).ok();
        Writer { jobs, thread, problem, closed }
    }

    /// Why the file is not open.
    pub(super) fn closed(&self) -> Option<String> {
        self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn problem(&self) -> Option<String> {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let closed = || self.closed().map(|why| format!("plugins cannot store anything: {why}"));
        problem.or_else(closed)
    }

    /// In the turn of its author.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        author: &Arc<str>,
        work: impl FnOnce(&mut Change<'_>) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        let ended = || DataError::Broken("the writing thread has ended".to_owned());
        self.ask(author, work)?.await.map_err(|_| ended())?
    }

    /// The same for a thread that may wait.
    pub(super) fn write_here<T: Send + 'static>(
        &self,
        author: &Arc<str>,
        work: impl FnOnce(&mut Change<'_>) -> Result<T, DataError> + Send + 'static,
    ) -> Result<T, DataError> {
        let ended = || DataError::Broken("the writing thread has ended".to_owned());
        self.ask(author, work)?.blocking_recv().map_err(|_| ended())?
    }

    fn ask<T: Send + 'static>(
        &self,
        author: &Arc<str>,
        work: impl FnOnce(&mut Change<'_>) -> Result<T, DataError> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, DataError>>, DataError> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |change| {
            // Nobody hears of it, so that nobody can have acknowledged it.
            if reply.is_closed() {
                return Box::new(|_| ());
            }
            let result = change.and_then(|change| savepoint(change, work));
            Box::new(move |committed| {
                let _ = reply.send(result.and_then(|value| committed.map(|()| value)));
            })
        });
        if let Some(why) = self.closed() {
            return Err(DataError::Broken(why));
        }
        let ended = || DataError::Broken("the writing thread has ended".to_owned());
        if self.thread.as_ref().is_none_or(|thread| thread.is_finished()) {
            return Err(ended());
        }
        match self.jobs.push(author, job) {
            true => Ok(answer),
            false => Err(DataError::Busy),
        }
    }
}

/// Nobody waits for a thread that has ended, however it has.
struct Ended(Arc<Queue<Job>>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
        while self.0.take().is_some() {}
    }
}

/// Everything that was taken is committed before the file is closed.
impl Drop for Writer {
    fn drop(&mut self) {
        self.jobs.end();
        if let Some(thread) = self.thread.take() {
            crate::store::join_within(thread, limits::FLUSH);
        }
    }
}

/// A file that does not open yet.
struct Opening {
    path: PathBuf,
    closed: Arc<Mutex<Option<String>>>,
    workspaces: Arc<Workspaces>,
    made: Arc<Made>,
}

impl Opening {
    fn tell(&self, error: &rusqlite::Error) {
        let text = format!(
            "{} cannot be opened: {error}; it is tried again each second. {}",
            self.path.display(),
            advice(error)
        );
        self.workspaces.close(&text);
        let mut closed = self.closed.lock().unwrap_or_else(PoisonError::into_inner);
        if closed.as_ref() != Some(&text) {
            tracing::error!("plugins cannot store anything: {text}");
        }
        *closed = Some(text);
    }

    /// Tries again until it opens; None when the daemon ends before.
    fn wait(&self, inbox: &Queue<Job>) -> Option<Connection> {
        loop {
            match inbox.wait(AGAIN) {
                Ok(job) => {
                    let why = self.closed.lock().unwrap_or_else(PoisonError::into_inner).clone();
                    let error = DataError::Broken(why.unwrap_or_default());
                    job(Err(error.clone()))(Err(error));
                    continue;
                }
                Err(Untaken::Nothing) => {}
                Err(Untaken::Over) => return None,
            }
            let mut told = Vec::new();
            match open_or_put_aside(&self.path, &self.workspaces, &self.made, &mut told) {
                Ok(connection) => {
                    tracing::info!("{} is open", self.path.display());
                    *self.closed.lock().unwrap_or_else(PoisonError::into_inner) = None;
                    return Some(connection);
                }
                Err(error) => self.tell(&error),
            }
        }
    }
}

/// A change that fails leaves nothing of itself behind.
fn savepoint<T>(
    change: &mut Change<'_>,
    work: impl FnOnce(&mut Change<'_>) -> Result<T, DataError>,
) -> Result<T, DataError> {
    let run = |sql: &str| change.connection.prepare_cached(sql)?.execute([]).map(drop);
    run("SAVEPOINT one")?;
    change.ledger.begin();
    let before = change.after.len();
    let result = work(change);
    let run = |sql: &str| change.connection.prepare_cached(sql)?.execute([]).map(drop);
    if result.is_err() {
        change.after.truncate(before);
        change.ledger.undo();
        run("ROLLBACK TO one")?;
    }
    run("RELEASE one")?;
    result
}

struct Thread {
    connection: Connection,
    path: PathBuf,
    file: Option<(u64, u64)>,
    /// Where commits are, until they are moved into the file: the same as long as it is open.
    log: Option<(u64, u64)>,
    ledger: Ledger,
    pruner: Pruner,
    problem: Arc<Mutex<Option<String>>>,
    swept: Instant,
}

impl Thread {
    fn run(&mut self, inbox: &Queue<Job>) {
        let mut has_more = false;
        loop {
            let patience = if has_more { PAUSE } else { SWEEP };
            let first = match inbox.wait(patience) {
                Ok(job) => Some(job),
                Err(Untaken::Nothing) => None,
                Err(Untaken::Over) => return,
            };
            if let Some(first) = first {
                self.commit(first, inbox);
            }
            if self.swept.elapsed() >= patience {
                self.swept = Instant::now();
                let swept = kv::sweep(&self.connection).inspect_err(|error| {
                    tracing::debug!("expired keys stay for now: {error}");
                });
                let swept = swept.unwrap_or(0);
                has_more = swept == kv::AT_ONCE;
                if swept > 0 {
                    self.ledger.doubt();
                }
            }
        }
    }

    fn commit(&mut self, first: Job, inbox: &Queue<Job>) {
        let since = Instant::now();
        let begun = || self.execute("BEGIN IMMEDIATE").map_err(DataError::from);
        let mut begun = self.is_in_place().and_then(|()| begun());
        let mut answers: Vec<Answer> = Vec::new();
        let mut after = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            let mut change = Change {
                connection: &self.connection,
                ledger: &mut self.ledger,
                pruner: &mut self.pruner,
                after: &mut after,
            };
            // A defect costs those that are committed together, not the thread.
            let done = catch_unwind(AssertUnwindSafe(|| job(begun.clone().map(|()| &mut change))));
            match done {
                Ok(answer) => answers.push(answer),
                Err(_) => {
                    begun = Err(DataError::Broken("a change met a defect of the store".to_owned()));
                    break;
                }
            }
            if begun.is_ok() && answers.len() < TOGETHER && since.elapsed() < LONGEST {
                next = inbox.take();
            }
        }
        let committed = begun.and_then(|()| self.execute("COMMIT").map_err(DataError::from));
        // Meanwhile it may have gone.
        let committed = committed.and_then(|()| self.is_in_place());
        if committed.is_err() {
            self.ledger.forget();
            let _ = self.execute("ROLLBACK");
        } else {
            after.into_iter().for_each(|run| run());
        }
        self.tell(&committed);
        for answer in answers {
            answer(committed.clone());
        }
    }

    /// What is written into a file that was removed is lost, and SQLite does not say so.
    fn is_in_place(&self) -> Result<(), DataError> {
        let log = log_path(&self.path);
        let lost = match self.file.is_some() && identity(&self.path) == self.file {
            false => &self.path,
            true if self.log.is_some() && place(&log) != self.log => &log,
            true => return Ok(()),
        };
        Err(DataError::Broken(format!(
            "{} was removed, emptied or replaced while the daemon runs, and nothing is stored. \
             Put it back, or restart the daemon.",
            lost.display()
        )))
    }

    fn execute(&self, sql: &str) -> rusqlite::Result<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    fn tell(&self, committed: &Result<(), DataError>) {
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        let text = committed.as_ref().err().map(|error| format!("plugins' data: {error}"));
        if text.is_some() && *problem != text {
            tracing::error!("{}", text.as_deref().unwrap_or_default());
        }
        *problem = text;
    }
}
