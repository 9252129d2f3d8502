//! The calls of one process: who runs, who waits, who is answered. Shared by
//! every caller; nothing here waits for lifecycle work.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use stockade_proto::worker::{self as wire, invoke::Kind};
use tokio::{
    runtime::Handle as Runtime,
    sync::{Notify, Semaphore, mpsc},
};

use super::{
    attachment::convert,
    guard::Activity,
    mailbox::{Internal, Sink},
    pending::{CallInfo, Pending, Reply, Update},
    rate::Rate,
    registered::Registered,
    tool::Tools,
};
use crate::{
    capacity::{Account, Held, limits, swept},
    lifecycle::{Cause, CauseCode},
    manifest::{Manifest, OnError},
};

/// Items that a tool may send before the client has taken one.
pub(super) const CREDIT: u32 = limits::CREDIT as u32;
/// Progress reports that may wait for a client.
const PROGRESS_WAITING: u32 = limits::PROGRESS_WAITING as u32;
/// Frames that a process may leave unread, besides its calls.
const UNREAD: usize = 1024;

/// A service elsewhere that does not answer any more.
const UNREACHABLE: &str = "RemoteUnreachable";

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
    /// What it may make the daemon hold.
    pub account: Account,
    max_result: usize,
    outbox: mpsc::Sender<wire::ToPlugin>,
    pending: Mutex<HashMap<u64, Pending>>,
    pub(super) in_flight: AtomicU32,
    pub(super) queued: AtomicU32,
    pub(super) next_id: AtomicU64,
    pub(super) slots: Arc<Semaphore>,
    pub(super) closed: OnceLock<Cause>,
    over: Notify,
    pub(super) draining: AtomicBool,
    errors_in_row: AtomicU32,
    told_errors: AtomicBool,
    last_ping: AtomicU64,
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
    pub(super) outbox: mpsc::Sender<wire::ToPlugin>,
    pub(super) account: Account,
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
            account: parts.account,
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
            last_ping: AtomicU64::new(0),
            last_pong: AtomicU64::new(0),
            told_errors: AtomicBool::new(false),
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
        for mut one in pending {
            dead.push(one.call.clone());
            if let Some(reply) = one.reply.take() {
                let _ = reply.send(Reply::Closed(cause.clone()));
            }
        }
        drop(dead);
        self.over.notify_waiters();
    }

    /// The daemon ends before the process does: nobody else will answer its calls.
    pub fn leave(&self) {
        let text = "Still there at the end of the daemon, and killed with it. Raise \
                    shutdown_timeout in stockade.toml, or make its calls shorter.";
        self.close(&Cause::new(CauseCode::StopTimeout, text));
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

    /// Room in the queue of frames that a process has not read yet.
    pub(super) fn outbox_size(manifest: &Manifest) -> usize {
        UNREAD + 4 * manifest.concurrency as usize
    }

    pub(super) fn send(&self, frame: wire::to_plugin::Frame) {
        let sent = self.outbox.try_send(wire::ToPlugin { frame: Some(frame) });
        if matches!(sent, Err(mpsc::error::TrySendError::Full(_))) {
            let what = "it does not read its calls channel".to_owned();
            self.events.tell(Internal::Breach(self.generation, what));
        }
    }

    pub(super) fn send_ping(&self, id: u64, serving: bool) {
        self.last_ping.store(id, Ordering::Release);
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
                let size = size(&done.result, &done.attachments);
                let reply = match size > self.max_result {
                    true => Reply::TooLarge(size, self.max_result),
                    false => match self.account.charge(size) {
                        Ok(charge) => {
                            let attachments = convert(done.attachments);
                            Reply::Done(swept(done.result), attachments, Held::new(charge))
                        }
                        Err(why) => Reply::NoRoom(why),
                    },
                };
                self.errors_in_row.store(0, Ordering::Relaxed);
                Ok(self.finish(done.call_id, reply))
            }
            Frame::Failed(failed) => Ok(self.failed(failed)),
            Frame::Progress(progress) => {
                self.progress(progress);
                Ok(false)
            }
            Frame::Item(item) => self.item(item),
            Frame::Pong(pong) => {
                // The answer to a ping that was never sent answers nothing.
                if pong.id <= self.last_ping.load(Ordering::Acquire) {
                    self.last_pong.fetch_max(pong.id, Ordering::AcqRel);
                    self.ponged.notify_waiters();
                }
                Ok(false)
            }
        }
    }

    /// A tool raised. What belongs to no call in flight is not even looked at.
    fn failed(&self, mut failed: wire::Failed) -> bool {
        let Some(call) = self.pending().get(&failed.call_id).map(|one| one.call.clone()) else {
            return false;
        };
        limits::cut_to(&mut failed.error_type, limits::NAME);
        limits::cut_to(&mut failed.message, limits::ERROR_TEXT);
        limits::cut_to(&mut failed.traceback, limits::TRACEBACK);
        let reply = Reply::Failed(failed.error_type.clone(), failed.message.clone());
        // The caller first: what follows may end the process.
        let known = self.finish(failed.call_id, reply);
        self.keep_traceback(&failed, &call.tool);
        // What else was registered may fail as it likes, its answer is none; and no
        // plugin makes another one FAILED by what it asks of it.
        let own = call.kind == Kind::Tool && call.chain.is_empty();
        let remote = self.manifest.remote().is_some();
        if own || (remote && failed.error_type == UNREACHABLE) {
            self.count_error(&failed, &call.tool);
        }
        known
    }

    fn finish(&self, id: u64, reply: Reply) -> bool {
        let Some(mut pending) = self.pending().remove(&id) else { return false };
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        if let Some(waiting) = pending.reply.take() {
            let _ = waiting.send(reply);
        }
        drop(pending);
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
        let traceback = failed.traceback.clone();
        self.events.tell(Internal::Raised(self.generation, tool.clone(), traceback.clone(), 0));
        *self.last_traceback.lock().unwrap_or_else(PoisonError::into_inner) = traceback;
    }

    /// Where a tool raised last.
    pub(super) fn last_traceback(&self) -> String {
        self.last_traceback.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What a tool raises counts; what is the caller's doing does not.
    fn count_error(&self, failed: &wire::Failed, tool: &Arc<str>) {
        let others = ["InvalidArguments", "InvalidResult", "Cancelled", "ToolNotFound"];
        if others.contains(&failed.error_type.as_str()) {
            return;
        }
        let row = self.errors_in_row.fetch_add(1, Ordering::Relaxed) + 1;
        let policy = &self.manifest.restart;
        let limit = match policy.on_error {
            OnError::Fail => 1,
            OnError::Count => policy.max_errors,
        };
        if limit > 0 && row >= limit && !self.told_errors.swap(true, Ordering::Relaxed) {
            let tool = Some(tool.to_string());
            let last = format!("{}: {}", failed.error_type, failed.message);
            self.events.tell(Internal::ToolErrors(self.generation, row, tool, last));
        }
    }

    fn progress(&self, progress: wire::Progress) {
        let message = limits::cut(&progress.message, limits::ERROR_TEXT / 4);
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
        let size = size(&item.value, &item.attachments);
        let mut pending = self.pending();
        let Some(one) = pending.get_mut(&item.call_id) else { return Ok(false) };
        if one.items_allowed == 0 {
            return Err(format!("tool {} sent items beyond its credit", one.call.tool));
        }
        if size > self.max_result {
            drop(pending);
            self.cancel(item.call_id, "an item is too large", None);
            return Ok(self.finish(item.call_id, Reply::TooLarge(size, self.max_result)));
        }
        one.items_allowed -= 1;
        if let Some((updates, _)) = &one.updates {
            // Those that found no room fail the call, not the process.
            let charge = match self.account.charge(size) {
                Ok(charge) => charge,
                Err(why) => {
                    drop(pending);
                    self.cancel(item.call_id, "there is no room for its items", None);
                    return Ok(self.finish(item.call_id, Reply::NoRoom(why)));
                }
            };
            let attachments = convert(item.attachments);
            let _ = updates.send(Update::Item(swept(item.value), attachments, Held::new(charge)));
        } else if one.reply.is_some() && one.items_allowed <= CREDIT / 2 {
            // Nobody wants the items of this call: the tool may go on, in few words.
            let items = CREDIT - one.items_allowed;
            one.items_allowed = CREDIT;
            drop(pending);
            self.send_credit(item.call_id, items);
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
    /// occupied until it returns or `timeouts.call` is over, not counting for how long its
    /// client has held it up.
    pub(super) fn abandon(self: &Arc<Self>, id: u64, held_up: Duration) {
        let Some((started, fate)) = self.pending().get_mut(&id).map(|one| {
            one.reply = None;
            one.updates = None;
            let fate = one.fate();
            let _ = fate.unwanted.set(());
            (one.call.started + held_up, fate)
        }) else {
            return;
        };
        self.cancel(id, "the caller is gone", None);
        let timeouts = self.manifest.timeouts;
        let session = self.clone();
        // Ends with the call: who hangs up leaves nothing behind.
        self.runtime.spawn(async move {
            let deadline = started + timeouts.call + timeouts.cancel_grace;
            tokio::select! {
                () = tokio::time::sleep_until((started + timeouts.call).into()) => {}
                _ = fate.ended.wait() => return,
                () = session.over() => return,
            }
            session.cancel(id, "timeouts.call is over", Some(timeouts.cancel_grace));
            tokio::select! {
                () = tokio::time::sleep_until(deadline.into()) => session.overran(id),
                _ = fate.ended.wait() => {}
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

/// Bytes of a result.
fn size(result: &Bytes, attachments: &[wire::Attachment]) -> usize {
    result.len() + attachments.iter().map(|blob| blob.data.len()).sum::<usize>()
}
