//! JSON text frames `{id, method, params}` on one connection, made again when it
//! is gone.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use futures_util::{SinkExt as _, StreamExt as _};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};
use stockade_plugin_sdk::Error;
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::tungstenite::{
    Message, client::IntoClientRequest as _, protocol::WebSocketConfig,
};

use crate::{
    config::Config,
    connect::{Place, unreachable},
    http::MOST,
    offer::{Offer, there, told},
    sign,
};

/// One service over WebSocket.
pub(crate) struct WebSocket {
    config: Config,
    place: Place,
    line: tokio::sync::Mutex<Option<Line>>,
    next: AtomicU64,
}

/// A connection: where frames go, and who waits for answers.
#[derive(Clone)]
struct Line {
    frames: mpsc::Sender<Message>,
    waiting: Arc<Waiting>,
}

/// None once the connection is gone.
#[derive(Default)]
struct Waiting(Mutex<Option<Replies>>);

type Replies = HashMap<u64, oneshot::Sender<Result<Vec<u8>, Error>>>;

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, Option<Replies>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer: its result stays text.
#[derive(Deserialize)]
struct Frame<'f> {
    id: Option<u64>,
    #[serde(borrow, default, deserialize_with = "there")]
    result: Option<&'f RawValue>,
    #[serde(default)]
    error: Option<Value>,
}

impl WebSocket {
    pub(crate) fn new(config: Config) -> Result<Self, Error> {
        let place = Place::of(&config, b"http/1.1")?;
        Ok(WebSocket { config, place, line: Default::default(), next: AtomicU64::new(1) })
    }

    /// What it offers; nothing, when it does not know the method.
    pub(crate) async fn describe(&self) -> Result<Offer, Error> {
        match self.ask("describe", &json!({})).await {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| {
                Error::new("InvalidResponse", format!("describe is not as it should be: {error}"))
            }),
            Err(error) if error.kind() == "MethodNotFound" => Ok(Offer::default()),
            Err(error) => Err(error),
        }
    }

    /// Asks; the answer's result as text.
    pub(crate) async fn ask(&self, method: &str, params: &Value) -> Result<Vec<u8>, Error> {
        let line = self.line().await?;
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        match line.waiting.lock().as_mut() {
            Some(waiting) => {
                // What nobody waits for any more has timed out.
                waiting.retain(|_, reply| !reply.is_closed());
                waiting.insert(id, reply);
            }
            None => return Err(gone()),
        }
        let frame = json!({ "id": id, "method": method, "params": params }).to_string();
        line.frames.send(Message::text(frame)).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    /// Tells; there is no answer.
    pub(crate) async fn tell(&self, method: &str, params: &Value) -> Result<(), Error> {
        let line = self.line().await?;
        let frame = json!({ "method": method, "params": params }).to_string();
        line.frames.send(Message::text(frame)).await.map_err(|_| gone())
    }

    /// It can be reached.
    pub(crate) async fn reach(&self) -> Result<(), Error> {
        self.line().await.map(drop)
    }

    /// The connection that there is, or a new one.
    async fn line(&self) -> Result<Line, Error> {
        let mut line = self.line.lock().await;
        if let Some(open) = line.as_ref().filter(|line| !line.frames.is_closed()) {
            return Ok(open.clone());
        }
        let fresh = self.connect().await?;
        *line = Some(fresh.clone());
        Ok(fresh)
    }

    async fn connect(&self) -> Result<Line, Error> {
        let stream = self.place.connect().await?;
        let mut request = self
            .place
            .uri
            .clone()
            .into_client_request()
            .map_err(|error| Error::new("RemoteConfiguration", error.to_string()))?;
        let signed = sign::headers(&self.config.plugin, self.config.secret.as_deref(), b"");
        request.headers_mut().extend(signed);
        let limits =
            WebSocketConfig::default().max_message_size(Some(MOST)).max_frame_size(Some(MOST));
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(limits))
                .await
                .map_err(unreachable)?;
        let (mut sink, mut source) = socket.split();
        let (frames, mut outgoing) = mpsc::channel::<Message>(64);
        let waiting = Arc::new(Waiting(Mutex::new(Some(HashMap::new()))));
        let line = Line { frames, waiting: waiting.clone() };
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    frame = outgoing.recv() => {
                        let Some(frame) = frame else { break };
                        if sink.send(frame).await.is_err() {
                            break;
                        }
                    }
                    message = source.next() => match message {
                        Some(Ok(Message::Text(text))) => take(&waiting, text.as_bytes()),
                        Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                        Some(Ok(_)) => {}
                    },
                }
            }
            // Whoever waits hears that it is gone.
            waiting.lock().take();
        });
        Ok(line)
    }
}

fn gone() -> Error {
    unreachable("the connection to the remote plugin was closed")
}

fn take(waiting: &Waiting, text: &[u8]) {
    let Ok(Frame { id: Some(id), result, error }) = serde_json::from_slice(text) else {
        eprintln!("<4>a frame is not like {{\"id\": 1, \"result\": {{}}}} and was ignored");
        return;
    };
    let reply = waiting.lock().as_mut().and_then(|waiting| waiting.remove(&id));
    let Some(reply) = reply else { return };
    let answer = match (error.filter(|error| !error.is_null()), result) {
        (Some(error), _) => Err(told(&error, None)),
        (None, Some(result)) => Ok(result.get().as_bytes().to_vec()),
        (None, None) => Err(Error::new("InvalidResponse", "the answer has no \"result\"")),
    };
    let _ = reply.send(answer);
}
