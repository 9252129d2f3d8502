//! For hosts of plugins in other languages: the protocol without the typed
//! tools. [`serve`] speaks it, a [`Guest`] runs the plugin's code.
//!
//! A Rust plugin does not need this; it implements [`crate::Plugin`].

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use stockade_proto::limits;
use stockade_proto::{
    inherited,
    worker::{self as wire, FromPlugin, from_plugin, init_update, worker_server::WorkerServer},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    Blob, Context, Error, InitContext, adopt,
    context::{CallControl, Outbox},
    host::Link,
    worker::Worker,
};

pub use crate::{
    adopt::{close_forked, close_on_exec},
    blob::{ESCAPED, attach},
    fatal::{during_call, exit_now, install as install_fatal_handler, raise_if_handled},
};
pub use crate::{log::write as log, pool::Pool};
pub use stockade_proto::worker::{
    Condition, Effect, Event as WireEvent, EventBatch, EventHandler, InitReady, Provider,
    SimulationConfig, ToolSpec, init_failed::Kind, invoke::Kind as CallKind,
};

/// Runs the code of one plugin. Every method is called on the thread that reads
/// the channel: it must hand the work to another thread and return.
pub trait Guest: Send + Sync + 'static {
    /// The name and version of the SDK, for instance `python/0.1.0`.
    const SDK: &'static str;

    /// Loads the plugin.
    fn start(self: &Arc<Self>, start: Start);

    /// Runs one call.
    fn invoke(self: &Arc<Self>, call: Call);

    /// Answers from where tools run.
    fn ping(self: &Arc<Self>, pong: Pong);

    /// Runs the plugin's last hook, then drops `done`.
    fn stop(self: &Arc<Self>, done: oneshot::Sender<()>);

    /// The process is about to be killed for a deadline: the stacks of its
    /// threads, to the notice pipe.
    fn last_words(&self) {}
}

/// Everything to start with, and where to answer.
#[derive(Debug)]
pub struct Start {
    /// What `init` may know.
    pub context: InitContext,
    /// `module:Class`.
    pub entry: String,
    /// Must be importable before the plugin's code runs.
    pub packages: Vec<String>,
    /// Look for the packages and run nothing: something else is missing.
    pub check_only: bool,
    pub(crate) updates: mpsc::UnboundedSender<init_update::Update>,
}

/// Why a start did not succeed.
#[derive(Debug)]
pub struct Failure {
    /// Which step.
    pub kind: Kind,
    /// What it raised, or what is missing.
    pub error: Error,
    /// Folders whose change may bring what is missing.
    pub watch: Vec<String>,
}

impl Start {
    /// The plugin serves these tools and whatever else it registers.
    pub fn ready(self, ready: InitReady) {
        let _ = self.updates.send(init_update::Update::Ready(ready));
    }

    /// It does not.
    pub fn failed(self, failure: Failure) {
        let Failure { kind, error, watch } = failure;
        let kind = if error.missing_things().is_empty() { kind } else { Kind::Missing };
        let _ = self.updates.send(init_update::Update::Failed(wire::InitFailed {
            kind: kind as i32,
            error_type: limits::cut(error.kind(), limits::NAME),
            message: limits::cut(error.message(), limits::ERROR_TEXT),
            missing: error.missing_things().iter().take(limits::LIST).cloned().collect(),
            traceback: limits::cut(error.traceback(), limits::TRACEBACK),
            watch: watch.into_iter().take(limits::LIST).collect(),
        }));
    }
}

/// One call and where its outcome goes.
#[derive(Debug)]
pub struct Call {
    /// A tool's, or of what else was registered.
    pub kind: CallKind,
    /// Of an event handler.
    pub events: Option<EventBatch>,
    /// The tool's name.
    pub tool: String,
    /// JSON object text, empty = no arguments.
    pub args: Bytes,
    /// Binary arguments by name.
    pub attachments: Vec<(String, Blob)>,
    /// What the tool may know and do.
    pub context: Context,
    /// Takes the outcome.
    pub reply: Reply,
}

/// JSON text and the attachments that it names.
pub type Parts = (Vec<u8>, Vec<(String, Blob)>);

/// Takes the outcome of one call.
#[derive(Debug)]
pub struct Reply {
    pub(crate) id: u64,
    pub(crate) running: Arc<Running>,
    pub(crate) outbox: Outbox,
    pub(crate) sent: bool,
}

/// Bytes of a result or an item that the supervisor takes; what is much larger would end
/// the process. A supervisor that does not say it takes so many.
static MAX_PAYLOAD: AtomicUsize = AtomicUsize::new(63 << 20);

/// The supervisor reads results of so many bytes; 0 = it does not say.
pub(crate) fn allow(bytes: u64) {
    if bytes > 0 {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        MAX_PAYLOAD.store(bytes, Ordering::Relaxed);
    }
}

