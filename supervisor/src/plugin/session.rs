//! The calls of one process: who runs, who waits, who is answered. Shared by
//! every caller; nothing here waits for lifecycle work.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use stockade_proto::worker::{self as wire, invoke::Kind};
use tokio::{
    runtime::Handle as Runtime,
    sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
};

use super::{
    attachment::{Attachment, convert},
    guard::Activity,
    handshake,
    mailbox::{Internal, Sink},
    rate::Rate,
    registered::Registered,
    scope::Chain,
    tool::Tools,
};
use crate::{
    lifecycle::Cause,
    manifest::{Manifest, OnError},
};

/// Items that a tool may send before the client has taken one.
pub(super) const CREDIT: u32 = 16;
/// Progress reports that may wait for a client.
const PROGRESS_WAITING: u32 = 64;

/// A service elsewhere that does not answer any more.
const UNREACHABLE: &str = "RemoteUnreachable";

/// A call that is about to be sent.
#[derive(Debug)]
pub struct Invocation {
    /// The tool's name.
    pub tool: Arc<str>,
    /// JSON object text.
    pub args: Bytes,
    /// Binary arguments.
    pub attachments: Vec<Attachment>,
    /// A tool's, or what else was registered.
    pub kind: Kind,
    /// For an event handler.
    pub events: Option<wire::EventBatch>,
    /// Empty when the call has none.
    pub workspace: Arc<str>,
    /// The plugins through which it comes.
    pub chain: Chain,
    /// The only plugins that may run for it.
    pub enabled: Option<Arc<BTreeSet<String>>>,
    /// What is left of the deadline.
    pub timeout: Duration,
}

/// What a process answered.
#[derive(Debug)]
pub enum Reply {
    /// JSON text and attachments.
    Done(Bytes, Vec<Attachment>),
    /// The tool raised: type and message.
    Failed(String, String),
    /// The result is this many bytes long, more than allowed.
    TooLarge(usize),
    /// The process is gone (or going), for this cause.
    Closed(Cause),
}

/// What comes before the answer.
#[derive(Debug)]
pub enum Update {
    /// Fraction 0 to 1 and a message.
    Progress(f64, String),
    /// One item: JSON text and attachments.
    Item(Bytes, Vec<Attachment>),
}

/// A call in flight, as the session keeps it.
pub(super) struct Pending {
    pub(super) reply: Option<oneshot::Sender<Reply>>,
    pub(super) updates: Option<(mpsc::UnboundedSender<Update>, Arc<AtomicU32>)>,
    pub(super) items_allowed: u32,
    pub(super) call: CallInfo,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// What a crash record tells of a call.
#[derive(Clone, Debug)]
pub(super) struct CallInfo {
    pub(super) id: u64,
    pub(super) public_id: Arc<str>,
    pub(super) tool: Arc<str>,
    pub(super) args: Bytes,
    pub(super) attachments: Vec<Bytes>,
    pub(super) started: Instant,
    pub(super) deadline: Instant,
    pub(super) workspace: Arc<str>,
    pub(super) chain: Chain,
    pub(super) enabled: Option<Arc<BTreeSet<String>>>,
    pub(super) kind: Kind,
}

/// One process, as callers see it.
pub struct Session {
    pub(super) plugin: Arc<str>,
    pub(super) generation: u64,
    /// The tools it registered.
    pub tools: Tools,
    /// What else it registered.
    pub registered: Registered,
    /// The manifest it runs under.
    pub manifest: Arc<Manifest>,
    /// How often it may be asked.
    pub rate: Rate,
    max_result: usize,
    outbox: mpsc::UnboundedSender<wire::ToPlugin>,
    pending: Mutex<HashMap<u64, Pending>>,
    pub(super) in_flight: AtomicU32,
    pub(super) queued: AtomicU32,
    pub(super) next_id: AtomicU64,
    pub(super) slots: Arc<Semaphore>,
    pub(super) closed: OnceLock<Cause>,
    over: Notify,
    pub(super) draining: AtomicBool,
    errors_in_row: AtomicU32,
    last_pong: AtomicU64,
    ponged: Notify,
    last_progress: Mutex<String>,
    last_traceback: Mutex<String>,
    last_dead: Mutex<Vec<CallInfo>>,
    events: Sink,
    pub(super) activity: Activity,
    runtime: Runtime,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} generation {})", self.plugin, self.generation)
    }
}

