//! A few threads for work whose size outsiders choose: JSON, schemas, base64,
//! documents, SQLite. Each plugin and each client gets its turn, no one gets all
//! threads nor do all clients together, and what does not fit is refused. Clients' brief
//! jobs have as much time as all their long ones: however many of those wait, a brief one
//! waits for one of them. Operators have the same, apart from the clients.

use std::{
    collections::{HashMap, VecDeque},
    io,
    panic::AssertUnwindSafe,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
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

/// In whose turn a job is done.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lane {
    /// Of a plugin.
    Plugin(Arc<str>),
    /// Of one client. There may be any number of them, so that they come in turn with
    /// the plugins as if they were one.
    Client(Arc<str>),
    /// Of one client, for what takes little time.
    BriefClient(Arc<str>),
    /// Of one who has the daemon's socket or an admin token.
    Operator(Arc<str>),
    /// The same, for what takes little time.
    BriefOperator(Arc<str>),
}

impl Lane {
    /// The same one's, for work on so many bytes.
    #[must_use]
    pub fn for_bytes(self, bytes: usize) -> Self {
        match self {
            Lane::Client(name) if bytes <= limits::BRIEF => Lane::BriefClient(name),
            Lane::Operator(name) if bytes <= limits::BRIEF => Lane::BriefOperator(name),
            lane => lane,
        }
    }

    fn kind(&self) -> Kind {
        match self {
            Lane::Plugin(_) => Kind::Plugins,
            Lane::Client(_) => Kind::Clients,
            Lane::BriefClient(_) => Kind::BriefClients,
            Lane::Operator(_) => Kind::Operators,
            Lane::BriefOperator(_) => Kind::BriefOperators,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plugins,
    Clients,
    BriefClients,
    Operators,
    BriefOperators,
}

impl Kind {
    /// The other jobs of the same ones.
    fn other(self) -> Self {
        match self {
            Kind::Plugins => Kind::Plugins,
            Kind::Clients => Kind::BriefClients,
            Kind::BriefClients => Kind::Clients,
            Kind::Operators => Kind::BriefOperators,
            Kind::BriefOperators => Kind::Operators,
        }
    }
}

impl From<&Arc<str>> for Lane {
    fn from(plugin: &Arc<str>) -> Self {
        Lane::Plugin(plugin.clone())
    }
}

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    /// With whether it counts as one that waits.
    jobs: VecDeque<(Job, bool)>,
    /// Jobs that wait, of those that count.
    waiting: usize,
    running: usize,
}

/// What waits and runs of one kind.
#[derive(Default)]
struct Side {
    /// Lanes that have jobs, in the order of their turns.
    turns: VecDeque<Lane>,
    /// Jobs that wait, of those that count.
    waiting: usize,
    /// Jobs that run.
    running: usize,
    /// How long its jobs have taken; of a side that had none as long as the other one's.
    spent: Duration,
}

#[derive(Default)]
struct State {
    lanes: HashMap<Lane, Queue>,
    plugins: Side,
    clients: Side,
    brief_clients: Side,
    operators: Side,
    brief_operators: Side,
    /// Whose the last job was.
    last: Option<Kind>,
    over: bool,
}

impl State {
    fn side(&mut self, kind: Kind) -> &mut Side {
        match kind {
            Kind::Plugins => &mut self.plugins,
            Kind::Clients => &mut self.clients,
            Kind::BriefClients => &mut self.brief_clients,
            Kind::Operators => &mut self.operators,
            Kind::BriefOperators => &mut self.brief_operators,
        }
    }

    fn push(&mut self, lane: Lane, is_bounded: bool, job: Job) -> Result<(), Overloaded> {
        let kind = lane.kind();
        let others = self.side(kind.other()).spent;
        let side = self.side(kind);
        if is_bounded && side.waiting >= limits::CREW_QUEUE {
            return Err(Overloaded);
        }
        if side.waiting + side.running == 0 {
            side.spent = side.spent.max(others);
        }
        let own = self.lanes.entry(lane.clone()).or_default();
        if is_bounded && own.waiting >= limits::CREW_SHARE {
            return Err(Overloaded);
        }
        own.jobs.push_back((job, is_bounded));
        own.waiting += usize::from(is_bounded);
        let is_first = own.jobs.len() == 1;
        let side = self.side(kind);
        side.waiting += usize::from(is_bounded);
        if is_first {
            side.turns.push_back(lane);
        }
        Ok(())
    }

