//! From a launched process to a session: connect, Hello, Init, Calls.

use std::{
    collections::HashMap,
    os::unix::net::UnixStream as StdStream,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use stockade_proto::{
    PROTOCOL_VERSIONS,
    frames::{Frames, Pieces, Source},
    gate::GatedDecoder,
    inherited::{self, Channel},
    socket::Socket,
    worker::{
        FromPlugin, HelloRequest, InitFailed, InitReady, InitRequest, ToPlugin, init_failed::Kind,
        init_update, worker_client::WorkerClient,
    },
};
use tokio::{
    runtime::Handle as Runtime,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tonic::{Status, Streaming};
use tower::Service as _;

use super::{
    actor::HANGUP_GRACE,
    guard::Activity,
    logs::Logs,
    mailbox::{Internal, Sink},
    metrics::Metrics,
    ping, pump,
    registered::{Refused, Registered},
    schema::Allowance,
    session::{Parts, Session},
    tool::Tools,
};
use crate::{
    capacity::{Account, Crew, Turns, frames, limits},
    lifecycle::{Cause, CauseCode},
    manifest::{Manifest, Profile},
    preflight::{Absent, LaunchPlan, Refusal},
};

/// The client of one process.
pub(super) type Client = WorkerClient<Channel>;

/// What a message holds besides its payload.
const ENVELOPE: usize = 1 << 20;

/// Progress reports of one Init.
const PROGRESS: u32 = 1_000_000;
/// Between two that are passed on.
const PROGRESS_PAUSE: Duration = Duration::from_millis(50);

/// A host channel's future.
pub type HostChannel = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What plugins have of the host.
pub trait HostHandler: Send + Sync + 'static {
    /// Serves the host channel (fd 4) of one process until it hangs up.
    fn serve(&self, channel: Socket, caller: Caller) -> HostChannel;

    /// A process is ready: what it registered, and what of that was refused.
    fn opened(&self, caller: &Caller, session: &Arc<Session>, refused: Vec<Refused>);
}

/// Who is at the other end of a host channel. The identity is the channel's own.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The manifest it runs under.
    pub manifest: Arc<Manifest>,
    /// Which process of the plugin.
    pub generation: u64,
    /// Its data directory.
    pub data_dir: std::path::PathBuf,
    /// How it has fared.
    pub metrics: Arc<Metrics>,
    /// Its output.
    pub logs: Arc<Logs>,
    /// What it may make the daemon hold.
    pub account: Account,
    session: Arc<OnceLock<Weak<Session>>>,
}

impl Caller {
    /// Its session, once there is one and while it lasts.
    pub fn session(&self) -> Option<Arc<Session>> {
        self.session.get()?.upgrade()
    }
}

/// What a handshake needs.
pub(super) struct Handshake {
    pub(super) manifest: Arc<Manifest>,
    pub(super) plan: Arc<LaunchPlan>,
    pub(super) generation: u64,
    pub(super) calls: StdStream,
    pub(super) host: StdStream,
    pub(super) host_handler: Arc<dyn HostHandler>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) logs: Arc<Logs>,
    pub(super) events: Sink,
    pub(super) activity: Activity,
    pub(super) max_result: usize,
    pub(super) account: Account,
    pub(super) crew: Crew,
    pub(super) gpu_tokens: GpuTokens,
    /// Where calls are carried.
    pub(super) data: Runtime,
}

/// A start that did not succeed.
pub(super) struct StartFailure {
    pub(super) cause: Cause,
    /// What is missing, one name each.
    pub(super) missing: Vec<String>,
    /// Files and folders whose change may heal it.
    pub(super) watch: Vec<PathBuf>,
    /// Where, in the plugin's own language.
    pub(super) traceback: String,
}

impl From<Cause> for StartFailure {
    fn from(cause: Cause) -> Self {
        StartFailure { cause, missing: Vec::new(), watch: Vec::new(), traceback: String::new() }
    }
}

fn breach(phase: &str, what: impl std::fmt::Display) -> StartFailure {
    let what = limits::cut(&what.to_string(), limits::ERROR_TEXT / 4);
    let reason = format!("Broke the protocol in {phase}: {what}.");
    Cause::new(CauseCode::ProtocolError, reason).into()
}

/// One token per GPU, by UUID.
#[derive(Clone, Debug, Default)]
pub struct GpuTokens(Arc<Mutex<HashMap<String, Arc<Semaphore>>>>);

impl GpuTokens {
    fn of(&self, uuid: &str) -> Arc<Semaphore> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.entry(uuid.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
    }

