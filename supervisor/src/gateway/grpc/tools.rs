//! `stockade.v1.Tools`: one call, one call with updates, many on one stream.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use prost::Message;
use stockade_proto::{
    frames::{Frames, Pieces, Source},
    gate::{Gated, GatedDecoder},
    v1::{
        Attachment as WireAttachment, CallItem, CallOutcome, CallProgress, CallRequest,
        CallResponse, CallUpdate, CallsRequest, CallsResponse, call_update, calls_request,
    },
};
use tokio::{sync::mpsc, task::JoinHandle};
use tonic::{Status, Streaming, body::Body};

use crate::{
    Supervisor,
    calls::{CallError, CallEvent, Calls, Outcome, ToolCall},
    capacity::{Held, limits},
    gateway::{body::Reservation, status},
    plugin::{Attachment, Update},
};

/// Answers of one stream that may wait for its client; more calls wait unread.
const ANSWERS: usize = limits::ANSWERS;

/// `stockade.v1.Tools`, written out: results go to the client as they are, and what they
/// take of the budget is kept until they have been sent.
#[derive(Clone)]
pub(crate) struct ToolsService {
    calls: Calls,
    most: usize,
}

impl ToolsService {
    pub(super) fn new(supervisor: &Supervisor, most: usize) -> Self {
        ToolsService { calls: supervisor.calls().clone(), most }
    }

    /// Answers a request for one of the methods.
    pub(in crate::gateway) async fn answer<B>(self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let (head, body) = request.into_parts();
        let method = head.uri.path().strip_prefix("/stockade.v1.Tools/").unwrap_or_default();
        let reservation = head.extensions.get::<Reservation>().cloned();
        let timeout = header_timeout(&head.headers);
        let answered = match method {
            "Call" => self.call(body, timeout, reservation).await,
            "CallStream" => self.call_stream(body, timeout, reservation).await,
            "Calls" => Ok(self.calls(body, reservation)),
            _ => Err(Status::unimplemented("stockade.v1.Tools has no such method")),
        };
        answered.unwrap_or_else(Status::into_http)
    }

    fn read<M, B>(&self, body: B) -> Streaming<M>
    where
        M: Message + Default + Gated + Send + 'static,
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let decoder = GatedDecoder::<M>::default();
        Streaming::new_request(decoder, body, None, Some(self.most))
    }

    async fn only<M, B>(&self, body: B) -> Result<M, Status>
    where
        M: Message + Default + Gated + Send + 'static,
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let message = self.read::<M, B>(body).message().await?;
        message.ok_or_else(|| Status::invalid_argument("the request has no message"))
    }

    async fn call<B>(
        &self,
        body: B,
        timeout: Option<Duration>,
        reservation: Option<Reservation>,
    ) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let request = self.only::<CallRequest, B>(body).await?;
        let outcome = self.calls.run(to_call(request, timeout, all(reservation))).await;
        if let Err(error) = &outcome.result {
            return Err(status::grpc(&outcome, error));
        }
        let held = held_by(&outcome);
        let pieces = Pieces::of(&to_response(outcome));
        Ok(respond(Frames::answers(Some((pieces, held)))))
    }

    async fn call_stream<B>(
        &self,
        body: B,
        timeout: Option<Duration>,
        reservation: Option<Reservation>,
    ) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let request = self.only::<CallRequest, B>(body).await?;
        let events = self.calls.stream(to_call(request, timeout, all(reservation)));
        Ok(respond(Frames::answers(Updates(events))))
    }

    fn calls<B>(&self, body: B, reservation: Option<Reservation>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let mut incoming = self.read::<CallsRequest, B>(body);
        let (sender, receiver) = mpsc::channel(ANSWERS);
        let calls = self.calls.clone();
        let end: Arc<OnceLock<Status>> = Arc::default();
        let ends = end.clone();
        tokio::spawn(async move {
            let mut running: HashMap<u64, JoinHandle<()>> = HashMap::new();
            let finished = loop {
                let request = match incoming.message().await {
                    Ok(Some(request)) => request,
                    // No more calls; those under way are still answered.
                    Ok(None) => break true,
                    // Nothing behind a broken message can be read: those under way are
                    // answered, and the stream says why it ends.
                    Err(status) => {
                        let _ = ends.set(status);
                        break true;
                    }
                };
                match request.frame {
                    Some(calls_request::Frame::Call(call)) => {
                        // Waits while the client does not take its answers.
                        let Ok(place) = sender.clone().reserve_owned().await else { break false };
                        if running.len() >= 2 * ANSWERS {
                            running.retain(|_, task| !task.is_finished());
                        }
                        let held = reservation.as_ref().map(|all| all.take(call.encoded_len()));
                        let call = to_call(call, None, held.unwrap_or_default());
                        running.insert(request.id, run_one(calls.clone(), request.id, call, place));
                    }
                    Some(calls_request::Frame::Cancel(_)) => {
                        let task = running.remove(&request.id).filter(|task| !task.is_finished());
                        if let Some(task) = task {
                            task.abort();
                            let _ = sender.send(cancelled(request.id)).await;
                        }
                    }
                    None => {}
                }
            };
            let mut left: Vec<JoinHandle<()>> = running.into_values().collect();
            if finished {
                tokio::select! {
                    _ = futures_util::future::join_all(&mut left) => return,
                    () = sender.closed() => {}
                }
            }
            // The client is gone: what it asked for is wanted by nobody.
            left.iter().for_each(JoinHandle::abort);
        });
        respond(Frames::answers(Answers { answers: receiver, end }))
    }
}

