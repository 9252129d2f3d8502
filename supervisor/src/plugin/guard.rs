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
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    look::{BUSY, IDLE, Sample, Subject, Tree, Watch},
    mailbox::{Internal, Sink},
    session::Session,
    together::{Together, Totals},
};
use crate::capacity::limits;

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
        let key = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let active = Arc::new(AtomicBool::new(true));
        let subject: Arc<Subject> = Arc::default();
        let watch = Watch::new(
            key,
            self.shared.together.clone(),
            tree,
            subject.clone(),
            active.clone(),
            sample,
            events,
        );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Limits;

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
