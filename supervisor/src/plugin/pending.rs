//! One call in flight, from both ends: what is sent, what is kept, what comes back.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::AtomicU32},
    time::{Duration, Instant},
};

use bytes::Bytes;
use stockade_proto::worker::{self as wire, invoke::Kind};
use tokio::sync::{OwnedSemaphorePermit, SetOnce, mpsc, oneshot};

use super::{attachment::Attachment, scope::Chain};
use crate::{
    capacity::{Exhausted, Held},
    lifecycle::Cause,
};

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
    /// What it takes of the daemon's budget.
    pub held: Held,
}

/// What a process answered.
#[derive(Debug)]
pub enum Reply {
    /// JSON text and attachments, and what they take of the budget.
    Done(Bytes, Vec<Attachment>, Held),
    /// There was no room for the result.
    NoRoom(Exhausted),
    /// The tool raised: type and message.
    Failed(String, String),
    /// The result, or an item, is this many bytes long, more than this.
    TooLarge(usize, usize),
    /// The process is gone (or going), for this cause.
    Closed(Cause),
}

/// What comes before the answer.
#[derive(Debug)]
pub enum Update {
    /// Fraction 0 to 1 and a message.
    Progress(f64, String),
    /// One item: JSON text and attachments, and what they take of the budget.
    Item(Bytes, Vec<Attachment>, Held),
}

/// A call in flight, as the session keeps it.
pub(super) struct Pending {
    pub(super) reply: Option<oneshot::Sender<Reply>>,
    pub(super) updates: Option<(mpsc::UnboundedSender<Update>, Arc<AtomicU32>)>,
    pub(super) items_allowed: u32,
    pub(super) call: CallInfo,
    /// Once somebody wants to know it.
    pub(super) fate: Option<Arc<Fate>>,
    pub(super) _held: Held,
    pub(super) _permit: OwnedSemaphorePermit,
}

/// What becomes of a call, for whom it concerns besides its caller.
#[derive(Debug, Default)]
pub(super) struct Fate {
    /// Nobody waits for its answer any more, or it has been given.
    pub(super) unwanted: SetOnce<()>,
    /// It has returned.
    pub(super) ended: SetOnce<()>,
}

impl Pending {
    pub(super) fn fate(&mut self) -> Arc<Fate> {
        self.fate.get_or_insert_default().clone()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(fate) = &self.fate {
            let _ = fate.unwanted.set(());
            let _ = fate.ended.set(());
        }
    }
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
