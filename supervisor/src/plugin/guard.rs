//! Watches what process trees use, where no cgroup does: memory, processes,
//! and processors burnt while idle. One thread for all plugins; a plugin that
//! sleeps costs next to nothing.
//!
//! A look reads /proc, and /proc may be slow or hang. So nothing is held while one
//! looks: the tree is taken out of the list and put back. A second thread sees to it
//! that a look which takes long holds up nobody else: another thread takes over the
//! list, and a look that takes much longer is named.

use std::{
    collections::HashMap,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    mailbox::{Internal, Sink},
    session::Session,
    together::{Part, Together, Totals},
};
use crate::{
    capacity::limits,
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
/// For so long a measured proportional size is good.
const MEASURED: Duration = Duration::from_secs(1);
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

/// What the owner of a process tree tells of it while it is being watched.
#[derive(Debug, Default)]
struct Subject {
    /// The main process, and whether its /tmp and /dev/shm are its own: what lies there
    /// counts.
    main: OnceLock<(u32, bool)>,
    session: OnceLock<Weak<Session>>,
}

struct Watch {
    key: u64,
    together: Arc<Together>,
    plugin: Arc<str>,
    generation: u64,
    subject: Arc<Subject>,
    /// Everything below it is the plugin's.
    root: u32,
    /// The root is that of the main process.
    rooted: bool,
    /// The kernel counts, and limits its memory.
    leaf: Option<Arc<Leaf>>,
    limits: Limits,
    active: Arc<AtomicBool>,
    sample: Arc<Sample>,
    events: Sink,
    due: Instant,
    last: Option<(Instant, Usage)>,
    busy_until: Instant,
    calls: u64,
    ticks: Option<u64>,
    skipped: u32,
    spinning_since: Option<Instant>,
    warned: bool,
    done: bool,
    /// All plugins use too much together: look now.
    suspected: bool,
    /// Of what the processes count, so much is theirs alone; when that was measured.
    own: (f64, Option<Instant>),
}

/// A tree on the list.
enum Entry {
    /// Waits for its next look.
    Waiting(Box<Watch>),
    /// Is being looked at.
    Out(Out),
}

struct Out {
    since: Instant,
    /// By which thread.
    looker: u64,
    named: bool,
    plugin: Arc<str>,
    generation: u64,
    subject: Arc<Subject>,
    events: Sink,
}

#[derive(Default)]
struct List {
    entries: HashMap<u64, Entry>,
    /// The thread that looks; one that finds another number here ends.
    looker: u64,
}

#[derive(Default)]
struct Shared {
    list: Mutex<List>,
    wake: Condvar,
    next: AtomicU64,
    together: Arc<Together>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    subject: Arc<Subject>,
    pub(super) activity: Activity,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let entry = self.guard.shared.lock().entries.remove(&self.key);
        self.guard.shared.together.leave(self.key);
        // Not under the lock: it may hold the last handle of a cgroup.
        drop(entry);
    }
}

impl Watching {
    /// The plugin's main process is known. Its parent (the launcher, or the init
    /// of its namespace) is the root of its tree.
    pub(super) fn main(&self, pid: u32, own_scratch: bool) {
        let _ = self.subject.main.set((pid, own_scratch));
    }

    /// From now on the session says whether the plugin is busy.
    pub(super) fn serve(&self, session: &Arc<Session>) {
        let _ = self.subject.session.set(Arc::downgrade(session));
    }
}