/// What a session is made of.
pub(super) struct Parts {
    pub(super) plugin: Arc<str>,
    pub(super) generation: u64,
    pub(super) tools: Tools,
    pub(super) registered: Registered,
    pub(super) manifest: Arc<Manifest>,
    pub(super) max_result: usize,
    pub(super) outbox: mpsc::UnboundedSender<wire::ToPlugin>,
    pub(super) events: Sink,
    pub(super) activity: Activity,
    pub(super) runtime: Runtime,
}

impl Session {
    pub(super) fn new(parts: Parts) -> Arc<Self> {
        Arc::new(Session {
            slots: Arc::new(Semaphore::new(parts.manifest.concurrency as usize)),
            plugin: parts.plugin,
            generation: parts.generation,
            tools: parts.tools,
            registered: parts.registered,
            rate: Rate::of(parts.manifest.remote().and_then(|remote| remote.rate)),
            manifest: parts.manifest,
            max_result: parts.max_result,
            outbox: parts.outbox,
            pending: Mutex::default(),
            in_flight: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            next_id: AtomicU64::new(1),
            closed: OnceLock::new(),
            over: Notify::new(),
            draining: AtomicBool::new(false),
            errors_in_row: AtomicU32::new(0),
            last_pong: AtomicU64::new(0),
            ponged: Notify::new(),
            last_progress: Mutex::default(),
            last_traceback: Mutex::default(),
            last_dead: Mutex::default(),
            events: parts.events,
            activity: parts.activity,
            runtime: parts.runtime,
        })
    }

    /// Which process of the plugin.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Calls that the process works on.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Calls that wait for a slot.
    pub fn queued(&self) -> u32 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Calls that were sent to it so far.
    pub(super) fn calls_made(&self) -> u64 {
        self.next_id.load(Ordering::Relaxed) - 1
    }

    /// Slots that are free.
    pub(super) fn free_slots(&self) -> usize {
        self.slots.available_permits()
    }

    /// Why it is over, once it is.
    pub fn closed(&self) -> Option<&Cause> {
        self.closed.get()
    }