    /// Takes the tokens of all `uuids`, always in one order. Waiting is
    /// progress: another plugin's long load is not this one's time-out.
    async fn take(
        &self,
        uuids: &[String],
        events: &Sink,
        generation: u64,
    ) -> Vec<OwnedSemaphorePermit> {
        let mut sorted = uuids.to_vec();
        sorted.sort();
        let mut held = Vec::new();
        for uuid in sorted {
            let mut waiting = Box::pin(self.of(&uuid).acquire_owned());
            loop {
                let pause = Duration::from_secs(1);
                match tokio::time::timeout(pause, &mut waiting).await {
                    Ok(token) => break held.extend(token),
                    Err(_) => {
                        let text = format!("waits for another plugin to load onto GPU {uuid}");
                        events.tell(Internal::Progress(generation, text));
                    }
                }
            }
        }
        held
    }
}

/// Runs the handshake to its end and reports each step. The client, for the
/// later shutdown, is handed out as soon as there is one.
pub(super) async fn run(handshake: Handshake, client: tokio::sync::oneshot::Sender<Client>) {
    let (events, generation) = (handshake.events.clone(), handshake.generation);
    match shake(handshake, client).await {
        Ok(session) => events.tell(Internal::Ready(generation, session)),
        Err(failure) => {
            // A channel that broke is usually a death, which tells more.
            if failure.cause.code == CauseCode::ProtocolError {
                tokio::time::sleep(HANGUP_GRACE).await;
            }
            events.tell(Internal::StartFailed(generation, failure));
        }
    }
}

async fn shake(
    handshake: Handshake,
    hand_out: tokio::sync::oneshot::Sender<Client>,
) -> Result<Arc<Session>, StartFailure> {
    let Handshake { manifest, plan, generation, calls, host, host_handler, events, .. } = handshake;
    let (activity, data) = (handshake.activity, handshake.data);
    let caller = Caller {
        manifest: manifest.clone(),
        generation,
        data_dir: plan.data_dir.clone(),
        metrics: handshake.metrics,
        logs: handshake.logs,
        account: handshake.account.clone(),
        session: Arc::default(),
    };
    // A service elsewhere has no host channel; its process is ours.
    if manifest.remote().is_none() {
        serve_host(&data, host, host_handler.clone(), caller.clone(), events.clone());
    }
    let channel = connect(&data, calls).await.map_err(|e| breach("connect", e))?;
    // Hello and Init are bounded apart: they are read on the thread of all actors.
    let mut client = WorkerClient::new(channel.clone())
        .max_decoding_message_size(limits::HANDSHAKE_MESSAGE)
        .max_encoding_message_size(inherited::MAX_MESSAGE);
    let _ = hand_out.send(client.clone());
    hello(&mut client, &manifest, generation).await?;
    events.tell(Internal::Greeted(generation));
    let _gpus = handshake.gpu_tokens.take(&plan.gpus, &events, generation).await;
    let ready =
        init(&mut client, &manifest, &plan, generation, handshake.max_result, &events).await?;
    let lane: Arc<str> = manifest.name.as_str().into();
    let (tools, registered, refused) = compile(&handshake.crew, &lane, &manifest, ready).await?;
    let (outbox, frames) = mpsc::channel::<ToPlugin>(Session::outbox_size(&manifest));
    // A result that is too large costs its call; only far beyond that, the process.
    let most = (handshake.max_result + ENVELOPE).max(limits::FRAME);
    let stream = open_calls(channel, frames, most).await.map_err(|why| breach("calls", why))?;
    let session = Session::new(Parts {
        plugin: manifest.name.as_str().into(),
        generation,
        tools,
        registered,
        manifest,
        max_result: handshake.max_result,
        account: handshake.account,
        outbox,
        events: events.clone(),
        activity,
        runtime: data.clone(),
    });
    data.spawn(pump::run(stream, session.clone(), events.clone()));
    data.spawn(ping::run(session.clone(), events.clone()));
    let _ = caller.session.set(Arc::downgrade(&session));
    host_handler.opened(&caller, &session, refused);
    Ok(session)
}

/// Frames that a process is to read; long arguments go to it as they are.
struct Outgoing(mpsc::Receiver<ToPlugin>);

impl Source<()> for Outgoing {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(Pieces, ())>> {
        let frame = ready!(self.0.poll_recv(context));
        Poll::Ready(frame.map(|frame| (Pieces::of(&frame), ())))
    }
}

