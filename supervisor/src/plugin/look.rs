//! One look at a plugin's process tree: what it uses, whether that is too much, and
//! when to look again.

use std::{
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    mailbox::{Internal, Sink},
    session::Session,
    together::{Part, Together},
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
pub(super) const BUSY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Between looks at an idle one that sleeps.
pub(super) const IDLE: Duration = Duration::from_secs(10);
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
/// On a crowded machine a loop gets less than it wants: from this share on, what it
/// stood in line for counts, too.
const CROWDED_SHARE: f64 = 0.1;

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

/// What the owner of a process tree tells of it while it is being watched.
#[derive(Debug, Default)]
pub(super) struct Subject {
    /// The main process, and whether its /tmp and /dev/shm are its own: what lies there
    /// counts.
    pub(super) main: OnceLock<(u32, bool)>,
    pub(super) session: OnceLock<Weak<Session>>,
}

/// One tree that is watched.
pub(super) struct Watch {
    key: u64,
    together: Arc<Together>,
    pub(super) plugin: Arc<str>,
    pub(super) generation: u64,
    pub(super) subject: Arc<Subject>,
    /// Everything below it is the plugin's.
    root: u32,
    /// The root is that of the main process.
    rooted: bool,
    /// The kernel counts, and limits its memory.
    leaf: Option<Arc<Leaf>>,
    limits: Limits,
    pub(super) active: Arc<AtomicBool>,
    sample: Arc<Sample>,
    pub(super) events: Sink,
    pub(super) due: Instant,
    last: Option<(Instant, Usage)>,
    busy_until: Instant,
    calls: u64,
    ticks: Option<u64>,
    skipped: u32,
    spinning_since: Option<Instant>,
    /// What the tree had waited for a processor, and when.
    waited: Option<(Instant, Duration)>,
    warned: bool,
    done: bool,
    /// All plugins use too much together: look now.
    pub(super) suspected: bool,
    /// Of what the processes count, so much is theirs alone; when that was measured.
    own: (f64, Option<Instant>),
}

impl Watch {
    pub(super) fn new(
        key: u64,
        together: Arc<Together>,
        tree: Tree,
        subject: Arc<Subject>,
        active: Arc<AtomicBool>,
        sample: Arc<Sample>,
        events: Sink,
    ) -> Self {
        let Tree { plugin, generation, launcher, limits, leaf } = tree;
        let now = Instant::now();
        Watch {
            key,
            together,
            plugin,
            generation,
            subject,
            root: launcher,
            rooted: false,
            leaf,
            limits,
            active,
            sample,
            events,
            due: now + BUSY.0,
            last: None,
            busy_until: now + COOL_DOWN,
            calls: 0,
            ticks: None,
            skipped: 0,
            spinning_since: None,
            waited: None,
            warned: false,
            done: false,
            suspected: false,
            own: (1.0, None),
        }
    }

    fn main(&self) -> Option<u32> {
        self.subject.main.get().map(|(pid, _)| *pid)
    }

    /// Looks at the tree, judges what it uses, and says when the next look is due.
    pub(super) fn look(&mut self, now: Instant) {
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

    /// The share of one processor that the tree has waited for since the last time
    /// this was asked; nothing the first time.
    fn stood_in_line(&mut self, now: Instant) -> f64 {
        let waited = machine::tree_wait(self.root);
        let before = self.waited.replace((now, waited));
        before.map_or(0.0, |(then, before)| {
            let wall = now.duration_since(then).as_secs_f64().max(0.001);
            waited.saturating_sub(before).as_secs_f64() / wall
        })
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
        let crowded = !in_flight && (CROWDED_SHARE..=allowed * 1.05).contains(&share);
        let wanted = if crowded { share + self.stood_in_line(now) } else { share };
        if wanted <= allowed * 1.05 {
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