    /// The next job; `of_one` is how many one lane, all clients together, and all operators
    /// together may have running.
    fn next(&mut self, of_one: usize) -> Option<(Lane, Job)> {
        use Kind::{BriefClients, BriefOperators, Clients, Operators, Plugins};
        let turns = match self.last {
            None | Some(Clients | BriefClients) => [Plugins, Operators, Clients],
            Some(Plugins) => [Operators, Clients, Plugins],
            Some(Operators | BriefOperators) => [Clients, Plugins, Operators],
        };
        turns.into_iter().find_map(|kind| match kind {
            Plugins => self.next_of(kind, of_one),
            _ => self.next_of_both(kind, of_one),
        })
    }

    /// Of the brief jobs and the long ones of all clients, or all operators.
    fn next_of_both(&mut self, long: Kind, of_one: usize) -> Option<(Lane, Job)> {
        let (long_running, long_spent) = (self.side(long).running, self.side(long).spent);
        let brief = self.side(long.other());
        if long_running + brief.running >= of_one {
            return None;
        }
        let first = if brief.spent <= long_spent { long.other() } else { long };
        self.next_of(first, of_one).or_else(|| self.next_of(first.other(), of_one))
    }

    fn next_of(&mut self, kind: Kind, of_one: usize) -> Option<(Lane, Job)> {
        for _ in 0..self.side(kind).turns.len() {
            let lane = self.side(kind).turns.pop_front()?;
            let Some(queue) = self.lanes.get_mut(&lane) else { continue };
            if queue.running >= of_one {
                self.side(kind).turns.push_back(lane);
                continue;
            }
            let Some((job, is_bounded)) = queue.jobs.pop_front() else { continue };
            queue.waiting -= usize::from(is_bounded);
            queue.running += 1;
            let has_more = !queue.jobs.is_empty();
            let side = self.side(kind);
            if has_more {
                side.turns.push_back(lane.clone());
            }
            side.running += 1;
            side.waiting -= usize::from(is_bounded);
            self.last = Some(kind);
            return Some((lane, job));
        }
        None
    }

