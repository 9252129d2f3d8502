//! Serves `stockade.worker.v1.Worker`: hello, init, calls, shutdown.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::Stream;
use stockade_proto::{
    PROTOCOL_VERSIONS, worker as wire,
    worker::{FromPlugin, ToPlugin, init_update, to_plugin},
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Blob, Context, InitContext,
    context::{CallControl, Outbox},
    guest::{self, Call, Guest, Pong, Reply as CallReply, Running, Start},
    host::Link,
};

/// The plugin's side of the protocol.
pub(crate) struct Worker<G> {
    shared: Arc<Shared<G>>,
}

struct Shared<G> {
    guest: Arc<G>,
    link: Option<Link>,
    running: Arc<Running>,
    stopped: Mutex<Option<oneshot::Sender<()>>>,
}

impl<G: Guest> Worker<G> {
    /// The service, and what resolves once the shutdown hook has run.
    pub(crate) fn new(guest: Arc<G>, link: Option<Link>) -> (Self, oneshot::Receiver<()>) {
        let (stopped, stop) = oneshot::channel();
        let stopped = Mutex::new(Some(stopped));
        let shared = Shared { guest, link, running: Arc::default(), stopped };
        (Worker { shared: Arc::new(shared) }, stop)
    }
}

type Reply<T> = Result<Response<T>, Status>;
type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl<G: Guest> wire::worker_server::Worker for Worker<G> {
    type InitStream = Replies<wire::InitUpdate>;
    type CallsStream = Replies<FromPlugin>;

    async fn hello(&self, request: Request<wire::HelloRequest>) -> Reply<wire::HelloResponse> {
        let hello = request.into_inner();
        let common = PROTOCOL_VERSIONS.iter().rev().find(|v| hello.protocol_versions.contains(v));
        Ok(Response::new(wire::HelloResponse {
            protocol_version: common.copied().unwrap_or(0),
            supported_versions: PROTOCOL_VERSIONS.to_vec(),
            nonce: hello.nonce,
            sdk: G::SDK.to_owned(),
            features: Vec::new(),
        }))
    }

    async fn init(&self, request: Request<wire::InitRequest>) -> Reply<Self::InitStream> {
        let request = request.into_inner();
        let (updates, replies) = mpsc::unbounded_channel();
        let (progress, reports) = mpsc::unbounded_channel();
        let timeout = Duration::from_millis(request.timeout_ms);
        guest::allow(request.max_payload);
        tokio::spawn(attend(self.shared.guest.clone(), reports, updates.clone(), timeout));
        let context = InitContext {
            name: request.plugin,
            directory: request.directory.into(),
            data_dir: request.data_dir.into(),
            concurrency: request.concurrency as usize,
            models: request.models.into_iter().map(|(name, path)| (name, path.into())).collect(),
            generation: request.generation,
            progress: Some(progress),
            link: self.shared.link.clone(),
        };
        self.shared.guest.start(Start {
            context,
            entry: request.entry,
            packages: request.packages,
            check_only: request.check_only,
            updates,
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
            shared.running.cancel_all();
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(replies).map(Ok))))
    }

    async fn shutdown(&self, _: Request<wire::ShutdownRequest>) -> Reply<wire::ShutdownResponse> {
        let (done, finished) = oneshot::channel();
        self.shared.guest.stop(done);
        let _ = finished.await;
        let stopped = self.shared.stopped.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(stopped) = stopped {
            let _ = stopped.send(());
        }
        Ok(Response::new(wire::ShutdownResponse {}))
    }
}

/// Passes progress on while the plugin loads. Shortly before its time is up the
/// stacks are told: they say where it hangs.
async fn attend<G: Guest>(
    guest: Arc<G>,
    mut reports: mpsc::UnboundedReceiver<(f64, String)>,
    updates: mpsc::UnboundedSender<init_update::Update>,
    timeout: Duration,
) {
    let mut told = timeout.is_zero();
    loop {
        tokio::select! {
            report = reports.recv() => {
                let Some((fraction, message)) = report else { return };
                let progress = wire::InitProgress { message, fraction };
                let _ = updates.send(init_update::Update::Progress(progress));
            }
            // It has been answered.
            () = updates.closed() => return,
            () = tokio::time::sleep(timeout.mul_f64(0.8)), if !told => {
                told = true;
                guest.last_words();
            }
        }
    }
}

impl<G: Guest> Shared<G> {
    /// One frame from the supervisor. Never blocks: the reader answers pings
    /// and passes cancellations whatever the tools do.
    fn take(self: &Arc<Self>, frame: to_plugin::Frame, outbox: &Outbox) {
        match frame {
            to_plugin::Frame::Invoke(invoke) => self.invoke(invoke, outbox),
            to_plugin::Frame::Cancel(cancel) => self.cancel(&cancel),
            to_plugin::Frame::Credit(credit) => {
                if let Some(control) = self.running.get(credit.call_id) {
                    control.add_credit(credit.items.into());
                }
            }
            to_plugin::Frame::Ping(ping) => {
                let pong = Pong { id: ping.id, outbox: outbox.clone() };
                if ping.serving { self.guest.ping(pong) } else { pong.send() }
            }
        }
    }

    fn cancel(self: &Arc<Self>, cancel: &wire::Cancel) {
        let Some(control) = self.running.get(cancel.call_id) else { return };
        control.cancel();
        if cancel.kill_after_ms == 0 {
            return;
        }
        let (shared, id) = (self.clone(), cancel.call_id);
        let grace = Duration::from_millis(cancel.kill_after_ms);
        tokio::spawn(async move {
            tokio::time::sleep(grace.mul_f64(0.6)).await;
            if shared.running.get(id).is_some() {
                shared.guest.last_words();
            }
        });
    }

    fn invoke(&self, invoke: wire::Invoke, outbox: &Outbox) {
        let id = invoke.call_id;
        let control = CallControl::new(invoke.credit.into());
        self.running.insert(id, control.clone());
        let kind = invoke.kind();
        self.guest.invoke(Call {
            kind,
            events: invoke.events,
            tool: invoke.tool,
            args: invoke.args,
            attachments: invoke.attachments.into_iter().map(from_wire).collect(),
            context: Context {
                id,
                public_id: invoke.public_id.into(),
                workspace: invoke.workspace.into(),
                deadline: Instant::now() + Duration::from_millis(invoke.timeout_ms),
                control,
                outbox: outbox.clone(),
                link: self.link.clone(),
            },
            reply: CallReply {
                id,
                running: self.running.clone(),
                outbox: outbox.clone(),
                sent: false,
            },
        });
    }
}

fn from_wire(attachment: wire::Attachment) -> (String, Blob) {
    (attachment.name, Blob::typed(attachment.data, attachment.content_type))
}