/// `Worker.Calls`, the stream that carries every call of the process.
async fn open_calls(
    mut channel: Channel,
    frames: mpsc::Receiver<ToPlugin>,
    most: usize,
) -> Result<Streaming<FromPlugin>, String> {
    let body = tonic::body::Body::new(Frames::requests(Outgoing(frames)));
    let request = http::Request::post("/stockade.worker.v1.Worker/Calls")
        .header(http::header::CONTENT_TYPE, "application/grpc")
        .header(http::header::TE, "trailers")
        .body(body)
        .map_err(|error| error.to_string())?;
    std::future::poll_fn(|context| channel.poll_ready(context))
        .await
        .map_err(|error| error.to_string())?;
    let response = channel.call(request).await.map_err(|error| error.to_string())?;
    if let Some(status) = Status::from_header_map(response.headers())
        && status.code() != tonic::Code::Ok
    {
        return Err(status.message().to_owned());
    }
    let (head, body) = response.into_parts();
    let decoder = GatedDecoder::<FromPlugin>::default();
    Ok(Streaming::new_response(decoder, body, head.status, None, Some(most)))
}

/// The crew compiles what a process has registered: how long that takes is its
/// author's choice.
async fn compile(
    crew: &Crew,
    lane: &Arc<str>,
    manifest: &Arc<Manifest>,
    mut ready: InitReady,
) -> Result<(Tools, Registered, Vec<Refused>), StartFailure> {
    let manifest = manifest.clone();
    let compiled = crew.conclude(lane, move || {
        let mut allowance = Allowance::default();
        let (registered, refused) =
            Registered::accept(&mut ready, &manifest.permissions, &mut allowance);
        let tools = Tools::compile(ready.tools, &mut allowance)?;
        Ok::<_, String>((tools, registered, refused))
    });
    let compiled = compiled.await.map_err(|overloaded| {
        let reason = format!("Could not start: its schemas were not compiled: {overloaded}.");
        StartFailure::from(Cause::new(CauseCode::SpawnResources, reason))
    })?;
    compiled.map_err(|why| Cause::new(CauseCode::InitError, format!("InitError: {why}")).into())
}

/// HTTP/2 over our end of the calls socket, driven on the data runtime.
async fn connect(data: &Runtime, calls: StdStream) -> Result<Channel, String> {
    let connected = data.spawn(async move {
        let io = Socket::new(calls).map_err(|error| error.to_string())?;
        let io = Turns::of_frames(io, frames::Frames::of_server());
        let (channel, connection) =
            Channel::connect(io).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok::<_, String>(channel)
    });
    connected.await.map_err(|error| error.to_string())?
}

async fn hello(
    client: &mut Client,
    manifest: &Manifest,
    generation: u64,
) -> Result<(), StartFailure> {
    let nonce = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let request = HelloRequest {
        protocol_versions: PROTOCOL_VERSIONS.to_vec(),
        nonce: nonce.clone(),
        plugin: manifest.name.clone(),
        generation,
        supervisor_version: env!("CARGO_PKG_VERSION").to_owned(),
        features: Vec::new(),
    };
    let reply = client.hello(request).await;
    let reply = reply.map_err(|status| breach("hello", status.message()))?.into_inner();
    if reply.nonce != nonce {
        return Err(breach("hello", "wrong nonce"));
    }
    if PROTOCOL_VERSIONS.contains(&reply.protocol_version) {
        return Ok(());
    }
    let spoken: Vec<u32> = match reply.protocol_version {
        0 => reply.supported_versions,
        version => vec![version],
    };
    let (first, last) = (PROTOCOL_VERSIONS[0], PROTOCOL_VERSIONS[PROTOCOL_VERSIONS.len() - 1]);
    let newer = spoken.iter().all(|version| *version > last);
    let list = spoken.iter().map(u32::to_string).collect::<Vec<_>>().join(", ");
    let reason = format!(
        "Speaks protocol {list}; this supervisor speaks {first}–{last}. Upgrade {}.",
        if newer { "the supervisor" } else { "the plugin (its SDK)" }
    );
    Err(Cause::new(CauseCode::ProtocolVersion, reason).into())
}

