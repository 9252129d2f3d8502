//! What happened, for operators: a bounded ring of events and its followers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
};

use jiff::Timestamp;
use tokio::sync::mpsc;

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
    next: u64,
    ring: VecDeque<Arc<Event>>,
    followers: Vec<mpsc::Sender<Arc<Event>>>,
}

/// The ring.
#[derive(Debug, Default)]
pub struct Journal {
    inner: Mutex<Inner>,
}

impl Journal {
    /// Adds an event; its sequence number is given here.
    pub fn add(&self, mut event: Event) {
        limits::cut_to(&mut event.message, limits::ERROR_TEXT);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.next += 1;
        event.sequence = inner.next;
        let event = Arc::new(event);
        if inner.ring.len() >= limits::EVENTS_KEPT {
            inner.ring.pop_front();
        }
        inner.ring.push_back(event.clone());
        inner.followers.retain(|follower| match follower.try_send(event.clone()) {
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => true,
            Err(mpsc::error::TrySendError::Closed(_)) => false,
        });
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

    /// The last events, oldest first, and each new one from then on.
    pub fn follow(&self, last: usize) -> (Vec<Arc<Event>>, mpsc::Receiver<Arc<Event>>) {
        let (sender, receiver) = mpsc::channel(limits::FOLLOWER_BEHIND);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let skip = inner.ring.len().saturating_sub(last);
        let events = inner.ring.iter().skip(skip).cloned().collect();
        inner.followers.push(sender);
        (events, receiver)
    }
}