    pub(super) fn pending(&self) -> MutexGuard<'_, HashMap<u64, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No new leases; [`Internal::Drained`] follows when nothing is left.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.tell_if_drained();
    }

    fn tell_if_drained(&self) {
        if self.draining.load(Ordering::Acquire) && self.queued() == 0 && self.pending().is_empty()
        {
            self.events.tell(Internal::Drained(self.generation));
        }
    }

    /// Fails every call in flight with the cause; none is taken any more.
    pub(super) fn close(&self, cause: &Cause) {
        if self.closed.set(cause.clone()).is_err() {
            return;
        }
        self.slots.close();
        let pending: Vec<Pending> = self.pending().drain().map(|(_, pending)| pending).collect();
        self.in_flight.store(0, Ordering::Relaxed);
        let mut dead = self.last_dead.lock().unwrap_or_else(PoisonError::into_inner);
        for one in pending {
            dead.push(one.call.clone());
            if let Some(reply) = one.reply {
                let _ = reply.send(Reply::Closed(cause.clone()));
            }
        }
        drop(dead);
        self.over.notify_waiters();
    }

    /// Resolves when the session is closed.
    pub(super) async fn over(&self) {
        loop {
            let over = self.over.notified();
            if self.closed.get().is_some() {
                return;
            }
            over.await;
        }
    }

    /// The calls in flight now, or those that the closing ended.
    pub(super) fn calls(&self) -> Vec<CallInfo> {
        let mut calls = self.last_dead.lock().unwrap_or_else(PoisonError::into_inner).clone();
        calls.extend(self.pending().values().map(|pending| pending.call.clone()));
        calls
    }

    /// The last progress that a tool reported.
    pub(super) fn last_progress(&self) -> String {
        self.last_progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    // ── frames to the plugin ────────────────────────────────────────────────

    pub(super) fn send(&self, frame: wire::to_plugin::Frame) {
        let _ = self.outbox.send(wire::ToPlugin { frame: Some(frame) });
    }

    pub(super) fn send_ping(&self, id: u64, serving: bool) {
        self.send(wire::to_plugin::Frame::Ping(wire::Ping { id, serving }));
    }

    /// Waits for the answer to a ping.
    pub(super) async fn pong(&self, id: u64) {
        loop {
            let ponged = self.ponged.notified();
            if self.last_pong.load(Ordering::Acquire) >= id {
                return;
            }
            ponged.await;
        }
    }

    // ── frames from the plugin ──────────────────────────────────────────────

    /// Takes one frame. False when it belongs to nothing (a flood is judged by
    /// the pump); an error is a breach of the protocol.
    pub(super) fn take(&self, frame: wire::from_plugin::Frame) -> Result<bool, String> {
        use wire::from_plugin::Frame;
        match frame {
            Frame::Done(done) => {
                let size = done.result.len()
                    + done.attachments.iter().map(|blob| blob.data.len()).sum::<usize>();
                let reply = match size > self.max_result {
                    true => Reply::TooLarge(size),
                    false => Reply::Done(done.result, convert(done.attachments)),
                };
                self.errors_in_row.store(0, Ordering::Relaxed);
                Ok(self.finish(done.call_id, reply))
            }
            Frame::Failed(failed) => {
                let call = self.pending().get(&failed.call_id).map(|one| one.call.clone());
                let reply = Reply::Failed(failed.error_type.clone(), failed.message.clone());
                // The caller first: what follows may end the process.
                let known = self.finish(failed.call_id, reply);
                // What else was registered may fail as it likes, its answer is none; and no
                // plugin makes another one FAILED by what it asks of it.
                let own = call
                    .as_ref()
                    .is_some_and(|call| call.kind == Kind::Tool && call.chain.is_empty());
                let tool = call.map(|call| call.tool).unwrap_or_default();
                self.keep_traceback(&failed, &tool);
                let remote = self.manifest.remote().is_some();
                if own || (remote && failed.error_type == UNREACHABLE) {
                    self.count_error(&failed, &tool);
                }
                Ok(known)
            }
            Frame::Progress(progress) => {
                self.progress(progress);
                Ok(false)
            }
            Frame::Item(item) => self.item(item),
            Frame::Pong(pong) => {
                self.last_pong.fetch_max(pong.id, Ordering::AcqRel);
                self.ponged.notify_waiters();
                Ok(false)
            }
        }
    }

    fn finish(&self, id: u64, reply: Reply) -> bool {
        let Some(pending) = self.pending().remove(&id) else { return false };
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(waiting) = pending.reply {
            let _ = waiting.send(reply);
        }
        drop(pending._permit);
        if self.draining.load(Ordering::Relaxed) {
            self.tell_if_drained();
        }
        true
    }

    /// Where the tool raised: for the log, and the record of a death that follows.
    fn keep_traceback(&self, failed: &wire::Failed, tool: &Arc<str>) {
        if failed.traceback.is_empty() {
            return;
        }
        let traceback = last_part(&failed.traceback).to_owned();
        self.events.tell(Internal::Raised(self.generation, tool.clone(), traceback.clone()));
        *self.last_traceback.lock().unwrap_or_else(PoisonError::into_inner) = traceback;
    }

    /// Where a tool raised last.
    pub(super) fn last_traceback(&self) -> String {
        self.last_traceback.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a tool raises counts; what is the caller's doing does not.
    fn count_error(&self, failed: &wire::Failed, tool: &Arc<str>) {
        if ["InvalidArguments", "Cancelled", "ToolNotFound"].contains(&failed.error_type.as_str()) {
            return;
        }
        let row = self.errors_in_row.fetch_add(1, Ordering::Relaxed) + 1;
        let policy = &self.manifest.restart;
        let limit = match policy.on_error {
            OnError::Fail => 1,
            OnError::Count => policy.max_errors,
        };
        if limit > 0 && row == limit {
            let tool = Some(tool.to_string());
            let last = format!("{}: {}", failed.error_type, failed.message);
            self.events.tell(Internal::ToolErrors(self.generation, row, tool, last));
        }
    }

    fn progress(&self, progress: wire::Progress) {
        let message = handshake::short(&progress.message).to_owned();
        *self.last_progress.lock().unwrap_or_else(PoisonError::into_inner) =
            format!("{:.0} % {message}", progress.fraction * 100.0);
        let pending = self.pending();
        let Some(Pending { updates: Some((updates, waiting)), .. }) =
            pending.get(&progress.call_id)
        else {
            return;
        };
        // A client that is behind misses progress, never items.
        if waiting.load(Ordering::Relaxed) < PROGRESS_WAITING {
            waiting.fetch_add(1, Ordering::Relaxed);
            let _ = updates.send(Update::Progress(progress.fraction, message));
        }
    }

    fn item(&self, item: wire::Item) -> Result<bool, String> {
        let size =
            item.value.len() + item.attachments.iter().map(|blob| blob.data.len()).sum::<usize>();
        let mut pending = self.pending();
        let Some(one) = pending.get_mut(&item.call_id) else { return Ok(false) };
        if one.items_allowed == 0 {
            return Err(format!("tool {} sent items beyond its credit", one.call.tool));
        }
        if size > self.max_result {
            return Err(format!("tool {} sent an item of {size} bytes", one.call.tool));
        }
        match &one.updates {
            Some((updates, _)) => {
                one.items_allowed -= 1;
                let _ = updates.send(Update::Item(item.value, convert(item.attachments)));
            }
            // Nobody listens: the tool may go on.
            None => {
                drop(pending);
                self.send_credit(item.call_id, 1);
            }
        }
        Ok(true)
    }

    pub(super) fn send_credit(&self, call_id: u64, items: u32) {
        self.send(wire::to_plugin::Frame::Credit(wire::Credit { call_id, items }));
    }

    // ── leaving a call ──────────────────────────────────────────────────────

    /// `kill_after`: what follows if the tool does not stop.
    pub(super) fn cancel(&self, id: u64, reason: &str, kill_after: Option<Duration>) {
        let kill_after_ms = kill_after.map_or(0, |grace| grace.as_millis().max(1) as u64);
        let cancel = wire::Cancel { call_id: id, reason: reason.to_owned(), kill_after_ms };
        self.send(wire::to_plugin::Frame::Cancel(cancel));
    }

    /// Nobody waits for this call any more. It is told so; its slot stays
    /// occupied until it returns or `timeouts.call` is over.
    pub(super) fn abandon(self: &Arc<Self>, id: u64) {
        let Some(started) = self.pending().get_mut(&id).map(|one| {
            one.reply = None;
            one.updates = None;
            one.call.started
        }) else {
            return;
        };
        self.cancel(id, "the caller is gone", None);
        let timeouts = self.manifest.timeouts;
        let session = self.clone();
        self.runtime.spawn(async move {
            let deadline = started + timeouts.call + timeouts.cancel_grace;
            tokio::select! {
                () = tokio::time::sleep_until((started + timeouts.call).into()) => {}
                () = session.over() => return,
            }
            session.cancel(id, "timeouts.call is over", Some(timeouts.cancel_grace));
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => session.overran(id),
                () = session.over() => {}
            }
        });
    }

    /// The call has used up `timeouts.call` and its grace: the process must go.
    pub(super) fn overran(&self, id: u64) {
        let Some(tool) = self.pending().get(&id).map(|one| one.call.tool.clone()) else { return };
        self.events.tell(Internal::CallOverran(self.generation, tool));
    }
}

/// The last 16 KiB of a text: of a traceback the end tells most.
fn last_part(text: &str) -> &str {
    &text[text.ceil_char_boundary(text.len().saturating_sub(16 * 1024))..]
}
