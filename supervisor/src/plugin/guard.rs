//! Watches what process trees use, where no cgroup does: memory, processes,
//! and processors burnt while idle. One thread for all plugins; a plugin that
//! sleeps costs next to nothing.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    mailbox::{Internal, Sink},
    session::Session,
};
use crate::{
    document::Bytes,
    lifecycle::{Cause, CauseCode, oom_reason},
    machine::{self, Leaf, Usage},
    manifest::Limits,
};

/// Memory may grow this fast.
const GROWTH_PER_SECOND: f64 = (4u64 << 30) as f64;
/// Between looks at a busy plugin.
const BUSY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Between looks at an idle one that sleeps.
const IDLE: Duration = Duration::from_secs(10);
/// Between looks at an idle one that has run, or has processes beside the main one.
const STIRRING: Duration = Duration::from_secs(2);
/// Looks at a sleeping main process between looks at its whole tree.
const SLEPT: u32 = 3;
/// A plugin is idle this long after its last call.
const COOL_DOWN: Duration = Duration::from_secs(1);
/// Spinning this long while idle is named.
const SPIN: Duration = Duration::from_secs(10);
/// Of one processor, while idle.
const SPIN_SHARE: f64 = 0.5;

/// What a tree used when last looked at.
#[derive(Debug, Default)]
pub struct Sample {
    memory: AtomicU64,
    cpu_permille: AtomicU64,
    peak: AtomicU64,
    seen: AtomicBool,
}

impl Sample {
    /// Resident bytes of the tree, None before the first look.
    pub fn memory(&self) -> Option<u64> {
        self.seen.load(Ordering::Relaxed).then(|| self.memory.load(Ordering::Relaxed))
    }

    /// Percent of one processor, None before the first look.
    pub fn cpu_percent(&self) -> Option<f64> {
        let permille = self.cpu_permille.load(Ordering::Relaxed);
        self.seen.load(Ordering::Relaxed).then_some(permille as f64 / 10.0)
    }

    /// The most that was seen.
    pub fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }
}

/// A session's way to say that it has work.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    active: Arc<AtomicBool>,
    guard: Guard,
}

impl Activity {
    /// A call begins. Wakes the guard only after a rest.
    pub(super) fn touch(&self) {
        if !self.active.load(Ordering::Relaxed) && !self.active.swap(true, Ordering::AcqRel) {
            self.guard.wake();
        }
    }
}

struct Watch {
    plugin: Arc<str>,
    generation: u64,
    /// Everything below it is the plugin's.
    root: u32,
    /// Its /tmp and /dev/shm are its own: what lies there counts.
    own_scratch: bool,
    /// The kernel counts, and limits its memory.
    leaf: Option<Arc<Leaf>>,
    limits: Limits,
    session: Option<Weak<Session>>,
    active: Arc<AtomicBool>,
    sample: Arc<Sample>,
    events: Sink,
    due: Instant,
    last: Option<(Instant, Usage)>,
    busy_until: Instant,
    calls: u64,
    main: Option<u32>,
    ticks: Option<u64>,
    skipped: u32,
    spinning_since: Option<Instant>,
    warned: bool,
    done: bool,
}

#[derive(Default)]
struct Shared {
    watches: Mutex<HashMap<u64, Watch>>,
    wake: Condvar,
    next: AtomicU64,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// Handle of the guarding thread.
#[derive(Clone, Debug)]
pub struct Guard {
    shared: Arc<Shared>,
}

/// The process tree of one plugin, as it is to be watched.
pub(super) struct Tree {
    pub(super) plugin: Arc<str>,
    pub(super) generation: u64,
    /// It is below this process.
    pub(super) launcher: u32,
    pub(super) limits: Limits,
    /// The kernel counts and limits it here.
    pub(super) leaf: Option<Arc<Leaf>>,
}

/// Watching ends when this is dropped.
#[derive(Debug)]
pub(super) struct Watching {
    guard: Guard,
    key: u64,
    pub(super) activity: Activity,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.guard.watches().remove(&self.key);
    }
}

