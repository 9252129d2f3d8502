//! From a launched process to a session: connect, Hello, Init, Calls.

use std::{
    collections::HashMap,
    os::unix::net::UnixStream as StdStream,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError, Weak},
    time::{Duration, Instant},
};

use stockade_proto::{
    PROTOCOL_VERSIONS,
    inherited::{self, Channel},
    worker::{
        HelloRequest, InitFailed, InitReady, InitRequest, ToPlugin, init_failed::Kind, init_update,
        worker_client::WorkerClient,
    },
};
use tokio::{
    net::UnixStream,
    runtime::Handle as Runtime,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Status;

use super::{
    actor::HANGUP_GRACE,
    guard::Activity,
    logs::Logs,
    mailbox::{Internal, Sink},
    metrics::Metrics,
    ping, pump,
    registered::{Refused, Registered},
    session::{Parts, Session},
    tool::Tools,
};
use crate::{
    lifecycle::{Cause, CauseCode},
    manifest::Manifest,
    preflight::{Absent, LaunchPlan, Refusal},
};

/// The client of one process.
pub(super) type Client = WorkerClient<Channel>;

/// Largest single message that a plugin may send.
const MAX_MESSAGE: usize = 64 << 20;

/// Progress reports of one Init.
const PROGRESS: u32 = 1_000_000;
/// Between two that are passed on.
const PROGRESS_PAUSE: Duration = Duration::from_millis(50);

/// The first kibibyte of a text.
pub(super) fn short(text: &str) -> &str {
    &text[..text.floor_char_boundary(1024)]
}

/// A host channel's future.
pub type HostChannel = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What plugins have of the host.
pub trait HostHandler: Send + Sync + 'static {
    /// Serves the host channel (fd 4) of one process until it hangs up.
    fn serve(&self, channel: UnixStream, caller: Caller) -> HostChannel;

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
        session: Arc::default(),
    };
    // A service elsewhere has no host channel; its process is ours.
    if manifest.remote().is_none() {
        serve_host(&data, host, host_handler.clone(), caller.clone(), events.clone());
    }
    let mut client = connect(&data, calls).await.map_err(|e| breach("connect", e))?;
    let _ = hand_out.send(client.clone());
    hello(&mut client, &manifest, generation).await?;
    events.tell(Internal::Greeted(generation));
    let _gpus = handshake.gpu_tokens.take(&plan.gpus, &events, generation).await;
    let mut ready = init(&mut client, &manifest, &plan, generation, &events).await?;
    let (registered, refused) = Registered::accept(&mut ready, &manifest.permissions);
    let tools = Tools::compile(ready.tools).map_err(|why| {
        StartFailure::from(Cause::new(CauseCode::InitError, format!("InitError: {why}")))
    })?;
    let (outbox, frames) = mpsc::unbounded_channel::<ToPlugin>();
    let stream = client
        .calls(UnboundedReceiverStream::new(frames))
        .await
        .map_err(|status| breach("calls", status.message()))?
        .into_inner();
    let session = Session::new(Parts {
        plugin: manifest.name.as_str().into(),
        generation,
        tools,
        registered,
        manifest,
        max_result: handshake.max_result,
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

/// HTTP/2 over our end of the calls socket, driven on the data runtime.
async fn connect(data: &Runtime, calls: StdStream) -> Result<Client, String> {
    let connected = data.spawn(async move {
        let io = UnixStream::from_std(calls).map_err(|error| error.to_string())?;
        let (channel, connection) =
            Channel::connect(io).await.map_err(|error| error.to_string())?;
        tokio::spawn(connection);
        Ok::<_, String>(channel)
    });
    let channel = connected.await.map_err(|error| error.to_string())??;
    Ok(WorkerClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(inherited::MAX_MESSAGE))
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
                    let message = short(&progress.message);
                    let text = format!("{:.0} % {message}", progress.fraction * 100.0);
                    events.tell(Internal::Progress(generation, text));
                }
                tokio::task::yield_now().await;
            }
            Some(init_update::Update::Ready(ready)) => return Ok(ready),
            Some(init_update::Update::Failed(failed)) => {
                return Err(refused(failed, plan.absent.as_ref()));
            }
            None => {}
        }
    }
    Err(breach("init", "ended without a result"))
}

/// The seeds' wording, which operators grep for.
fn refused(failed: InitFailed, absent: Option<&Absent>) -> StartFailure {
    let kind = failed.kind();
    let InitFailed { error_type, message, missing, traceback, watch, .. } = failed;
    let (code, reason) = match kind {
        Kind::Missing => {
            let mut all = Absent { names: missing, ..Absent::default() };
            all.hints.extend((!message.is_empty()).then_some(message));
            all.watch.extend(watch.into_iter().map(PathBuf::from));
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
        let Ok(channel) = UnixStream::from_std(host) else { return };
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