    fn done(&mut self, lane: &Lane, took: Duration) {
        let side = self.side(lane.kind());
        side.running -= 1;
        side.spent += took;
        let Some(queue) = self.lanes.get_mut(lane) else { return };
        queue.running -= 1;
        if queue.jobs.is_empty() && queue.running == 0 {
            self.lanes.remove(lane);
        }
    }
}

struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    /// Threads that one lane, all clients together, and all operators may have.
    of_one: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job that may run; None when the crew is over.
    fn next(&self) -> Option<(Lane, Job)> {
        let mut state = self.lock();
        while !state.over {
            if let Some(next) = state.next(self.of_one) {
                return Some(next);
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        None
    }

    fn done(&self, lane: &Lane, took: Duration) {
        self.lock().done(lane, took);
        // A job may have waited for the end of this one.
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

    /// So many threads of this name.
    ///
    /// # Errors
    /// The system refuses a thread.
    pub fn start(name: &str, threads: usize) -> io::Result<Self> {
        let of_one = (threads / 2).max(1);
        let shared = Arc::new(Shared { state: Mutex::default(), filled: Condvar::new(), of_one });
        for _ in 0..threads {
            let shared = shared.clone();
            std::thread::Builder::new().name(name.into()).stack_size(STACK).spawn(move || {
                give_way(NICE);
                while let Some((lane, job)) = shared.next() {
                    let begun = Instant::now();
                    let _ = std::panic::catch_unwind(AssertUnwindSafe(job));
                    shared.done(&lane, begun.elapsed());
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
        lane: impl Into<Lane>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        self.have_done(lane.into(), true, job).await
    }

    /// The same for what is not to be refused: the end of a call, for what the plugin did
    /// is done, and a start. There are no more of them than calls and starts, and they take
    /// nobody's place in a queue.
    ///
    /// # Errors
    /// It failed.
    pub async fn conclude<T: Send + 'static>(
        &self,
        lane: impl Into<Lane>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        self.have_done(lane.into(), false, job).await
    }

    async fn have_done<T: Send + 'static>(
        &self,
        lane: Lane,
        is_bounded: bool,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Overloaded> {
        let (reply, answer) = oneshot::channel();
        self.push(
            lane,
            is_bounded,
            Box::new(move || {
                if !reply.is_closed() {
                    let _ = reply.send(job());
                }
            }),
        )?;
        answer.await.map_err(|_| Overloaded)
    }

    fn push(&self, lane: Lane, is_bounded: bool, job: Job) -> Result<(), Overloaded> {
        let shared = &self.0.0;
        shared.lock().push(lane, is_bounded, job)?;
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
        crew.push((&stuck).into(), true, Box::new(hold)).unwrap();
        begun.recv().unwrap();
        while crew.push((&stuck).into(), true, Box::new(|| {})).is_ok() {}
        assert_eq!(block_on(crew.run(&other, || 7)), Ok(7));
        assert_eq!(block_on(crew.run(&stuck, || 7)), Err(Overloaded));
        let conclude = crew.conclude(&stuck, || 9);
        drop(release);
        assert_eq!(block_on(conclude), Ok(9));
        assert_eq!(block_on(crew.run(&other, || 8)), Ok(8));
    }

    #[test]
    fn clients_come_in_turn_with_the_plugins_as_if_they_were_one() {
        let mut state = State::default();
        let mut push = |lane| state.push(lane, true, Box::new(|| {})).unwrap();
        (0..9).for_each(|n| push(Lane::Client(n.to_string().into())));
        let plugins = ["a", "b"].map(|name| Lane::Plugin(name.into()));
        plugins.iter().cloned().for_each(&mut push);
        let mut order = Vec::new();
        while let Some((lane, _)) = state.next(1) {
            state.done(&lane, Duration::ZERO);
            order.push(lane);
        }
        assert_eq!(order.len(), 11);
        assert!(plugins.iter().all(|plugin| order[..4].contains(plugin)), "{order:?}");
        assert_eq!((state.plugins.waiting, state.clients.waiting), (0, 0));
    }

    /// However many long jobs wait: of them and of brief ones as much is done, in time.
    #[test]
    fn a_brief_job_waits_for_one_long_one() {
        let mut state = State::default();
        let push = |state: &mut State, lane| state.push(lane, true, Box::new(|| {})).unwrap();
        let long = |n: usize| Lane::Client(n.to_string().into());
        let brief = |n: usize| Lane::BriefClient(n.to_string().into());
        (0..9).for_each(|n| push(&mut state, long(n)));
        let (first, _) = state.next(1).unwrap();
        (0..40).for_each(|n| push(&mut state, brief(n)));
        state.done(&first, Duration::from_millis(300));
        let mut order = Vec::new();
        while let Some((lane, _)) = state.next(1) {
            let took = if lane.kind() == Kind::BriefClients { 10 } else { 300 };
            state.done(&lane, Duration::from_millis(took));
            order.push(lane.kind());
        }
        assert_eq!(order.len(), 48);
        let first_long = order.iter().position(|kind| *kind == Kind::Clients).unwrap();
        assert!((30..=31).contains(&first_long), "{first_long}");
        assert_eq!(order[first_long + 1], Kind::BriefClients);
    }

    #[test]
    fn clients_that_fill_their_queue_leave_plugins_and_operators_theirs() {
        let mut state = State::default();
        let mut of = 0..;
        let mut client = || Lane::Client(of.next().unwrap_or(0).to_string().into());
        while state.push(client(), true, Box::new(|| {})).is_ok() {}
        assert_eq!(state.clients.waiting, limits::CREW_QUEUE);
        assert_eq!(state.push(Lane::Plugin("plugin".into()), true, Box::new(|| {})), Ok(()));
        let plugin = Lane::Plugin("other".into());
        for _ in 0..2 * limits::CREW_QUEUE {
            assert_eq!(state.push(plugin.clone(), false, Box::new(|| {})), Ok(()));
        }
        assert_eq!(state.push(plugin, true, Box::new(|| {})), Ok(()));
        assert_eq!(state.push(Lane::Plugin("plugin".into()), true, Box::new(|| {})), Ok(()));
        let operator = Lane::Operator("operator".into());
        assert_eq!(state.push(operator.clone(), true, Box::new(|| {})), Ok(()));
        let first = std::iter::from_fn(|| state.next(1)).take(4).map(|(lane, _)| lane);
        assert!(first.collect::<Vec<_>>().contains(&operator));
    }

    #[test]
    fn all_clients_together_do_not_get_all_threads() {
        let crew = Crew::start("test", 2).unwrap();
        let (release, held) = mpsc::channel::<()>();
        let (begin, begun) = mpsc::channel();
        let hold = Box::new(move || {
            let _ = begin.send(());
            let _ = held.recv();
        });
        crew.push(Lane::Client("1".into()), true, hold).unwrap();
        begun.recv().unwrap();
        let late = crew.run(Lane::Client("2".into()), || 2);
        let mut late = std::pin::pin!(late);
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(late.as_mut().poll(&mut context).is_pending());
        assert_eq!(block_on(crew.run(Lane::Plugin("plugin".into()), || 7)), Ok(7));
        assert!(late.as_mut().poll(&mut context).is_pending());
        drop(release);
        assert_eq!(block_on(late), Ok(2));
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
