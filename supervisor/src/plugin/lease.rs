//! A slot of a process: waited for in a bounded queue, used for one call.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use stockade_proto::worker as wire;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::{
    pending::{CallInfo, Invocation, Pending, Reply, Update},
    session::{CREDIT, Session},
};
use crate::lifecycle::{Cause, CauseCode};

/// Why a call got no slot.
#[derive(Debug)]
pub enum LeaseError {
    /// As many wait as may.
    QueueFull,
    /// It waited as long as it may.
    QueueTimeout,
    /// The session is closed or drains.
    Closed(Option<Cause>),
}

impl Session {
    /// Takes a slot that is free now.
    pub fn try_lease(self: &Arc<Self>) -> Option<Lease> {
        if self.draining.load(Ordering::Acquire) || self.closed.get().is_some() {
            return None;
        }
        let permit = self.slots.clone().try_acquire_owned().ok()?;
        Some(Lease { session: self.clone(), permit })
    }

    /// Takes a slot, waiting in the bounded queue for one.
    ///
    /// # Errors
    /// The queue is full, the wait too long, or the session over.
    pub async fn lease(self: &Arc<Self>, patience: Duration) -> Result<Lease, LeaseError> {
        if let Some(lease) = self.try_lease() {
            return Ok(lease);
        }
        if self.draining.load(Ordering::Acquire) || self.closed.get().is_some() {
            return Err(LeaseError::Closed(self.closed.get().cloned()));
        }
        let queue = self.manifest.queue;
        let _place = Place::take(self, queue.size).ok_or(LeaseError::QueueFull)?;
        let patience = patience.min(queue.timeout);
        match tokio::time::timeout(patience, self.slots.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(Lease { session: self.clone(), permit }),
            Ok(Err(_)) => Err(LeaseError::Closed(self.closed.get().cloned())),
            Err(_) => Err(LeaseError::QueueTimeout),
        }
    }
}

/// A place in the queue, given back when dropped.
struct Place<'s>(&'s Session);

impl<'s> Place<'s> {
    fn take(session: &'s Session, size: u32) -> Option<Self> {
        let taken = session.queued.fetch_add(1, Ordering::AcqRel);
        let place = Place(session);
        (taken < size).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A slot of a process.
#[derive(Debug)]
pub struct Lease {
    session: Arc<Session>,
    permit: OwnedSemaphorePermit,
}

impl Lease {
    /// Sends the call. With `updates`, progress and items are wanted.
    ///
    /// # Errors
    /// The session was closed in between; the plugin has not seen the call.
    pub fn invoke(self, call: Invocation, updates: bool) -> Result<Running, Cause> {
        let session = self.session;
        let id = session.next_id.fetch_add(1, Ordering::Relaxed);
        let public_id: Arc<str> = format!("{}-{}-{id}", session.plugin, session.generation).into();
        let (reply, answer) = oneshot::channel();
        let (sender, receiver) = if updates {
            let (sender, receiver) = mpsc::unbounded_channel();
            (Some((sender, Arc::new(AtomicU32::new(0)))), Some(receiver))
        } else {
            (None, None)
        };
        let waiting = sender.as_ref().map(|(_, waiting)| waiting.clone());
        let started = Instant::now();
        let pending = Pending {
            reply: Some(reply),
            updates: sender,
            items_allowed: CREDIT,
            call: CallInfo {
                id,
                public_id: public_id.clone(),
                tool: call.tool.clone(),
                args: call.args.clone(),
                attachments: call.attachments.iter().map(|blob| blob.data.clone()).collect(),
                started,
                deadline: started + call.timeout,
                workspace: call.workspace.clone(),
                chain: call.chain,
                enabled: call.enabled,
                kind: call.kind,
            },
            fate: None,
            _held: call.held,
            _permit: self.permit,
        };
        {
            let mut all = session.pending();
            // Under the lock, so that `close` sees either the entry or us its mark.
            if let Some(cause) = session.closed.get() {
                return Err(cause.clone());
            }
            all.insert(id, pending);
            session.in_flight.fetch_add(1, Ordering::Relaxed);
        }
        session.activity.touch();
        session.send(wire::to_plugin::Frame::Invoke(wire::Invoke {
            call_id: id,
            tool: call.tool.to_string(),
            args: call.args,
            attachments: call.attachments.into_iter().map(wire::Attachment::from).collect(),
            timeout_ms: call.timeout.as_millis() as u64,
            credit: CREDIT,
            workspace: call.workspace.to_string(),
            public_id: public_id.to_string(),
            kind: call.kind as i32,
            events: call.events,
        }));
        Ok(Running {
            session,
            id,
            public_id,
            started,
            answer,
            updates: receiver,
            waiting,
            over: false,
            held_up: Duration::ZERO,
            paused: None,
        })
    }
}

/// A call that the process works on. Dropping it cancels the call.
#[derive(Debug)]
pub struct Running {
    session: Arc<Session>,
    id: u64,
    /// The id that clients and logs know.
    pub public_id: Arc<str>,
    /// When it was sent.
    pub started: Instant,
    answer: oneshot::Receiver<Reply>,
    updates: Option<mpsc::UnboundedReceiver<Update>>,
    waiting: Option<Arc<AtomicU32>>,
    over: bool,
    /// For so long the client has held up the tool, not counting since `paused`.
    held_up: Duration,
    paused: Option<Instant>,
}

impl Running {
    /// The tool waits for its client from now on; that is not its own time.
    pub fn pause(&mut self) {
        self.paused = Some(Instant::now());
    }

    /// It goes on; how long it has waited.
    pub fn resume(&mut self) -> Duration {
        let waited = self.paused.take().map(|since| since.elapsed()).unwrap_or_default();
        self.held_up += waited;
        waited
    }

    /// The answer. Cancel-safe.
    pub async fn reply(&mut self) -> Reply {
        let reply = (&mut self.answer).await;
        self.over = true;
        reply.unwrap_or_else(|_| {
            let cause = self.session.closed.get().cloned();
            Reply::Closed(cause.unwrap_or_else(|| {
                Cause::new(CauseCode::ProtocolError, "The session was dropped.")
            }))
        })
    }

    /// The next update; None when no more can come or none are wanted.
    /// Cancel-safe.
    pub async fn update(&mut self) -> Option<Update> {
        let update = self.updates.as_mut()?.recv().await;
        self.taken(update.as_ref());
        update
    }

    fn taken(&self, update: Option<&Update>) {
        match update {
            Some(Update::Item(..)) => {
                let allowed = self.session.pending().get_mut(&self.id).map(|one| {
                    one.items_allowed += 1;
                });
                if allowed.is_some() {
                    self.session.send_credit(self.id, 1);
                }
            }
            Some(Update::Progress(..)) => {
                if let Some(waiting) = &self.waiting {
                    waiting.fetch_sub(1, Ordering::Relaxed);
                }
            }
            None => {}
        }
    }

    /// Tells the tool that its time is up; its process is killed after `grace`.
    pub fn time_is_up(&self, grace: Duration) {
        self.session.cancel(self.id, "timeouts.call is over", Some(grace));
    }

    /// It did not stop: its process must.
    pub fn overran(&self) {
        self.session.overran(self.id);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.over {
            self.resume();
            self.session.abandon(self.id, self.held_up);
        }
    }
}
