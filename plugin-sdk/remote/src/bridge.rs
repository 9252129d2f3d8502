//! Calls of the supervisor become requests to the service. A slow or dead one is an
//! error of its call, within its time-out.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Map, Value, json};
use stockade_plugin_sdk::{
    Error,
    guest::{
        self, Call, CallKind, EventBatch, Failure, Guest, InitReady, Kind, Parts, Pong, Start,
    },
};
use tokio::sync::oneshot;

use crate::{
    config::{Config, Protocol},
    grpc::Grpc,
    http::Http,
    offer::{read_answer, ready},
    websocket::WebSocket,
};

/// Attempts to deliver a batch of events, and the pauses between them.
const PAUSES: [Duration; 3] = [Duration::ZERO, Duration::from_millis(200), Duration::from_secs(1)];
/// A start may take longer than a call.
const START: Duration = Duration::from_secs(10);

/// Between looks whether the service is there, and misses that end this process.
const LOOK: Duration = Duration::from_secs(5);
const MISSES: u32 = 2;
/// The exit code, as sysexits.h has it.
const EX_UNAVAILABLE: i32 = 69;

/// The service of this process.
pub(crate) struct Bridge {
    config: Config,
    link: OnceLock<Arc<Link>>,
}

enum Link {
    Http(Http),
    WebSocket(WebSocket),
    Grpc(Grpc),
}

impl Bridge {
    pub(crate) fn new(config: Config) -> Self {
        Bridge { config, link: OnceLock::new() }
    }
}

impl Link {
    fn new(config: &Config) -> Result<Self, Error> {
        Ok(match config.protocol {
            Protocol::Http => Link::Http(Http::new(config.clone())?),
            Protocol::Websocket => Link::WebSocket(WebSocket::new(config.clone())?),
            Protocol::Grpc => Link::Grpc(Grpc::new(config.clone())?),
        })
    }

    /// What the service offers; that it answers is what a start means.
    async fn describe(&self, config: &Config) -> Result<InitReady, Error> {
        match self {
            Link::Http(http) => Ok(ready(http.describe().await?, &config.offers)),
            Link::WebSocket(socket) => Ok(ready(socket.describe().await?, &config.offers)),
            Link::Grpc(grpc) => grpc.describe().await,
        }
    }

    async fn call(&self, call: &Call, timeout_ms: u64) -> Result<Parts, Error> {
        match self {
            Link::Grpc(grpc) => grpc.call(call, timeout_ms).await,
            Link::Http(http) => {
                let (path, request) = request(call, timeout_ms)?;
                read_answer(&http.post(path, &request).await?)
            }
            Link::WebSocket(socket) => {
                let (path, request) = request(call, timeout_ms)?;
                read_answer(&socket.ask(&path.replace('-', "_"), &request).await?)
            }
        }
    }

    /// One attempt to deliver events.
    async fn deliver(&self, call: &Call, timeout_ms: u64) -> Result<Parts, Error> {
        let well = || (b"{\"failed\":0}".to_vec(), Vec::new());
        match self {
            Link::Grpc(grpc) => grpc.call(call, timeout_ms).await,
            Link::Http(http) => {
                let answer = http.post("events", &events(call)).await?;
                // Any answer will do that is not an error.
                match read_answer(&answer) {
                    Err(error) if error.kind() != "InvalidResponse" => Err(error),
                    _ => Ok(well()),
                }
            }
            Link::WebSocket(socket) => socket.tell("events", &events(call)).await.map(|()| well()),
        }
    }
}

