//! Serves `stockade.worker.v1.Worker`: hello, init, calls, shutdown.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use futures_util::Stream;
use stockade_proto::{
    PROTOCOL_VERSIONS, worker as wire,
    worker::{FromPlugin, ToPlugin, from_plugin, init_failed, init_update, to_plugin},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Blob, Context, Error, InitContext, Plugin, Tools,
    context::{CallControl, Outbox},
    fatal,
    host::Host,
    pool::Pool,
    tools::{self, Handler, Outcome},
};

/// The plugin's side of the protocol.
pub(crate) struct Worker<P> {
    shared: Arc<Shared<P>>,
}

struct Shared<P> {
    plugin: OnceLock<Arc<P>>,
    tools: HashMap<String, Handler<P>>,
    specs: Vec<wire::ToolSpec>,
    pool: Pool,
    host: Option<Host>,
    running: Mutex<HashMap<u64, Arc<CallControl>>>,
    stopped: Mutex<Option<oneshot::Sender<()>>>,
}

impl<P: Plugin> Worker<P> {
    /// The service, and what resolves once the shutdown hook has run.
    pub(crate) fn new(host: Option<Host>) -> (Self, oneshot::Receiver<()>) {
        let mut tools = Tools::new();
        P::tools(&mut tools);
        let (stopped, stop) = oneshot::channel();
        let specs = tools.list.iter().map(|tool| tool.spec.clone()).collect();
        let shared = Shared {
            plugin: OnceLock::new(),
            tools: tools.list.into_iter().map(|tool| (tool.spec.name, tool.handler)).collect(),
            specs,
            pool: Pool::default(),
            host,
            running: Mutex::default(),
            stopped: Mutex::new(Some(stopped)),
        };
        (Worker { shared: Arc::new(shared) }, stop)
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<P: Plugin> wire::worker_server::Worker for Worker<P> {
    type InitStream = Replies<wire::InitUpdate>;
    type CallsStream = Replies<FromPlugin>;

    async fn hello(&self, request: Request<wire::HelloRequest>) -> Reply<wire::HelloResponse> {
        let hello = request.into_inner();
        let common = PROTOCOL_VERSIONS.iter().rev().find(|v| hello.protocol_versions.contains(v));
        Ok(Response::new(wire::HelloResponse {
            protocol_version: common.copied().unwrap_or(0),
            supported_versions: PROTOCOL_VERSIONS.to_vec(),
            nonce: hello.nonce,
            sdk: concat!("rust/", env!("CARGO_PKG_VERSION")).to_owned(),
            features: Vec::new(),
        }))
    }

    async fn init(&self, request: Request<wire::InitRequest>) -> Reply<Self::InitStream> {
        let request = request.into_inner();
        let (updates, replies) = mpsc::unbounded_channel();
        let (progress, mut reports) = mpsc::unbounded_channel();
        let context = InitContext {
            name: request.plugin,
            directory: request.directory.into(),
            data_dir: request.data_dir.into(),
            concurrency: request.concurrency as usize,
            models: request.models.into_iter().map(|(name, path)| (name, path.into())).collect(),
            generation: request.generation,
            progress: Some(progress),
        };
        let forward = updates.clone();
        tokio::spawn(async move {
            while let Some((fraction, message)) = reports.recv().await {
                let progress = wire::InitProgress { message, fraction };
                let _ = forward.send(init_update::Update::Progress(progress));
            }
        });
        let shared = self.shared.clone();
        self.shared.pool.run(move || {
            let last = match start(&shared, &context) {
                Ok(()) => {
                    let ready = wire::InitReady { tools: shared.specs.clone() };
                    init_update::Update::Ready(ready)
                }
                Err(failed) => init_update::Update::Failed(failed),
            };
            let _ = updates.send(last);
        });
        let replies = UnboundedReceiverStream::new(replies)
            .map(|update| Ok(wire::InitUpdate { update: Some(update) }));
        Ok(Response::new(Box::pin(replies)))
    }

    async fn calls(&self, request: Request<Streaming<ToPlugin>>) -> Reply<Self::CallsStream> {
        let mut incoming = request.into_inner();
        let (outbox, replies) = mpsc::unbounded_channel();
        let shared = self.shared.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                if let Some(frame) = message.frame {
                    shared.take(frame, &outbox);
                }
            }
            shared.cancel_all();
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(replies).map(Ok))))
    }

    async fn shutdown(&self, _: Request<wire::ShutdownRequest>) -> Reply<wire::ShutdownResponse> {
        let shared = self.shared.clone();
        let (done, finished) = oneshot::channel();
        self.shared.pool.run(move || {
            if let Some(plugin) = shared.plugin.get() {
                let hook = std::panic::AssertUnwindSafe(|| plugin.shutdown());
                let _ = std::panic::catch_unwind(hook);
            }
            let _ = done.send(());
        });
        let _ = finished.await;
        let stopped = self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stopped) = stopped {
            let _ = stopped.send(());
        }
        Ok(Response::new(wire::ShutdownResponse {}))
    }
}