impl Guard {
    /// Starts the threads.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start() -> std::io::Result<Self> {
        let guard = Guard { shared: Arc::default() };
        start_looker(&guard.shared, 0)?;
        let shared = Arc::downgrade(&guard.shared);
        std::thread::Builder::new().name("guard-keeper".into()).spawn(move || keep(&shared))?;
        Ok(guard)
    }

    /// What all plugins may use together, from now on.
    pub fn allow(&self, most: Totals) {
        self.shared.together.allow(most);
    }

    fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// Watches a tree.
    pub(super) fn watch(&self, tree: Tree, sample: Arc<Sample>, events: Sink) -> Watching {
        let Tree { plugin, generation, launcher, limits, leaf } = tree;
        let key = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let active = Arc::new(AtomicBool::new(true));
        let subject: Arc<Subject> = Arc::default();
        let now = Instant::now();
        let watch = Watch {
            key,
            together: self.shared.together.clone(),
            plugin,
            generation,
            subject: subject.clone(),
            root: launcher,
            rooted: false,
            leaf,
            limits,
            active: active.clone(),
            sample,
            events,
            due: now + BUSY.0,
            last: None,
            busy_until: now + COOL_DOWN,
            calls: 0,
            ticks: None,
            skipped: 0,
            spinning_since: None,
            warned: false,
            done: false,
            suspected: false,
            own: (1.0, None),
        };
        self.shared.together.enter(key);
        self.shared.lock().entries.insert(key, Entry::Waiting(Box::new(watch)));
        self.wake();
        let activity = Activity { active, guard: self.clone() };
        Watching { guard: self.clone(), key, subject, activity }
    }
}

fn start_looker(shared: &Arc<Shared>, number: u64) -> std::io::Result<()> {
    let shared = Arc::downgrade(shared);
    std::thread::Builder::new().name("guard".into()).spawn(move || patrol(&shared, number))?;
    Ok(())
}

/// The thread that looks: takes out what is due, looks at it, puts it back, sleeps
/// until the next is due.
fn patrol(shared: &Weak<Shared>, number: u64) {
    loop {
        let Some(shared) = shared.upgrade() else { return };
        let mut list = shared.lock();
        if list.looker != number {
            return;
        }
        let now = Instant::now();
        let mut next: Option<(Instant, u64)> = None;
        let suspect = shared.together.suspect();
        for (key, entry) in &list.entries {
            let Entry::Waiting(watch) = entry else { continue };
            let woken = suspect == Some(*key)
                || watch.due > now + BUSY.1 && watch.active.load(Ordering::Acquire);
            let due = if woken { now } else { watch.due };
            if next.is_none_or(|(first, _)| due < first) {
                next = Some((due, *key));
            }
        }
        match next {
            Some((due, key)) if due <= now => {
                let Some(mut watch) = take_out(&mut list, key, number) else { continue };
                drop(list);
                watch.suspected = suspect == Some(key);
                watch.look(Instant::now());
                put_back(&shared, key, watch);
            }
            next => {
                let sleep = next.map_or(IDLE, |(due, _)| due.saturating_duration_since(now));
                let sleep = sleep.max(Duration::from_millis(1));
                drop(shared.wake.wait_timeout(list, sleep));
            }
        }
    }
}

fn take_out(list: &mut List, key: u64, looker: u64) -> Option<Box<Watch>> {
    let entry = list.entries.get_mut(&key)?;
    let Entry::Waiting(watch) = entry else { return None };
    let out = Out {
        since: Instant::now(),
        looker,
        named: false,
        plugin: watch.plugin.clone(),
        generation: watch.generation,
        subject: watch.subject.clone(),
        events: watch.events.clone(),
    };
    match std::mem::replace(entry, Entry::Out(out)) {
        Entry::Waiting(watch) => Some(watch),
        Entry::Out(_) => None,
    }
}

/// Unless nobody wants it watched any more.
fn put_back(shared: &Shared, key: u64, watch: Box<Watch>) {
    let mut list = shared.lock();
    if let Some(entry) = list.entries.get_mut(&key) {
        *entry = Entry::Waiting(watch);
    }
}

/// A look that takes this long has the list taken away from its thread.
const PATIENCE: Duration = Duration::from_millis(250);

/// The other thread: looks after the one that looks.
fn keep(shared: &Weak<Shared>) {
    loop {
        std::thread::sleep(PATIENCE);
        let Some(shared) = shared.upgrade() else { return };
        let mut list = shared.lock();
        let current = list.looker;
        let mut stuck = false;
        for entry in list.entries.values_mut() {
            let Entry::Out(out) = entry else { continue };
            let took = out.since.elapsed();
            stuck |= took > PATIENCE && out.looker == current;
            if took > limits::LOOK && !out.named {
                out.named = true;
                let pid = out.subject.main.get().map_or(0, |(pid, _)| *pid);
                let text = format!(
                    "Plugin {}: /proc of pid {pid} does not answer; its memory and processes are \
                     not watched until it does. Look for a process stuck in the kernel.",
                    out.plugin
                );
                out.events.tell(Internal::Warned(out.generation, text));
            }
        }
        if stuck {
            list.looker += 1;
            let number = list.looker;
            drop(list);
            if start_looker(&shared, number).is_err() {
                // The old one goes on when it can.
                shared.lock().looker = current;
            }
        }
    }
}