/// Looks whether the service is still there. A process whose service is gone ends:
/// its start is tried again, and says what is wrong.
async fn watch(link: Arc<Link>) {
    let mut missed = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        let reached = async {
            match &*link {
                Link::Http(http) => http.reach().await,
                Link::WebSocket(socket) => socket.reach().await,
                Link::Grpc(grpc) => grpc.reach().await,
            }
        };
        let why = match tokio::time::timeout(LOOK, reached).await {
            Ok(Ok(())) => {
                missed = 0;
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        missed += 1;
        if missed == MISSES {
            eprintln!("<3>the remote plugin is gone: {why}");
            guest::exit_now(EX_UNAVAILABLE);
        }
    }
}

/// The path and the body of a request.
fn request(call: &Call, timeout_ms: u64) -> Result<(&'static str, Value), Error> {
    let args: Map<String, Value> = match call.args.is_empty() {
        true => Map::new(),
        false => serde_json::from_slice(&call.args)?,
    };
    let name = &call.tool;
    let get = |key: &str| args.get(key).cloned().unwrap_or_default();
    Ok(match call.kind {
        CallKind::Condition => (
            "evaluate-condition",
            json!({"condition_id": name, "context": get("context"), "timeout_ms": timeout_ms}),
        ),
        CallKind::Effect => (
            "apply-effect",
            json!({
                "effect_id": name, "context": get("context"), "params": get("params"),
                "timeout_ms": timeout_ms,
            }),
        ),
        CallKind::SimulationConfig => (
            "simulation-config",
            json!({"provider_id": name, "base": get("base"), "timeout_ms": timeout_ms}),
        ),
        CallKind::Tool | CallKind::Events | CallKind::Provider => {
            let blobs = call.attachments.iter().map(|(name, blob)| {
                let value =
                    json!({"content_type": blob.content_type(), "data": STANDARD.encode(&blob[..])});
                (name.clone(), value)
            });
            let attachments: Map<String, Value> = blobs.collect();
            (
                "run-tool",
                json!({
                    "tool": name, "args": args, "attachments": attachments,
                    "workspace": call.context.workspace(), "call_id": call.context.call_id(),
                    "timeout_ms": timeout_ms,
                }),
            )
        }
    })
}

fn events(call: &Call) -> Value {
    let EventBatch { events, dropped } = call.events.clone().unwrap_or_default();
    let events: Vec<Value> = events
        .iter()
        .map(|event| {
            json!({
                "sequence": event.sequence, "name": event.name, "source": event.source,
                "workspace": event.workspace, "time_ms": event.time_ms,
                "payload": serde_json::from_slice::<Value>(&event.payload).unwrap_or_default(),
            })
        })
        .collect();
    json!({ "events": events, "dropped": dropped })
}

async fn run(link: &Link, call: &Call, timeout: Duration) -> Result<Parts, Error> {
    let patience = timeout.min(call.context.time_left());
    let timeout_ms = patience.as_millis() as u64;
    let late = || {
        let text = format!("the remote plugin did not answer within {timeout_ms} ms");
        Error::new("TimeoutError", text)
    };
    if call.kind != CallKind::Events {
        let answer = tokio::time::timeout(patience, link.call(call, timeout_ms)).await;
        return answer.map_err(|_| late())?;
    }
    let mut last = late();
    for pause in PAUSES {
        tokio::time::sleep(pause).await;
        match tokio::time::timeout(timeout, link.deliver(call, timeout_ms)).await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(error)) => last = error,
            Err(_) => last = late(),
        }
    }
    Err(last)
}

impl Guest for Bridge {
    const SDK: &'static str = concat!("remote/", env!("CARGO_PKG_VERSION"));

    fn start(self: &Arc<Self>, start: Start) {
        let bridge = self.clone();
        tokio::spawn(async move {
            let described = async {
                let link = Link::new(&bridge.config)?;
                let late = || Error::new("RemoteUnreachable", "no answer within 10 seconds");
                let describing = link.describe(&bridge.config);
                let ready = tokio::time::timeout(START, describing).await.map_err(|_| late())??;
                Ok::<_, Error>((link, ready))
            };
            match described.await {
                Ok((link, ready)) => {
                    let link = Arc::new(link);
                    tokio::spawn(watch(link.clone()));
                    let _ = bridge.link.set(link);
                    start.ready(ready);
                }
                Err(error) => {
                    start.failed(Failure { kind: Kind::Init, error, watch: Vec::new() });
                }
            }
        });
    }

    fn invoke(self: &Arc<Self>, call: Call) {
        let Some(link) = self.link.get().cloned() else {
            return call.reply.send(Err(Error::new("RemoteUnreachable", "it is not connected")));
        };
        let timeout = self.config.timeout();
        tokio::spawn(async move {
            let outcome = tokio::select! {
                outcome = run(&link, &call, timeout) => outcome,
                () = call.context.cancelled() => Err(Error::cancelled()),
            };
            call.reply.send(outcome);
        });
    }

    fn ping(self: &Arc<Self>, pong: Pong) {
        pong.send();
    }

    fn stop(self: &Arc<Self>, done: oneshot::Sender<()>) {
        drop(done);
    }
}
