//! What a running tool knows and can do besides computing.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use stockade_proto::{
    limits,
    worker::{FromPlugin, Item, Progress, from_plugin::Frame},
};
use tokio::sync::{Notify, mpsc};

use crate::{
    Error, Level, Result, blob,
    guest::{Parts, check_parts, to_wire},
    host::{Ask, Entity, Events, Host, Kv, Link, Metrics, Plugin},
};

/// The one place where frames leave for the supervisor.
pub(crate) type Outbox = mpsc::UnboundedSender<FromPlugin>;

/// Called once when the call is cancelled.
type Listener = Box<dyn FnOnce() + Send>;

/// Shared between a running call and the reader of the channel.
pub(crate) struct CallControl {
    cancelled: AtomicBool,
    listeners: Mutex<Vec<Listener>>,
    credit: AtomicU64,
    changed: Notify,
    changed_sync: (std::sync::Mutex<()>, std::sync::Condvar),
    /// Progress reports since then.
    reports: Mutex<Option<(Instant, u32)>>,
}

/// So many progress reports of a call are sent in [`REPORTS_TIME`]: the supervisor ends a
/// process that floods it.
const REPORTS: u32 = 64;
const REPORTS_TIME: Duration = Duration::from_millis(64);

impl std::fmt::Debug for CallControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CallControl").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

impl CallControl {
    pub(crate) fn new(credit: u64) -> Arc<Self> {
        Arc::new(CallControl {
            cancelled: AtomicBool::new(false),
            listeners: Mutex::default(),
            credit: AtomicU64::new(credit),
            changed: Notify::new(),
            changed_sync: Default::default(),
            reports: Mutex::default(),
        })
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        self.announce();
        let listeners = std::mem::take(&mut *self.listeners());
        for listener in listeners {
            listener();
        }
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_credit(&self, items: u64) {
        self.credit.fetch_add(items, Ordering::AcqRel);
        self.announce();
    }

    fn announce(&self) {
        let guard = self.changed_sync.0.lock();
        self.changed_sync.1.notify_all();
        drop(guard);
        self.changed.notify_waiters();
    }

    fn take_credit(&self) -> bool {
        self.credit
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |credit| credit.checked_sub(1))
            .is_ok()
    }

    /// One more report is no flood.
    fn may_report(&self) -> bool {
        let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let (since, sent) = reports
            .filter(|(since, _)| now.duration_since(*since) < REPORTS_TIME)
            .unwrap_or((now, 0));
        *reports = Some((since, sent.saturating_add(1)));
        sent < REPORTS
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Waits for a credit or the cancellation.
    fn wait_for_credit(&self) -> Result<()> {
        let Ok(mut guard) = self.changed_sync.0.lock() else { return Err(Error::cancelled()) };
        loop {
            if self.is_cancelled() {
                return Err(Error::cancelled());
            }
            if self.take_credit() {
                return Ok(());
            }
            guard = match self.changed_sync.1.wait(guard) {
                Ok(guard) => guard,
                Err(_) => return Err(Error::cancelled()),
            };
        }
    }
}

/// A call in progress, as the tool sees it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    pub(crate) id: u64,
    pub(crate) public_id: Arc<str>,
    pub(crate) workspace: Arc<str>,
    pub(crate) deadline: Instant,
    pub(crate) control: Arc<CallControl>,
    pub(crate) outbox: Outbox,
    pub(crate) link: Option<Link>,
}

impl Context {
    /// The id of the call that the caller and the logs know.
    pub fn call_id(&self) -> &str {
        &self.public_id
    }

    /// The workspace of the call, empty when it has none.
    pub fn workspace(&self) -> &str {
        &self.workspace
    }

    /// When the call must be over. After it comes a cancellation, then, after
    /// `timeouts.cancel_grace`, SIGKILL for the whole process.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// What is left until the deadline.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// True once nobody wants the result any more. Long loops ask it.
    pub fn is_cancelled(&self) -> bool {
        self.control.is_cancelled()
    }

    /// Returns [`Error::cancelled`] once the call is cancelled: `ctx.check()?`.
    ///
    /// # Errors
    /// The call is cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::cancelled()) } else { Ok(()) }
    }

    /// Calls `listener` once when the call is cancelled, or at once when it is
    /// already. It runs on the thread that reads the channel and must not block.
    pub fn on_cancel(&self, listener: impl FnOnce() + Send + 'static) {
        let mut listeners = self.control.listeners();
        if self.is_cancelled() {
            drop(listeners);
            listener();
        } else {
            listeners.push(Box::new(listener));
        }
    }

    /// Waits for the cancellation (async tools).
    pub async fn cancelled(&self) {
        loop {
            let changed = self.control.changed.notified();
            if self.is_cancelled() {
                return;
            }
            changed.await;
        }
    }

    /// Says how far the call is (`fraction` 0 to 1). A thousand times a second is enough:
    /// what is said more often is not sent.
    pub fn progress(&self, fraction: f64, message: &str) {
        if !self.control.may_report() {
            return;
        }
        let message = limits::cut(message, limits::ERROR_TEXT);
        let progress = Progress { call_id: self.id, fraction, message };
        let _ = self.outbox.send(FromPlugin { frame: Some(Frame::Progress(progress)) });
    }

    /// Sends one item of a streamed result; waits while the client is behind.
    ///
    /// # Errors
    /// [`Error::cancelled`] when nobody wants more, or the item is not
    /// serialisable.
    pub fn emit<T: Serialize>(&self, item: &T) -> Result<()> {
        self.emit_parts(blob::serialise(item)?)
    }

    /// As [`Context::emit`], for what is serialised already.
    ///
    /// # Errors
    /// [`Error::cancelled`] when nobody wants more.
    pub fn emit_parts(&self, parts: Parts) -> Result<()> {
        check_parts(&parts)?;
        let (value, blobs) = parts;
        self.control.wait_for_credit()?;
        let item = Item {
            call_id: self.id,
            value: value.into(),
            attachments: blobs.into_iter().map(to_wire).collect(),
        };
        let _ = self.outbox.send(FromPlugin { frame: Some(Frame::Item(item)) });
        Ok(())
    }

    /// Writes a line to the plugin's log (`stockade logs`).
    pub fn log(&self, level: Level, text: &str) {
        crate::log::write(level, text);
    }

    /// What the supervisor offers to plugins, on behalf of this call. In the test
    /// harness every request is an error.
    pub fn host(&self) -> Host {
        Host::of(self.link.clone(), self.id, &self.workspace)
    }

    /// The same call in another workspace (of an event, say).
    #[must_use]
    pub fn in_workspace(&self, workspace: &str) -> Context {
        Context { workspace: workspace.into(), ..self.clone() }
    }

    /// This plugin's keys and values (`kv:read`, `kv:write`).
    pub fn kv(&self) -> Kv {
        self.host().kv()
    }

    /// The document of `session/ID`, `npc/ID` or `world/ID` in the call's workspace.
    pub fn entity(&self, entity: &str) -> Entity {
        self.host().entity(entity)
    }

    /// Events (`event:emit`, `event:subscribe`).
    pub fn events(&self) -> Events {
        self.host().events()
    }

    /// This plugin's own metrics.
    pub fn metrics(&self) -> Metrics {
        self.host().metrics()
    }

    /// Another plugin (`plugin:call` or `plugin:call:NAME`).
    pub fn plugin(&self, name: &str) -> Plugin {
        self.host().plugin(name)
    }

    /// Asks a provider of the server or of another plugin.
    pub fn provider<Q: Serialize>(&self, name: &str, request: &Q) -> Ask<serde_json::Value> {
        self.host().provider(name, request)
    }
}