impl Watch {
    fn main(&self) -> Option<u32> {
        self.subject.main.get().map(|(pid, _)| *pid)
    }

    fn look(&mut self, now: Instant) {
        if !self.rooted
            && let Some(root) = self.main().and_then(machine::parent)
        {
            self.root = root;
            self.rooted = true;
        }
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
        if !busy && !self.suspected && self.slept() {
            self.due = now + IDLE;
            return;
        }
        let usage = self.usage();
        let cpu = self.publish(now, &usage);
        if !self.done {
            self.judge(&usage);
        }
        self.judge_together(now, &usage);
        if !self.done {
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
        let ticks = self.main().and_then(machine::process_ticks);
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
        let own = self.subject.main.get().filter(|(_, own_scratch)| *own_scratch);
        own.map_or(0, |(pid, _)| machine::scratch(*pid))
    }

    /// Is a call in flight, and how many have there been?
    fn work(&self) -> (bool, u64) {
        match self.subject.session.get() {
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

    /// The sum over all plugins. Pages that they share (libraries) are counted for each
    /// of them, so the proportional size has the last word.
    fn judge_together(&mut self, now: Instant, usage: &Usage) {
        let part = |own: f64| Part { memory: (usage.rss as f64 * own) as u64, tasks: usage.tasks };
        let mut over = self.together.note(self.key, part(self.own.0));
        let stale = self.own.1.is_none_or(|then| now.duration_since(then) > MEASURED);
        if over.is_some() && self.leaf.is_none() && stale {
            let scratch = self.scratch();
            let real = machine::tree_pss(self.root, scratch > 0) + scratch;
            self.own = ((real as f64 / usage.rss.max(1) as f64).min(1.0), Some(now));
            over = self.together.note(self.key, part(self.own.0));
        }
        if let Some(cause) = over.filter(|_| !self.done) {
            self.kill(cause);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A look at a tree hangs for as long as `release` is not dropped. Here by a session
    /// whose last handle is held: enough to show who holds what meanwhile.
    #[test]
    fn a_look_that_hangs_is_taken_over_and_named() {
        let guard = Guard::start().unwrap();
        let (sink, mut inbox) = Sink::new();
        let tree = |plugin: &str| Tree {
            plugin: plugin.into(),
            generation: 1,
            launcher: std::process::id(),
            limits: Limits::default(),
            leaf: None,
        };
        let stuck = guard.watch(tree("stuck"), Arc::default(), sink.clone());
        // What a hanging look leaves behind: out, by the present thread, since long ago.
        let taken = {
            let mut list = guard.shared.lock();
            let looker = list.looker;
            loop {
                if let Some(watch) = take_out(&mut list, stuck.key, looker) {
                    if let Some(Entry::Out(out)) = list.entries.get_mut(&stuck.key) {
                        out.since = Instant::now().checked_sub(Duration::from_secs(5)).unwrap();
                    }
                    break watch;
                }
                drop(list);
                std::thread::yield_now();
                list = guard.shared.lock();
            }
        };
        let sample: Arc<Sample> = Arc::default();
        let other = guard.watch(tree("other"), sample.clone(), sink.clone());
        let begun = Instant::now();
        while sample.memory().is_none() {
            assert!(begun.elapsed() < Duration::from_secs(30), "the other is never looked at");
            std::thread::sleep(Duration::from_millis(5));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let told = runtime.block_on(inbox.recv());
        assert!(
            matches!(&told, Internal::Warned(1, text) if text.contains("does not answer")),
            "it is named"
        );
        while guard.shared.lock().looker == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        put_back(&guard.shared, stuck.key, taken);
        drop((stuck, other));
        assert!(guard.shared.lock().entries.is_empty());
    }
}
