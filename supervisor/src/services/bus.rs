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
use crate::capacity::{Account, Charge, limits};

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

/// What an event takes besides its payload.
const ENVELOPE: usize = 256;
/// Queues that are halved to make room for one event.
const HALVED: usize = 4;

/// One event.
#[derive(Debug)]
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
    _room: Charge,
}

impl Event {
    /// Bytes that it takes while it waits.
    fn size(&self) -> usize {
        size(&self.name, &self.payload)
    }
}

fn size(name: &str, payload: &[u8]) -> usize {
    payload.len() + name.len() + ENVELOPE
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
#[derive(Debug)]
pub(super) struct Bus {
    subscribers: RwLock<Vec<Arc<Subscriber>>>,
    sequence: AtomicU64,
    /// Of the events that wait, each counted once however many wait for it.
    account: Account,
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
    pub(super) fn new(account: Account) -> Self {
        Bus { subscribers: RwLock::default(), sequence: AtomicU64::new(0), account }
    }

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
        let sequence = self.sequence.fetch_add(1, Ordering::Relaxed) + 1;
        let wanting = all.iter().filter(|subscriber| subscriber.wants(&source, name));
        // A plugin hears nothing of workspaces in which it is disabled.
        let wanting = wanting.filter(|subscriber| {
            let plugin = subscriber.source.strip_prefix("plugin:");
            plugin.is_none_or(|plugin| enabled(&workspace, plugin))
        });
        let wanting: Vec<&Arc<Subscriber>> = wanting.collect();
        let wanted = wanting.len() as u32;
        if wanting.is_empty() {
            return (sequence, wanted);
        }
        let Some(room) = self.room(&all, size(name, &payload)) else {
            wanting.iter().for_each(|subscriber| subscriber.lost(1, 0));
            return (sequence, wanted);
        };
        // A small one may be a part of a message that is larger by much.
        let payload = match payload.len() <= limits::STEP {
            true => Bytes::copy_from_slice(&payload),
            false => payload,
        };
        let event = Arc::new(Event {
            sequence,
            name: name.into(),
            payload,
            source,
            workspace,
            time_ms: since.map_or(0, |since| since.as_millis() as u64),
            _room: room,
        });
        wanting.iter().for_each(|subscriber| subscriber.push(event.clone()));
        (sequence, wanted)
    }

    /// Room for one more event. When there is none, who is furthest behind loses first.
    fn room(&self, all: &[Arc<Subscriber>], bytes: usize) -> Option<Charge> {
        for _ in 0..HALVED {
            if let Ok(room) = self.account.charge(bytes) {
                return Some(room);
            }
            all.iter().max_by_key(|subscriber| subscriber.queue().bytes)?.halve();
        }
        self.account.charge(bytes).ok()
    }
}

impl Queue {
    /// Loses the oldest until there are no more.
    fn shrink(&mut self, events: usize, bytes: usize) {
        while self.events.len() > events || self.bytes > bytes {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.size();
            self.dropped += 1;
            self.lost += 1;
        }
    }
}

impl Subscriber {
    fn wants(&self, source: &Arc<str>, name: &str) -> bool {
        if !self.source.is_empty() && *source == self.source {
            return false;
        }
        let patterns = self.patterns.read().unwrap_or_else(PoisonError::into_inner);
        patterns.iter().any(|pattern| names::matches(pattern, name))
    }

    pub(super) fn set_patterns(&self, patterns: Vec<String>) {
        *self.patterns.write().unwrap_or_else(PoisonError::into_inner) = patterns;
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, event: Arc<Event>) {
        let mut queue = self.queue();
        queue.bytes += event.size();
        queue.events.push_back(event);
        queue.shrink(WAITING, WAITING_BYTES);
        drop(queue);
        self.filled.notify_one();
    }

