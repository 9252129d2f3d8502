//! `stockade.worker.v1` of a service somewhere else: what local plugins speak over
//! their descriptor, over TLS.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use http::uri::{Authority, Scheme};
use stockade_plugin_sdk::{
    Blob, Context, Error,
    guest::{Call, InitReady, Parts},
};
use stockade_proto::{
    PROTOCOL_VERSIONS,
    inherited::{Channel, MAX_MESSAGE},
    limits,
    worker::{self as wire, FromPlugin, ToPlugin, worker_client::WorkerClient},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status, Streaming, metadata::MetadataMap};

use crate::{
    config::Config,
    connect::{Place, unreachable},
    sign,
};

/// Items that the service may send before it has leave for more.
const CREDIT: u32 = 16;

/// One service over gRPC.
pub(crate) struct Grpc {
    config: Config,
    place: Place,
    line: tokio::sync::Mutex<Option<Line>>,
    next: AtomicU64,
}

/// A connection: where frames go, and who waits for answers.
#[derive(Clone)]
struct Line {
    frames: mpsc::Sender<ToPlugin>,
    waiting: Arc<Waiting>,
}

type Answer = Result<Parts, Error>;

/// What comes of a call, in order.
enum Step {
    Item(Parts),
    Answer(Answer),
}

struct Pending {
    steps: mpsc::UnboundedSender<Step>,
    context: Context,
}

/// None once the connection is gone.
#[derive(Default)]
struct Waiting(Mutex<Option<HashMap<u64, Pending>>>);

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<HashMap<u64, Pending>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn told(status: &Status) -> Error {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::Unknown => unreachable(status.message()),
        code => Error::new("RemoteError", format!("{code:?}: {}", status.message())),
    }
}

impl Grpc {
    pub(crate) fn new(config: Config) -> Result<Self, Error> {
        let place = Place::of(&config, b"h2")?;
        Ok(Grpc { config, place, line: Default::default(), next: AtomicU64::new(1) })
    }

    /// What it offers.
    pub(crate) async fn describe(&self) -> Result<InitReady, Error> {
        let (line, ready) = self.connect().await?;
        *self.line.lock().await = Some(line);
        Ok(ready)
    }

    /// Passes a call on.
    pub(crate) async fn call(&self, call: &Call, timeout_ms: u64) -> Answer {
        let line = self.line().await?;
        let call_id = self.next.fetch_add(1, Ordering::Relaxed);
        let (steps, mut taken) = mpsc::unbounded_channel();
        match line.waiting.lock().as_mut() {
            Some(waiting) => {
                waiting.insert(call_id, Pending { steps, context: call.context.clone() });
            }
            None => return Err(gone()),
        }
        let cancels = Cancels { line: line.clone(), call_id };
        let attachments = call.attachments.iter().map(|(name, blob)| wire::Attachment {
            name: name.clone(),
            content_type: blob.content_type().to_owned(),
            data: blob.bytes().clone(),
        });
        let invoke = wire::Invoke {
            call_id,
            tool: call.tool.clone(),
            args: call.args.clone(),
            attachments: attachments.collect(),
            timeout_ms,
            credit: CREDIT,
            workspace: call.context.workspace().to_owned(),
            public_id: call.context.call_id().to_owned(),
            kind: call.kind as i32,
            events: call.events.clone(),
        };
        let frame = ToPlugin { frame: Some(wire::to_plugin::Frame::Invoke(invoke)) };
        line.frames.send(frame).await.map_err(|_| gone())?;
        while let Some(step) = taken.recv().await {
            match step {
                Step::Item(parts) => {
                    // It waits for its client; the service may send the next after it.
                    let context = call.context.clone();
                    let emitted = tokio::task::spawn_blocking(move || context.emit_parts(parts));
                    emitted.await.map_err(|_| gone())??;
                    let credit = wire::Credit { call_id, items: 1 };
                    let frame = wire::to_plugin::Frame::Credit(credit);
                    let _ = line.frames.send(ToPlugin { frame: Some(frame) }).await;
                }
                Step::Answer(answer) => {
                    drop(cancels);
                    return answer;
                }
            }
        }
        Err(gone())
    }

    /// It can be reached.
    pub(crate) async fn reach(&self) -> Result<(), Error> {
        self.line().await.map(drop)
    }

    async fn line(&self) -> Result<Line, Error> {
        let mut line = self.line.lock().await;
        if let Some(open) = line.as_ref().filter(|line| !line.frames.is_closed()) {
            return Ok(open.clone());
        }
        let (fresh, _) = self.connect().await?;
        *line = Some(fresh.clone());
        Ok(fresh)
    }

    fn signed<T>(&self, message: T) -> Request<T> {
        let headers = sign::headers(&self.config.plugin, self.config.secret.as_deref(), b"");
        let mut request = Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(headers);
        request
    }

