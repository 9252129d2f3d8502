//! `stockade.v1.Tools`: one call, one call with updates, many on one stream.

use std::{collections::HashMap, pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use prost::Message as _;
use stockade_proto::v1::{
    Attachment as WireAttachment, CallItem, CallOutcome, CallProgress, CallRequest, CallResponse,
    CallUpdate, CallsRequest, CallsResponse, call_update, calls_request, tools_server::Tools,
};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{
    Supervisor,
    calls::{CallError, CallEvent, Calls, Outcome, ToolCall},
    capacity::{Held, limits},
    gateway::{body::Reservation, status},
    plugin::{Attachment, Update},
};

/// Answers of one stream that may wait for its client; more calls wait unread.
const ANSWERS: usize = limits::ANSWERS;

pub(crate) struct ToolsService {
    calls: Calls,
}

impl ToolsService {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        ToolsService { calls: supervisor.calls().clone() }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Tools for ToolsService {
    type CallStreamStream = Replies<CallUpdate>;
    type CallsStream = Replies<CallsResponse>;

    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        let (timeout, held) = (header_timeout(&request), held(&request));
        let outcome = self.calls.run(to_call(request.into_inner(), timeout, held)).await;
        match &outcome.result {
            Ok(_) => Ok(Response::new(to_response(outcome))),
            Err(error) => Err(status::grpc(&outcome, error)),
        }
    }

    async fn call_stream(
        &self,
        request: Request<CallRequest>,
    ) -> Result<Response<Self::CallStreamStream>, Status> {
        let (timeout, held) = (header_timeout(&request), held(&request));
        let call = to_call(request.into_inner(), timeout, held);
        let events = self.calls.stream(call);
        let updates = ReceiverStream::new(events)
            .map(|event| Ok(CallUpdate { update: Some(to_update(event)) }));
        Ok(Response::new(Box::pin(updates)))
    }

    async fn calls(
        &self,
        request: Request<Streaming<CallsRequest>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        let reservation = request.extensions().get::<Reservation>().cloned();
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::channel(ANSWERS);
        let calls = self.calls.clone();
        tokio::spawn(async move {
            let mut running: HashMap<u64, JoinHandle<()>> = HashMap::new();
            let finished = loop {
                let request = match incoming.message().await {
                    Ok(Some(request)) => request,
                    // No more calls; those under way are still answered.
                    Ok(None) => break true,
                    Err(_) => break false,
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
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(Ok))))
    }
}

/// One call of a multiplexed stream: its outcome alone.
fn run_one(
    calls: Calls,
    id: u64,
    call: ToolCall,
    place: mpsc::OwnedPermit<CallsResponse>,
) -> JoinHandle<()> {
    // Boxed: tokio moves a task's future several times, and this one is large.
    tokio::spawn(Box::pin(async move {
        let outcome = calls.run(call).await;
        place.send(CallsResponse { id, outcome: Some(to_outcome(outcome)) });
    }))
}

/// The outcome of a call that its client took back.
fn cancelled(id: u64) -> CallsResponse {
    let error = CallError::Cancelled;
    let outcome = CallOutcome {
        error: error.to_string(),
        error_type: error.error_type().to_owned(),
        delivered: true,
        ..CallOutcome::default()
    };
    CallsResponse { id, outcome: Some(outcome) }
}

/// The `grpc-timeout` header: a number and a unit.
fn header_timeout<T>(request: &Request<T>) -> Option<Duration> {
    let text = request.metadata().get("grpc-timeout")?.to_str().ok()?;
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

/// What the request's body takes of the budget.
fn held<T>(request: &Request<T>) -> Held {
    let reservation = request.extensions().get::<Reservation>();
    reservation.map(Reservation::take_all).unwrap_or_default()
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