fn respond<S>(frames: Frames<S, Held>) -> Response<Body>
where
    S: Source<Held> + Unpin + Send + 'static,
{
    let mut response = Response::new(Body::new(frames));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// What a request's body takes of the budget.
fn all(reservation: Option<Reservation>) -> Held {
    reservation.map(|reservation| reservation.take_all()).unwrap_or_default()
}

fn held_by(outcome: &Outcome) -> Held {
    outcome.result.as_ref().map(|success| success.held.clone()).unwrap_or_default()
}

/// What a streamed call tells.
struct Updates(mpsc::Receiver<CallEvent>);

impl Source<Held> for Updates {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(Pieces, Held)>> {
        let event = std::task::ready!(self.0.poll_recv(context));
        Poll::Ready(event.map(|event| {
            let held = match &event {
                CallEvent::Update(Update::Item(.., held)) => held.clone(),
                CallEvent::Update(Update::Progress(..)) => Held::default(),
                CallEvent::Outcome(outcome) => held_by(outcome),
            };
            (Pieces::of(&CallUpdate { update: Some(to_update(event)) }), held)
        }))
    }
}

/// Outcomes of the calls of one stream.
struct Answers {
    answers: mpsc::Receiver<(CallsResponse, Held)>,
    /// Why no further calls were read, if that is not the client's wish.
    end: Arc<OnceLock<Status>>,
}

impl Source<Held> for Answers {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(Pieces, Held)>> {
        let answer = std::task::ready!(self.answers.poll_recv(context));
        Poll::Ready(answer.map(|(answer, held)| (Pieces::of(&answer), held)))
    }

    fn status(&mut self) -> Status {
        self.end.get().cloned().unwrap_or_else(|| Status::ok(""))
    }
}

/// One call of a multiplexed stream: its outcome alone.
fn run_one(
    calls: Calls,
    id: u64,
    call: ToolCall,
    place: mpsc::OwnedPermit<(CallsResponse, Held)>,
) -> JoinHandle<()> {
    // Boxed: tokio moves a task's future several times, and this one is large.
    tokio::spawn(Box::pin(async move {
        let outcome = calls.run(call).await;
        let held = held_by(&outcome);
        place.send((CallsResponse { id, outcome: Some(to_outcome(outcome)) }, held));
    }))
}

/// The outcome of a call that its client took back.
fn cancelled(id: u64) -> (CallsResponse, Held) {
    let error = CallError::Cancelled;
    let outcome = CallOutcome {
        error: error.to_string(),
        error_type: error.error_type().to_owned(),
        delivered: true,
        ..CallOutcome::default()
    };
    (CallsResponse { id, outcome: Some(outcome) }, Held::default())
}

/// The `grpc-timeout` header: a number and a unit.
fn header_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // Eight digits at most, says the protocol.
    let number: u64 = Some(number).filter(|number| number.len() <= 8)?.parse().ok()?;
    match unit {
        "H" => number.checked_mul(3600).map(Duration::from_secs),
        "M" => number.checked_mul(60).map(Duration::from_secs),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

fn to_call(request: CallRequest, header: Option<Duration>, held: Held) -> ToolCall {
    let own = (request.timeout_ms > 0).then(|| Duration::from_millis(request.timeout_ms));
    ToolCall {
        plugin: request.plugin,
        tool: request.tool,
        args: request.args,
        attachments: request.attachments.into_iter().map(from_wire).collect(),
        timeout: match (own, header) {
            (Some(own), Some(header)) => Some(own.min(header)),
            (own, header) => own.or(header),
        },
        workspace: request.workspace,
        loose: request.loose,
        enabled_plugins: request
            .enabled_plugins
            .map(|only| Arc::new(only.names.into_iter().collect())),
        held,
        ..ToolCall::default()
    }
}

fn from_wire(wire: WireAttachment) -> Attachment {
    Attachment { name: wire.name, content_type: wire.content_type, data: wire.data }
}

fn to_wire(blobs: Vec<Attachment>) -> Vec<WireAttachment> {
    blobs
        .into_iter()
        .map(|blob| WireAttachment {
            name: blob.name,
            content_type: blob.content_type,
            data: blob.data,
        })
        .collect()
}

fn to_update(event: CallEvent) -> call_update::Update {
    match event {
        CallEvent::Update(Update::Progress(fraction, message)) => {
            call_update::Update::Progress(CallProgress { fraction, message })
        }
        CallEvent::Update(Update::Item(value, blobs, _)) => {
            call_update::Update::Item(CallItem { value, attachments: to_wire(blobs) })
        }
        CallEvent::Outcome(outcome) => call_update::Update::Outcome(to_outcome(*outcome)),
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn to_response(outcome: Outcome) -> CallResponse {
    let duration_ms = milliseconds(outcome.duration);
    let (result, attachments) = match outcome.result {
        Ok(success) => (success.result, to_wire(success.attachments)),
        Err(_) => Default::default(),
    };
    CallResponse {
        plugin: text(&outcome.plugin),
        tool: text(&outcome.tool),
        result,
        attachments,
        duration_ms,
        call_id: text(&outcome.call_id),
        generation: outcome.generation,
    }
}

fn text(text: &Arc<str>) -> String {
    text.as_ref().to_owned()
}

fn to_outcome(outcome: Outcome) -> CallOutcome {
    let mut wire = CallOutcome {
        ok: outcome.ok(),
        plugin: text(&outcome.plugin),
        tool: text(&outcome.tool),
        duration_ms: milliseconds(outcome.duration),
        call_id: text(&outcome.call_id),
        generation: outcome.generation,
        delivered: outcome.delivered,
        ..CallOutcome::default()
    };
    match outcome.result {
        Ok(success) => {
            wire.result = success.result;
            wire.attachments = to_wire(success.attachments);
        }
        Err(error) => {
            wire.error = error.to_string();
            wire.error_type = error.error_type().to_owned();
            wire.cause = error.cause().map(|cause| cause.code.to_string()).unwrap_or_default();
            wire.retry_after_ms = error.retry_after().map_or(0, |wait| wait.as_millis() as u64);
        }
    }
    wire
}