    /// Connects and shakes hands: Hello, Init, Calls.
    async fn connect(&self) -> Result<(Line, InitReady), Error> {
        let stream = self.place.connect().await?;
        let uri = &self.place.uri;
        let scheme = uri.scheme().cloned().unwrap_or(Scheme::HTTP);
        let authority = uri.authority().cloned();
        let authority = authority.unwrap_or_else(|| Authority::from_static("remote"));
        let (channel, connection) =
            Channel::connect_to(stream, scheme, authority).await.map_err(unreachable)?;
        tokio::spawn(connection);
        let mut client = WorkerClient::new(channel)
            .max_decoding_message_size(limits::SERVICE_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let nonce = format!("{:x}", self.next.fetch_add(1, Ordering::Relaxed));
        let hello = wire::HelloRequest {
            protocol_versions: PROTOCOL_VERSIONS.to_vec(),
            nonce,
            plugin: self.config.plugin.clone(),
            generation: 1,
            supervisor_version: env!("CARGO_PKG_VERSION").to_owned(),
            features: vec!["remote".to_owned()],
        };
        let hello = client.hello(self.signed(hello)).await.map_err(|status| told(&status))?;
        let version = hello.into_inner().protocol_version;
        if !PROTOCOL_VERSIONS.contains(&version) {
            let text = format!("the remote plugin speaks protocol {version}, not 1");
            return Err(Error::new("ProtocolVersion", text));
        }
        let ready = self.init(&mut client).await?;
        let (frames, outgoing) = mpsc::channel::<ToPlugin>(64);
        let calls = self.signed(ReceiverStream::new(outgoing));
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let line = Line { frames, waiting: waiting.clone() };
        tokio::spawn(async move {
            // Not waited for before the first call: a server may send its headers
            // with its first answer.
            if let Ok(incoming) = client.calls(calls).await {
                listen(incoming.into_inner(), &waiting).await;
            }
            // Whoever waits hears that it is gone.
            waiting.lock().take();
        });
        Ok((line, ready))
    }

    async fn init(&self, client: &mut WorkerClient<Channel>) -> Result<InitReady, Error> {
        let request = wire::InitRequest {
            plugin: self.config.plugin.clone(),
            concurrency: 1,
            generation: 1,
            ..wire::InitRequest::default()
        };
        let updates = client.init(self.signed(request)).await.map_err(|status| told(&status))?;
        let mut updates = updates.into_inner();
        while let Some(update) = updates.message().await.map_err(|status| told(&status))? {
            match update.update {
                Some(wire::init_update::Update::Ready(ready)) => return Ok(ready),
                Some(wire::init_update::Update::Failed(failed)) => {
                    return Err(Error::new(failed.error_type, failed.message));
                }
                Some(wire::init_update::Update::Progress(_)) | None => {}
            }
        }
        Err(Error::new("InvalidResponse", "the remote plugin's Init ended without a result"))
    }
}

/// Reads answers until the connection ends.
async fn listen(mut incoming: Streaming<FromPlugin>, waiting: &Waiting) {
    while let Ok(Some(FromPlugin { frame })) = incoming.message().await {
        if let Some(frame) = frame {
            take(waiting, frame);
        }
    }
}

/// A call that nobody waits for any more is cancelled there, too.
struct Cancels {
    line: Line,
    call_id: u64,
}

impl Drop for Cancels {
    fn drop(&mut self) {
        let left = self.line.waiting.lock().as_mut().and_then(|all| all.remove(&self.call_id));
        if left.is_some() {
            let cancel = wire::Cancel {
                call_id: self.call_id,
                reason: "the caller is gone".to_owned(),
                kill_after_ms: 0,
            };
            let frame = wire::to_plugin::Frame::Cancel(cancel);
            let _ = self.line.frames.try_send(ToPlugin { frame: Some(frame) });
        }
    }
}

fn gone() -> Error {
    unreachable("the connection to the remote plugin was closed")
}

fn blobs(attachments: Vec<wire::Attachment>) -> Vec<(String, Blob)> {
    let blobs = attachments.into_iter();
    blobs.map(|one| (one.name, Blob::typed(one.data, one.content_type))).collect()
}

/// One frame of the service.
fn take(waiting: &Waiting, frame: wire::from_plugin::Frame) {
    use wire::from_plugin::Frame;
    let answer = |id: u64, answer: Answer| {
        let pending = waiting.lock().as_mut().and_then(|all| all.remove(&id));
        if let Some(pending) = pending {
            let _ = pending.steps.send(Step::Answer(answer));
        }
    };
    match frame {
        Frame::Done(done) => {
            answer(done.call_id, Ok((done.result.to_vec(), blobs(done.attachments))));
        }
        Frame::Failed(failed) => {
            let error = Error::new(failed.error_type, failed.message);
            answer(failed.call_id, Err(error.with_traceback(failed.traceback)));
        }
        Frame::Progress(progress) => {
            if let Some(pending) =
                waiting.lock().as_ref().and_then(|all| all.get(&progress.call_id))
            {
                pending.context.progress(progress.fraction, &progress.message);
            }
        }
        Frame::Item(item) => {
            if let Some(pending) = waiting.lock().as_ref().and_then(|all| all.get(&item.call_id)) {
                let parts = (item.value.to_vec(), blobs(item.attachments));
                let _ = pending.steps.send(Step::Item(parts));
            }
        }
        Frame::Pong(_) => {}
    }
}
