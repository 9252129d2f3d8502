//! Events: every subscriber has a bounded queue of its own. One that is behind
//! loses its oldest events, which are counted; nobody else notices.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::names;
use crate::capacity::limits;

/// Events that may wait for a subscriber.
const WAITING: usize = limits::EVENT_QUEUE;
/// Their bytes.
const WAITING_BYTES: usize = limits::EVENT_BYTES;
/// Events of one batch, and their bytes.
const BATCH: (usize, usize) = (256, 1 << 20);

/// Batches follow each other no sooner than this: the first event of a while goes at
/// once, a stream of them goes together.
const PAUSE: Duration = Duration::from_millis(4);

/// Paces the batches of one subscriber.
#[derive(Debug, Default)]
pub(super) struct Pace(Option<Instant>);

impl Pace {
    /// Waits until the next batch may go. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        if let Some(last) = self.0 {
            tokio::time::sleep_until((last + PAUSE).into()).await;
        }
        self.0 = Some(Instant::now());
    }
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Ascending from 1.
    pub sequence: u64,
    /// `plugin:<id>:<event>`, or the server's own.
    pub name: Arc<str>,
    /// JSON text.
    pub payload: Bytes,
    /// `plugin:<id>`, or `host`.
    pub source: Arc<str>,
    /// Empty when it has none.
    pub workspace: Arc<str>,
    /// Milliseconds since 1970.
    pub time_ms: u64,
}

/// Some events, in order, and how many were lost before them.
#[derive(Debug, Default)]
pub struct Batch {
    /// The events.
    pub events: Vec<Arc<Event>>,
    /// Lost before these.
    pub dropped: u64,
}

/// All subscribers.
#[derive(Debug, Default)]
pub(super) struct Bus {
    subscribers: RwLock<Vec<Arc<Subscriber>>>,
    sequence: AtomicU64,
}

/// One subscriber.
#[derive(Debug)]
pub(super) struct Subscriber {
    /// `plugin:<id>`: its own events do not come back to it. Empty for servers.
    source: Arc<str>,
    patterns: RwLock<Vec<String>>,
    queue: Mutex<Queue>,
    filled: Notify,
    over: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Lost since the last batch.
    dropped: u64,
    /// Lost since the start.
    lost: u64,
}

impl Bus {
    /// A subscriber from now on, until it is dropped or unsubscribed.
    pub(super) fn subscribe(&self, source: Arc<str>, patterns: Vec<String>) -> Arc<Subscriber> {
        let subscriber = Arc::new(Subscriber {
            source,
            patterns: RwLock::new(patterns),
            queue: Mutex::default(),
            filled: Notify::new(),
            over: AtomicBool::new(false),
        });
        let mut all = self.subscribers.write().unwrap_or_else(PoisonError::into_inner);
        all.push(subscriber.clone());
        subscriber
    }

    pub(super) fn unsubscribe(&self, subscriber: &Arc<Subscriber>) {
        let mut all = self.subscribers.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| !Arc::ptr_eq(known, subscriber));
        subscriber.over.store(true, Ordering::Release);
        subscriber.filled.notify_one();
    }

    /// Queues an event for everybody who wants it: its number, and how many do.
    pub(super) fn emit(
        &self,
        source: Arc<str>,
        name: &str,
        payload: Bytes,
        workspace: Arc<str>,
        enabled: impl Fn(&str, &str) -> bool,
    ) -> (u64, u32) {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let all = self.subscribers.read().unwrap_or_else(PoisonError::into_inner);
        let event = Arc::new(Event {
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed) + 1,
            name: name.into(),
            payload,
            source,
            workspace,
            time_ms: since.map_or(0, |since| since.as_millis() as u64),
        });
        let mut wanted = 0;
        for subscriber in all.iter().filter(|subscriber| subscriber.wants(&event)) {
            // A plugin hears nothing of workspaces in which it is disabled.
            let plugin = subscriber.source.strip_prefix("plugin:");
            if plugin.is_some_and(|plugin| !enabled(&event.workspace, plugin)) {
                continue;
            }
            subscriber.push(event.clone());
            wanted += 1;
        }
        (event.sequence, wanted)
    }
}

impl Subscriber {
    fn wants(&self, event: &Event) -> bool {
        if !self.source.is_empty() && event.source == self.source {
            return false;
        }
        let patterns = self.patterns.read().unwrap_or_else(PoisonError::into_inner);
        patterns.iter().any(|pattern| names::matches(pattern, &event.name))
    }