/// What a result consists of, refused when the supervisor does not take it.
pub(crate) fn check_parts((text, blobs): &Parts) -> crate::Result<()> {
    let size = text.len() + blobs.iter().map(|(_, blob)| blob.len()).sum::<usize>();
    let most = MAX_PAYLOAD.load(Ordering::Relaxed);
    let long = |name: &str, blob: &Blob| {
        name.len() > limits::NAME || blob.content_type().len() > limits::CONTENT_TYPE
    };
    let text = if size > most {
        format!(
            "The tool returned {size} bytes, more than max_result allows ({most}). Return less, \
             or raise max_result in stockade.toml."
        )
    } else if blobs.len() > limits::ATTACHMENTS {
        format!(
            "The tool returned {} attachments; {} are allowed. Put several into one, or send them \
             as the items of a stream.",
            blobs.len(),
            limits::ATTACHMENTS
        )
    } else if let Some((name, _)) = blobs.iter().find(|(name, blob)| long(name, blob)) {
        format!(
            "The tool returned an attachment ({}) whose name has more than {} bytes, or whose \
             content type has more than {}.",
            limits::cut(name, limits::NAME),
            limits::NAME,
            limits::CONTENT_TYPE
        )
    } else {
        return Ok(());
    };
    Err(Error::new("InvalidResult", text))
}

impl Reply {
    /// The call's number on this channel.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Sends the outcome.
    pub fn send(mut self, outcome: crate::Result<Parts>) {
        self.answer(outcome);
    }

    fn answer(&mut self, outcome: crate::Result<Parts>) {
        self.sent = true;
        self.running.remove(self.id);
        let call_id = self.id;
        let outcome = outcome.and_then(|parts| check_parts(&parts).map(|()| parts));
        let frame = match outcome {
            Ok((result, blobs)) => from_plugin::Frame::Done(wire::Done {
                call_id,
                result: result.into(),
                attachments: blobs.into_iter().map(to_wire).collect(),
            }),
            Err(error) => from_plugin::Frame::Failed(wire::Failed {
                call_id,
                error_type: limits::cut(error.kind(), limits::NAME),
                message: limits::cut(error.message(), limits::ERROR_TEXT),
                traceback: limits::cut(error.traceback(), limits::TRACEBACK),
            }),
        };
        let _ = self.outbox.send(FromPlugin { frame: Some(frame) });
    }
}

impl Drop for Reply {
    /// A host that lost its way owes an answer all the same.
    fn drop(&mut self) {
        if !self.sent {
            self.answer(Err(Error::new("Panic", "the plugin's host dropped the call")));
        }
    }
}

/// Answers one ping.
#[derive(Debug)]
pub struct Pong {
    pub(crate) id: u64,
    pub(crate) outbox: Outbox,
}

impl Pong {
    /// Sends the answer.
    pub fn send(self) {
        let frame = from_plugin::Frame::Pong(wire::Pong { id: self.id });
        let _ = self.outbox.send(FromPlugin { frame: Some(frame) });
    }
}

/// The calls in progress, for cancellation.
#[derive(Debug, Default)]
pub(crate) struct Running(Mutex<HashMap<u64, Arc<CallControl>>>);

impl Running {
    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<CallControl>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn insert(&self, id: u64, control: Arc<CallControl>) {
        self.lock().insert(id, control);
    }

    fn remove(&self, id: u64) {
        self.lock().remove(&id);
    }

    pub(crate) fn get(&self, id: u64) -> Option<Arc<CallControl>> {
        self.lock().get(&id).cloned()
    }

    pub(crate) fn cancel_all(&self) {
        let all: Vec<_> = self.lock().values().cloned().collect();
        for control in all {
            control.cancel();
        }
    }
}

/// An attachment for the wire.
pub(crate) fn to_wire((name, blob): (String, Blob)) -> wire::Attachment {
    wire::Attachment {
        name,
        content_type: blob.content_type().to_owned(),
        data: blob.bytes().clone(),
    }
}

/// Serves the inherited channels on this thread until the supervisor is gone or
/// has asked to stop.
///
/// # Errors
/// The channels cannot be adopted, or the runtime cannot start.
pub fn serve<G: Guest>(guest: Arc<G>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let calls = adopt::calls()?;
        let link = Link::new(tokio::runtime::Handle::current());
        let (worker, stopped) = Worker::new(guest, Some(link));
        let service = WorkerServer::new(worker)
            .max_decoding_message_size(inherited::MAX_MESSAGE)
            .max_encoding_message_size(inherited::MAX_MESSAGE);
        // Not on the runtime's own task, which is only woken by way of one look more at
        // the descriptors.
        let serving = tokio::spawn(inherited::serve(calls, service));
        tokio::select! {
            // The supervisor is gone, or it closed the channel.
            _ = serving => {}
            // The shutdown hook has run; let its answer reach the supervisor.
            Ok(()) = stopped => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
        Ok(())
    })
}