impl Watching {
    /// The plugin's main process is known. Its parent (the launcher, or the init
    /// of its namespace) is the root of its tree.
    pub(super) fn main(&self, pid: u32, own_scratch: bool) {
        let root = machine::parent(pid);
        if let (Some(watch), Some(root)) = (self.guard.watches().get_mut(&self.key), root) {
            watch.main = Some(pid);
            watch.root = root;
            watch.own_scratch = own_scratch;
        }
    }

    /// From now on the session says whether the plugin is busy.
    pub(super) fn serve(&self, session: &Arc<Session>) {
        if let Some(watch) = self.guard.watches().get_mut(&self.key) {
            watch.session = Some(Arc::downgrade(session));
        }
    }
}

impl Guard {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start() -> std::io::Result<Self> {
        let guard = Guard { shared: Arc::default() };
        let shared = Arc::downgrade(&guard.shared);
        std::thread::Builder::new().name("guard".into()).spawn(move || patrol(&shared))?;
        Ok(guard)
    }

    fn watches(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Watch>> {
        self.shared.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Watches a tree.
    pub(super) fn watch(&self, tree: Tree, sample: Arc<Sample>, events: Sink) -> Watching {
        let Tree { plugin, generation, launcher, limits, leaf } = tree;
        let key = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let active = Arc::new(AtomicBool::new(true));
        let now = Instant::now();
        let watch = Watch {
            plugin,
            generation,
            root: launcher,
            own_scratch: false,
            leaf,
            limits,
            session: None,
            active: active.clone(),
            sample,
            events,
            due: now + BUSY.0,
            last: None,
            busy_until: now + COOL_DOWN,
            calls: 0,
            main: None,
            ticks: None,
            skipped: 0,
            spinning_since: None,
            warned: false,
            done: false,
        };
        self.watches().insert(key, watch);
        self.wake();
        Watching { guard: self.clone(), key, activity: Activity { active, guard: self.clone() } }
    }
}

/// The thread: looks at what is due, sleeps until the next is.
fn patrol(shared: &Weak<Shared>) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let mut watches = shared.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        for watch in watches.values_mut() {
            let woken = watch.due > now + BUSY.1 && watch.active.load(Ordering::Acquire);
            if watch.due <= now || woken {
                watch.look(now);
            }
        }
        let next = watches.values().map(|watch| watch.due).min();
        let sleep = next.map_or(IDLE, |due| due.saturating_duration_since(Instant::now()));
        let waited = shared.wake.wait_timeout(watches, sleep.max(Duration::from_millis(1)));
        drop(waited);
    }
}

impl Watch {
    fn look(&mut self, now: Instant) {
        let (in_flight, calls) = self.work();
        if in_flight || calls != self.calls {
            self.busy_until = now + COOL_DOWN;
        }
        self.calls = calls;
        let mut busy = now < self.busy_until;
        if !busy {
            // From here on a call wakes us; one that began just now did not.
            self.active.store(false, Ordering::Release);
            busy = self.work().1 != calls;
        }
        if !busy && self.slept() {
            self.due = now + IDLE;
            return;
        }
        let usage = self.usage();
        let cpu = self.publish(now, &usage);
        if !self.done {
            self.judge(&usage);
            self.judge_processor(now, cpu, in_flight);
        }
        self.last = Some((now, usage));
        let headroom = self.limits.memory.saturating_sub(usage.rss) as f64;
        let interval = match busy {
            true => Duration::from_secs_f64(headroom / GROWTH_PER_SECOND).clamp(BUSY.0, BUSY.1),
            false if self.skipped == 0 || usage.processes > 1 => STIRRING,
            false => IDLE,
        };
        self.due = now + interval;
    }

    /// The main process has not run since the last look, so it cannot have
    /// grown. Its children are looked at all the same now and then.
    fn slept(&mut self) -> bool {
        let ticks = self.main.and_then(machine::process_ticks);
        let same = ticks.is_some() && ticks == self.ticks;
        self.ticks = ticks;
        self.skipped = if same { self.skipped + 1 } else { 0 };
        // A child may work while the main process sleeps.
        let alone = self.last.is_none_or(|(_, usage)| usage.processes <= 1);
        same && alone && !self.skipped.is_multiple_of(SLEPT)
    }