/// `init` and `validate`, a panic in either caught.
fn start<P: Plugin>(shared: &Shared<P>, context: &InitContext) -> Result<(), wire::InitFailed> {
    use init_failed::Kind;
    let failed = |kind: Kind, error: &Error| wire::InitFailed {
        kind: if error.missing_things().is_empty() { kind } else { Kind::Missing } as i32,
        error_type: error.kind().to_owned(),
        message: error.message().to_owned(),
        missing: error.missing_things().to_vec(),
        traceback: String::new(),
    };
    let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| P::init(context)))
        .unwrap_or_else(|panic| Err(tools::panicked(&*panic)));
    let plugin = made.map_err(|error| failed(Kind::Init, &error))?;
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| plugin.validate()))
        .unwrap_or_else(|panic| Err(tools::panicked(&*panic)))
        .map_err(|error| failed(Kind::Validate, &error))?;
    let _ = shared.plugin.set(Arc::new(plugin));
    Ok(())
}

impl<P: Plugin> Shared<P> {
    /// One frame from the supervisor. Never blocks: the reader answers pings
    /// and passes cancellations whatever the tools do.
    fn take(self: &Arc<Self>, frame: to_plugin::Frame, outbox: &Outbox) {
        match frame {
            to_plugin::Frame::Invoke(invoke) => self.invoke(invoke, outbox),
            to_plugin::Frame::Cancel(cancel) => {
                if let Some(control) = self.running().get(&cancel.call_id) {
                    control.cancel();
                }
            }
            to_plugin::Frame::Credit(credit) => {
                if let Some(control) = self.running().get(&credit.call_id) {
                    control.add_credit(credit.items.into());
                }
            }
            to_plugin::Frame::Ping(ping) => self.answer(ping, outbox),
        }
    }

    fn running(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Arc<CallControl>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cancel_all(&self) {
        for control in self.running().values() {
            control.cancel();
        }
    }

    /// A serving ping is answered from where blocking tools run, if there are
    /// any; the reader itself is where async tools run.
    fn answer(&self, ping: wire::Ping, outbox: &Outbox) {
        let pong = FromPlugin { frame: Some(from_plugin::Frame::Pong(wire::Pong { id: ping.id })) };
        let blocks = self.tools.values().any(|tool| matches!(tool, Handler::Blocking(_)));
        if ping.serving && blocks {
            let outbox = outbox.clone();
            self.pool.run(move || drop(outbox.send(pong)));
        } else {
            let _ = outbox.send(pong);
        }
    }

    fn invoke(self: &Arc<Self>, invoke: wire::Invoke, outbox: &Outbox) {
        let id = invoke.call_id;
        let (Some(plugin), Some(handler)) =
            (self.plugin.get().cloned(), self.tools.get(&invoke.tool).cloned())
        else {
            let error = Error::new("ToolNotFound", format!("no tool {:?}", invoke.tool));
            reply(id, Err(error), outbox);
            return;
        };
        let control = CallControl::new(invoke.credit.into());
        self.running().insert(id, control.clone());
        let context = Context {
            id,
            public_id: invoke.public_id.into(),
            workspace: invoke.workspace.into(),
            deadline: Instant::now() + Duration::from_millis(invoke.timeout_ms),
            control,
            outbox: outbox.clone(),
            host: self.host.clone(),
        };
        let args = invoke.args;
        let attachments: Vec<_> = invoke.attachments.into_iter().map(from_wire).collect();
        let shared = self.clone();
        let outbox = outbox.clone();
        match handler {
            Handler::Blocking(handler) => self.pool.run(move || {
                let outcome = fatal::during_call(id, || {
                    tools::run_blocking(&*handler, &plugin, &args, attachments, &context)
                });
                shared.finish(id, outcome, &outbox);
            }),
            Handler::Async(handler) => {
                let mut run =
                    Box::pin(tools::run_async(handler, plugin, args, attachments, context));
                let mut poll = move |context: &mut std::task::Context<'_>| {
                    fatal::during_call(id, || run.as_mut().poll(context))
                };
                // Short work is done at once; what waits becomes a task.
                let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
                if let Poll::Ready(outcome) = poll(&mut nobody) {
                    shared.finish(id, outcome, &outbox);
                    return;
                }
                tokio::spawn(async move {
                    let outcome = std::future::poll_fn(poll).await;
                    shared.finish(id, outcome, &outbox);
                });
            }
        }
    }

    fn finish(&self, id: u64, outcome: Outcome, outbox: &Outbox) {
        self.running().remove(&id);
        reply(id, outcome, outbox);
    }
}

fn reply(call_id: u64, outcome: Outcome, outbox: &Outbox) {
    let frame = match outcome {
        Ok((result, blobs)) => from_plugin::Frame::Done(wire::Done {
            call_id,
            result: result.into(),
            attachments: blobs.into_iter().map(to_wire).collect(),
        }),
        Err(error) => from_plugin::Frame::Failed(wire::Failed {
            call_id,
            error_type: error.kind().to_owned(),
            message: error.message().to_owned(),
            traceback: String::new(),
        }),
    };
    let _ = outbox.send(FromPlugin { frame: Some(frame) });
}

/// An attachment for the wire.
pub(crate) fn to_wire((name, blob): (String, Blob)) -> wire::Attachment {
    wire::Attachment {
        name,
        content_type: blob.content_type().to_owned(),
        data: blob.bytes().clone(),
    }
}

fn from_wire(attachment: wire::Attachment) -> (String, Blob) {
    (attachment.name, Blob::typed(attachment.data, attachment.content_type))
}