    /// Loses the older half.
    fn halve(&self) {
        let mut queue = self.queue();
        let (events, bytes) = (queue.events.len() / 2, queue.bytes / 2);
        queue.shrink(events, bytes);
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
            queue.bytes -= event.size();
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
            queue.bytes += event.size();
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
    use crate::capacity::Budget;

    fn bus(room: usize) -> Bus {
        Bus::new(Budget::new(room).of_events())
    }

    #[test]
    fn a_small_payload_does_not_keep_its_message() {
        let bus = bus(8 << 20);
        let reader = bus.subscribe("".into(), vec!["plugin:a:*".into()]);
        let message = Bytes::from(vec![b'1'; 9000]);
        bus.emit("plugin:a".into(), "plugin:a:x", message.slice(..1), "".into(), |_, _| true);
        assert!(message.is_unique());
        assert_eq!(reader.take().events.len(), 1);
    }

    #[test]
    fn events_that_nobody_takes_have_a_bound_together() {
        let bus = bus(8 << 20);
        let all: Vec<_> =
            (0..20).map(|n| bus.subscribe("".into(), vec![format!("plugin:a:{n}")])).collect();
        let quick = bus.subscribe("".into(), vec!["plugin:b:*".into()]);
        for n in 0..200 {
            let payload = Bytes::from(vec![b'1'; 256 << 10]);
            let name = format!("plugin:a:{}", n % 20);
            bus.emit("plugin:a".into(), &name, payload, "".into(), |_, _| true);
        }
        assert!(bus.account.used() <= 4 << 20);
        let lost: u64 = all.iter().map(|one| one.counts().1).sum();
        assert!(lost >= 180, "{lost}");
        // Who reads gets its events all the same.
        for _ in 0..50 {
            let payload = Bytes::from(vec![b'1'; 64 << 10]);
            bus.emit("plugin:b".into(), "plugin:b:x", payload, "".into(), |_, _| true);
            let batch = quick.take();
            assert_eq!((batch.events.len(), batch.dropped), (1, 0));
        }
        all.iter().for_each(|one| bus.unsubscribe(one));
        drop(all);
        assert_eq!(bus.account.used(), 0, "given back");
    }

    #[test]
    fn who_is_behind_loses_its_oldest_and_nobody_else_any() {
        let bus = bus(1 << 30);
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
    fn small_events_of_long_names_are_who_is_behind() {
        let bus = bus(1 << 20);
        let behind = bus.subscribe("plugin:behind".into(), vec!["plugin:a:*".into()]);
        let other = bus.subscribe("plugin:other".into(), vec!["plugin:b:x".into()]);
        let emit = |source: &str, name: &str, bytes: usize| {
            let payload = Bytes::from(vec![b'1'; bytes]);
            bus.emit(source.into(), name, payload, "".into(), |_, _| true);
        };
        let name = format!("plugin:a:{}", "x".repeat(490));
        (0..900).for_each(|_| emit("plugin:a", &name, 1));
        (0..150).for_each(|_| emit("plugin:b", "plugin:b:x", 1000));
        assert_eq!(other.counts().1, 0);
        assert!(behind.counts().1 > 0);
    }

    #[test]
    fn nobody_hears_itself_and_large_events_are_bounded_by_bytes() {
        let bus = bus(1 << 30);
        let own = bus.subscribe("plugin:a".into(), vec!["*".into()]);
        let other = bus.subscribe("".into(), vec!["plugin:a:x".into()]);
        let payload = Bytes::from(vec![b'1'; 1 << 20]);
        for _ in 0..20 {
            let (_, wanted) =
                bus.emit("plugin:a".into(), "plugin:a:x", payload.clone(), "".into(), |_, _| true);
            assert_eq!(wanted, 1);
        }
        assert_eq!(own.counts(), (0, 0));
        assert_eq!(other.counts(), (7, 13));
        let batch = other.take();
        assert_eq!(batch.events.len(), 1);
        other.put_back(batch);
        assert_eq!(other.counts(), (7, 13));
        bus.unsubscribe(&other);
        assert_eq!(bus.emit("plugin:b".into(), "plugin:a:x", payload, "".into(), |_, _| true).1, 1);
    }
}
