//! What happened, for operators: a bounded ring of events.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::watch;

use super::feed::{Feed, some_of};
use crate::capacity::limits;

/// What kind of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A plugin changed its state.
    State,
    /// A process died.
    Death,
    /// Plugins were added, changed, removed; configuration was read.
    Reload,
    /// Something needs attention.
    Warning,
    /// An operator did something.
    Operator,
}

impl EventKind {
    /// `state`, `death`, …
    pub fn as_str(self) -> &'static str {
        match self {
            EventKind::State => "state",
            EventKind::Death => "death",
            EventKind::Reload => "reload",
            EventKind::Warning => "warning",
            EventKind::Operator => "operator",
        }
    }
}

/// One event.
#[derive(Clone, Debug)]
pub struct Event {
    /// Ascending from 1.
    pub sequence: u64,
    /// When.
    pub time: Timestamp,
    /// Whose; empty = the daemon's.
    pub plugin: Arc<str>,
    /// Its process at that time.
    pub generation: u64,
    /// What kind.
    pub kind: EventKind,
    /// State and substate after it.
    pub state: &'static str,
    /// State and substate after it.
    pub substate: &'static str,
    /// For people.
    pub message: String,
    /// Code of the cause of a death.
    pub cause: &'static str,
}

#[derive(Debug, Default)]
struct Inner {
    /// The number of the last one.
    last: u64,
    ring: VecDeque<Arc<Event>>,
}

/// The ring.
#[derive(Debug, Default)]
pub struct Journal {
    inner: Mutex<Inner>,
    news: watch::Sender<()>,
}

impl Journal {
    /// Adds an event; its sequence number is given here.
    pub fn add(&self, mut event: Event) {
        limits::cut_to(&mut event.message, limits::ERROR_TEXT);
        let mut inner = self.inner();
        inner.last += 1;
        event.sequence = inner.last;
        let event = Arc::new(event);
        if inner.ring.len() >= limits::EVENTS_KEPT {
            inner.ring.pop_front();
        }
        inner.ring.push_back(event);
        drop(inner);
        self.news.send_replace(());
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a remark of the daemon or about a plugin.
    pub fn say(&self, plugin: &str, kind: EventKind, message: impl Into<String>) {
        self.add(Event {
            sequence: 0,
            time: Timestamp::now(),
            plugin: plugin.into(),
            generation: 0,
            kind,
            state: "",
            substate: "",
            message: message.into(),
            cause: "",
        });
    }
}

impl Feed for Journal {
    type Item = Arc<Event>;

    fn span(&self) -> (u64, u64) {
        let inner = self.inner();
        (inner.last + 1 - inner.ring.len() as u64, inner.last + 1)
    }

    fn since(&self, from: u64, bytes: usize) -> (Vec<Arc<Event>>, u64) {
        let inner = self.inner();
        let skip = inner.ring.partition_point(|event| event.sequence < from);
        let events = some_of(inner.ring.range(skip..), bytes, |event| event.message.len());
        let next = events.last().map_or(inner.last + 1, |event| event.sequence + 1);
        (events, next)
    }

    fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}