async fn init(
    client: &mut Client,
    manifest: &Manifest,
    plan: &LaunchPlan,
    generation: u64,
    max_payload: usize,
    events: &Sink,
) -> Result<InitReady, StartFailure> {
    let models: HashMap<String, String> =
        plan.models.iter().map(|(name, path)| (name.clone(), path.display().to_string())).collect();
    let request = InitRequest {
        plugin: manifest.name.clone(),
        directory: plan.directory.display().to_string(),
        data_dir: plan.data_dir.display().to_string(),
        concurrency: manifest.concurrency,
        models,
        generation,
        entry: plan.entry.clone(),
        packages: plan.packages.clone(),
        check_only: plan.absent.is_some(),
        timeout_ms: manifest.timeouts.init.as_millis() as u64,
        max_payload: max_payload as u64,
    };
    let broken = |status: Status| breach("init", status.message());
    let mut updates = client.init(request).await.map_err(broken)?.into_inner();
    let (mut told, mut flood) = (None, 0);
    while let Some(update) = updates.message().await.map_err(broken)? {
        match update.update {
            Some(init_update::Update::Progress(progress)) => {
                flood += 1;
                if flood > PROGRESS {
                    return Err(breach("init", "message flood"));
                }
                // The actor need not hear every word.
                if told.is_none_or(|told: Instant| told.elapsed() >= PROGRESS_PAUSE) {
                    told = Some(Instant::now());
                    let message = limits::cut(&progress.message, limits::ERROR_TEXT / 4);
                    let text = format!("{:.0} % {message}", progress.fraction * 100.0);
                    events.tell(Internal::Progress(generation, text));
                }
                tokio::task::yield_now().await;
            }
            Some(init_update::Update::Ready(ready)) => return Ok(ready),
            Some(init_update::Update::Failed(failed)) => {
                return Err(refused(failed, plan));
            }
            None => {}
        }
    }
    Err(breach("init", "ended without a result"))
}

/// The paths whose change may bring what is missing: those that it may see. A plugin
/// is told of no change to any other file.
fn watched(watch: Vec<String>, plan: &LaunchPlan) -> Vec<PathBuf> {
    let confined = &plan.confinement;
    let sees = |path: &PathBuf| {
        confined.granted.profile == Profile::None
            || path.starts_with(&plan.directory)
            || path.starts_with(&plan.data_dir)
            || confined.places.iter().any(|place| path.starts_with(&place.path))
    };
    let is_plain = |path: &PathBuf| {
        path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir)
    };
    let paths = watch.into_iter().map(PathBuf::from).filter(|path| is_plain(path) && sees(path));
    paths.take(limits::WATCHED).collect()
}

/// The first names, and how many more there are.
fn named(mut missing: Vec<String>) -> Vec<String> {
    let more = missing.len().saturating_sub(limits::MISSING);
    missing.truncate(limits::MISSING);
    missing.iter_mut().for_each(|name| limits::cut_to(name, limits::KEY));
    missing.extend((more > 0).then(|| format!("and {more} more")));
    missing
}

/// The seeds' wording, which operators grep for.
fn refused(failed: InitFailed, plan: &LaunchPlan) -> StartFailure {
    let (kind, absent) = (failed.kind(), plan.absent.as_ref());
    let InitFailed { mut error_type, mut message, missing, mut traceback, watch, .. } = failed;
    limits::cut_to(&mut error_type, limits::NAME);
    limits::cut_to(&mut message, limits::ERROR_TEXT);
    limits::cut_to(&mut traceback, limits::TRACEBACK);
    let (missing, watch) = (named(missing), watched(watch, plan));
    let (code, reason) = match kind {
        Kind::Missing => {
            let mut all = Absent { names: missing, ..Absent::default() };
            all.hints.extend((!message.is_empty()).then_some(message));
            all.watch.extend(watch);
            if let Some(absent) = absent.cloned() {
                all.gpu = absent.gpu;
                all.names.extend(absent.names);
                all.hints.extend(absent.hints);
                all.watch.extend(absent.watch);
            }
            let Refusal { cause, missing, watch } = all.into_refusal();
            return StartFailure { cause, missing, watch, traceback };
        }
        Kind::Import => (CauseCode::ImportError, format!("ImportError: {error_type}: {message}")),
        Kind::Validate => (CauseCode::InitError, format!("Plugin validation failed: {message}")),
        Kind::Init | Kind::Unspecified => {
            (CauseCode::InitError, format!("InitError: {error_type}: {message}"))
        }
    };
    StartFailure { traceback, ..Cause::new(code, reason).into() }
}

/// Serves fd 4, once the plugin says something. That it has broken it while it goes
/// on is told: nothing of the host is left to it.
fn serve_host(
    data: &Runtime,
    host: StdStream,
    handler: Arc<dyn HostHandler>,
    caller: Caller,
    events: Sink,
) {
    data.spawn(async move {
        let Ok(channel) = Socket::new(host) else { return };
        if channel.readable().await.is_err() {
            return;
        }
        handler.serve(channel, caller.clone()).await;
        tokio::time::sleep(HANGUP_GRACE).await;
        if caller.session().is_some_and(|session| session.closed().is_none()) {
            let text = "It has broken its host channel: host services are gone until it is \
                        restarted.";
            events.tell(Internal::Warned(caller.generation, text.to_owned()));
        }
    });
}
