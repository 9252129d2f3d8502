//! A few threads for work whose size outsiders choose: JSON, schemas, base64,
//! documents, SQLite. Each plugin (or other lane) gets its turn, none gets all
//! threads, and what does not fit is refused.

use std::{
    collections::{HashMap, VecDeque},
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stockade_proto::limits;
use tokio::sync::oneshot;

/// Stack of a thread: a schema may lead deep.
const STACK: usize = 64 << 20;
/// The crew makes room for whoever answers small requests.
const NICE: i32 = 5;

/// This thread comes after others: it is given at least this niceness.
pub fn give_way(nice: i32) {
    use rustix::process::{getpriority_process, setpriority_process};
    let own = Some(rustix::thread::gettid());
    if getpriority_process(own).is_ok_and(|now| now < nice) {
        let _ = setpriority_process(own, nice);
    }
}

/// Why a job was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the daemon has more work of this kind than it can do now; try again")]
pub struct Overloaded;

impl Overloaded {
    /// When to try again.
    pub const RETRY: Duration = Duration::from_secs(1);
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Lane {
    jobs: VecDeque<Job>,
    running: usize,
}

#[derive(Default)]
struct State {
    lanes: HashMap<Arc<str>, Lane>,
    /// Lanes that have jobs, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    waiting: usize,
    over: bool,
}

struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    /// Threads that one lane may have.
    of_one: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job whose lane may run one more; None when the crew is over.
    fn next(&self) -> Option<(Arc<str>, Job)> {
        let mut state = self.lock();
        loop {
            if state.over {
                return None;
            }
            for _ in 0..state.turns.len() {
                let Some(name) = state.turns.pop_front() else { break };
                let of_one = self.of_one;
                let Some(lane) = state.lanes.get_mut(&name) else { continue };
                if lane.running >= of_one {
                    state.turns.push_back(name);
                    continue;
                }
                let Some(job) = lane.jobs.pop_front() else { continue };
                lane.running += 1;
                let more = !lane.jobs.is_empty();
                state.waiting -= 1;
                if more {
                    state.turns.push_back(name.clone());
                }
                return Some((name, job));
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn done(&self, name: &Arc<str>) {
        let mut state = self.lock();
        let Some(lane) = state.lanes.get_mut(name) else { return };
        lane.running -= 1;
        if lane.jobs.is_empty() && lane.running == 0 {
            state.lanes.remove(name);
        }
        drop(state);
        // A job of this lane may have waited for it.
        self.filled.notify_one();
    }
}

/// Ends the threads with the last handle.
struct Handle(Arc<Shared>);

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.filled.notify_all();
    }
}

/// Handle of the threads. Cheap to clone.
#[derive(Clone)]
pub struct Crew(Arc<Handle>);

impl std::fmt::Debug for Crew {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Crew")
    }
}

impl Crew {
    /// Threads for computing: as many as processors, two at least.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn computing() -> io::Result<Self> {
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        Self::start("crew", processors.clamp(2, 8))
    }

    /// Threads for reading files, which the kernel may hold up.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn reading() -> io::Result<Self> {
        Self::start("reader", 8)
    }

    fn start(name: &str, threads: usize) -> io::Result<Self> {
        let of_one = (threads / 2).max(1);
        let shared = Arc::new(Shared { state: Mutex::default(), filled: Condvar::new(), of_one });
        for _ in 0..threads {
            let shared = shared.clone();
            std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(move || {
                give_way(NICE);
                while let Some((lane, job)) = shared.next() {
                    let _ = std::panic::catch_unwind(AssertUnwindSafe(job));
                    shared.done(&lane);
                }
            })?;
        }
        Ok(Crew(Arc::new(Handle(shared))))
    }

    /// Has a job done in the turn of `lane`. A job whose answer nobody waits for any
    /// more is not begun.
    ///
    /// # Errors
    /// Too many wait.
    pub async fn run<T: Send + 'static>(
        &self,
        lane: &Arc<str>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let (reply, answer) = oneshot::channel();
        self.push(
            lane,
            Box::new(move || {
                if !reply.is_closed() {
                    let _ = reply.send(job());
                }
            }),
        )?;
        answer.await.map_err(|_| Overloaded)
    }

    fn push(&self, lane: &Arc<str>, job: Job) -> Result<(), Overloaded> {
        let shared = &self.0.0;
        let mut state = shared.lock();
        if state.waiting >= limits::CREW_QUEUE {
            return Err(Overloaded);
        }
        let own = state.lanes.entry(lane.clone()).or_default();
        if own.jobs.len() >= limits::CREW_SHARE {
            return Err(Overloaded);
        }
        own.jobs.push_back(job);
        let first = own.jobs.len() == 1;
        state.waiting += 1;
        if first {
            state.turns.push_back(lane.clone());
        }
        drop(state);
        shared.filled.notify_one();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
    }

    #[test]
    fn a_lane_that_is_stuck_holds_up_no_other_and_its_queue_is_bounded() {
        let crew = Crew::start("test", 2).unwrap();
        let (stuck, other): (Arc<str>, Arc<str>) = ("stuck".into(), "other".into());
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let hold = move || {
            let _ = begin.send(());
            let _ = held.recv();
        };
        crew.push(&stuck, Box::new(hold)).unwrap();
        begun.recv().unwrap();
        while crew.push(&stuck, Box::new(|| {})).is_ok() {}
        assert_eq!(block_on(crew.run(&other, || 7)), Ok(7));
        assert_eq!(block_on(crew.run(&stuck, || 7)), Err(Overloaded));
        drop(release);
        assert_eq!(block_on(crew.run(&other, || 8)), Ok(8));
    }

    #[test]
    fn a_job_that_panics_is_one_job() {
        let crew = Crew::start("test", 1).unwrap();
        let lane: Arc<str> = "x".into();
        // As a panic, but without its message on the terminal.
        let outcome = block_on(
            crew.run(&lane, || -> u32 { std::panic::resume_unwind(Box::new("expected")) }),
        );
        assert_eq!(outcome, Err(Overloaded));
        assert_eq!(block_on(crew.run(&lane, || 1)), Ok(1));
    }
}