    pub(super) fn set_patterns(&self, patterns: Vec<String>) {
        *self.patterns.write().unwrap_or_else(PoisonError::into_inner) = patterns;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Arc<Event>) {
        let mut queue = self.queue();
        queue.bytes += event.payload.len();
        queue.events.push_back(event);
        while queue.events.len() > WAITING || queue.bytes > WAITING_BYTES {
            let Some(oldest) = queue.events.pop_front() else { break };
            queue.bytes -= oldest.payload.len();
            queue.dropped += 1;
            queue.lost += 1;
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// Resolves when something waits; false when it was unsubscribed. Cancel-safe.
    pub(super) async fn filled(&self) -> bool {
        loop {
            let filled = self.filled.notified();
            if self.over.load(Ordering::Acquire) {
                return false;
            }
            if !self.queue().events.is_empty() {
                return true;
            }
            filled.await;
        }
    }

    /// What waits, as much as fits in one batch.
    pub(super) fn take(&self) -> Batch {
        let mut queue = self.queue();
        let mut batch = Batch { events: Vec::new(), dropped: std::mem::take(&mut queue.dropped) };
        let mut bytes = 0;
        while batch.events.len() < BATCH.0 && bytes < BATCH.1 {
            let Some(event) = queue.events.pop_front() else { break };
            queue.bytes -= event.payload.len();
            bytes += event.payload.len();
            batch.events.push(event);
        }
        batch
    }

    /// A batch that did not arrive, and what was lost before it: told with the next.
    pub(super) fn lost(&self, events: u64, before: u64) {
        let mut queue = self.queue();
        queue.dropped += events + before;
        queue.lost += events;
    }

    /// A batch that was not sent after all: it comes first again.
    pub(super) fn put_back(&self, batch: Batch) {
        let mut queue = self.queue();
        queue.dropped += batch.dropped;
        for event in batch.events.into_iter().rev() {
            queue.bytes += event.payload.len();
            queue.events.push_front(event);
        }
    }

    /// Events that wait, and those lost since the start.
    pub(super) fn counts(&self) -> (u64, u64) {
        let queue = self.queue();
        (queue.events.len() as u64, queue.lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_behind_loses_its_oldest_and_nobody_else_any() {
        let bus = Bus::default();
        let slow = bus.subscribe("plugin:slow".into(), vec!["*".into()]);
        let quick = bus.subscribe("plugin:quick".into(), vec!["plugin:a:*".into()]);
        let mut got = 0;
        for n in 0..WAITING + 5 {
            let payload = n.to_string().into();
            bus.emit("plugin:a".into(), "plugin:a:x", payload, "".into(), |_, _| true);
            if n % 200 == 0 {
                got += quick.take().events.len();
            }
        }
        loop {
            let batch = quick.take();
            assert_eq!(batch.dropped, 0);
            if batch.events.is_empty() {
                break;
            }
            got += batch.events.len();
        }
        assert_eq!(got, WAITING + 5);
        let first = slow.take();
        assert_eq!((first.dropped, first.events[0].sequence), (5, 6));
        assert_eq!(slow.take().dropped, 0, "told once");
        assert_eq!(slow.counts().1, 5);
    }

    #[test]
    fn nobody_hears_itself_and_large_events_are_bounded_by_bytes() {
        let bus = Bus::default();
        let own = bus.subscribe("plugin:a".into(), vec!["*".into()]);
        let other = bus.subscribe("".into(), vec!["plugin:a:x".into()]);
        let payload = Bytes::from(vec![b'1'; 1 << 20]);
        for _ in 0..20 {
            let (_, wanted) =
                bus.emit("plugin:a".into(), "plugin:a:x", payload.clone(), "".into(), |_, _| true);
            assert_eq!(wanted, 1);
        }
        assert_eq!(own.counts(), (0, 0));
        assert_eq!(other.counts(), (8, 12));
        let batch = other.take();
        assert_eq!(batch.events.len(), 1);
        other.put_back(batch);
        assert_eq!(other.counts(), (8, 12));
        bus.unsubscribe(&other);
        assert_eq!(bus.emit("plugin:b".into(), "plugin:a:x", payload, "".into(), |_, _| true).1, 1);
    }
}