    fn usage(&self) -> Usage {
        if let Some(usage) = self.leaf.as_ref().and_then(|leaf| leaf.usage()) {
            return usage;
        }
        let mut usage = machine::tree_usage(self.root, self.limits.processes);
        usage.rss += self.scratch();
        usage
    }

    /// Bytes in the plugin's own temporary file systems: memory, too.
    fn scratch(&self) -> u64 {
        self.main.filter(|_| self.own_scratch).map_or(0, machine::scratch)
    }

    /// Is a call in flight, and how many have there been?
    fn work(&self) -> (bool, u64) {
        match &self.session {
            Some(session) => session
                .upgrade()
                .map_or((false, 0), |session| (session.in_flight() > 0, session.calls_made())),
            // Loading counts as work.
            None => (true, 0),
        }
    }

    /// Publishes the sample; the share of one processor since the last one.
    fn publish(&self, now: Instant, usage: &Usage) -> f64 {
        let share = self.last.map_or(0.0, |(then, before)| {
            let wall = now.duration_since(then).as_secs_f64().max(0.001);
            usage.cpu.saturating_sub(before.cpu).as_secs_f64() / wall
        });
        self.sample.memory.store(usage.rss, Ordering::Relaxed);
        self.sample.cpu_permille.store((share * 1000.0) as u64, Ordering::Relaxed);
        self.sample.peak.fetch_max(usage.rss, Ordering::Relaxed);
        self.sample.seen.store(true, Ordering::Relaxed);
        share
    }

    fn judge(&mut self, usage: &Usage) {
        let cap = self.limits.memory;
        // Pages shared by forks are counted once per process: near the cap the
        // proportional size decides.
        if self.leaf.is_none() && usage.rss > cap / 5 * 4 {
            let scratch = self.scratch();
            let real = match usage.processes {
                0 | 1 if scratch == 0 => usage.rss,
                // What is mapped of a scratch file counts once, too.
                _ => machine::tree_pss(self.root, scratch > 0) + scratch,
            };
            if real > cap {
                let reason =
                    oom_reason(&Bytes(cap).to_string(), &Bytes(real).to_string(), "the guard");
                self.kill(Cause::new(CauseCode::OomOwn, reason));
                return;
            }
        }
        if usage.tasks > self.limits.processes {
            let reason = format!(
                "Started {} processes and threads; limits.processes = {}. Raise it or fix the \
                 loop that starts them.",
                usage.tasks, self.limits.processes
            );
            self.kill(Cause::new(CauseCode::ProcessLimit, reason));
        }
    }

    fn kill(&mut self, cause: Cause) {
        self.done = true;
        self.events.tell(Internal::Over(self.generation, cause));
    }

    /// An idle plugin that spins, or a busy one above `limits.cpu`: it goes
    /// behind the others and is named.
    fn judge_processor(&mut self, now: Instant, share: f64, in_flight: bool) {
        let (allowed, what) = match (in_flight, self.limits.cpu) {
            (true, None) => {
                self.spinning_since = None;
                return;
            }
            (true, Some(cpu)) => (cpu, format!("limits.cpu = {cpu}")),
            (false, cpu) => {
                (cpu.map_or(SPIN_SHARE, |cpu| cpu.min(SPIN_SHARE)), "no call in flight".into())
            }
        };
        if share <= allowed * 1.05 {
            self.spinning_since = None;
            return;
        }
        let since = *self.spinning_since.get_or_insert(now);
        if now.duration_since(since) < SPIN || self.warned {
            return;
        }
        self.warned = true;
        for pid in machine::descendants(self.root) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid as i32) {
                let _ = rustix::process::setpriority_process(Some(pid), 19);
            }
        }
        let text = format!(
            "Plugin {} uses {:.0} % of a processor with {what} for {} s: lowered its priority. \
             Look for a busy loop, or set limits.cpu.",
            self.plugin,
            share * 100.0,
            SPIN.as_secs()
        );
        self.events.tell(Internal::Warned(self.generation, text));
    }
}
