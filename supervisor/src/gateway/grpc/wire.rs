//! Calls, updates and outcomes as `stockade.v1.Tools` has them on the wire.

use std::{sync::Arc, time::Duration};

use stockade_proto::v1::{
    Attachment as WireAttachment, CallItem, CallOutcome, CallProgress, CallRequest, CallResponse,
    call_update,
};

use crate::{
    calls::{CallEvent, Outcome, ToolCall},
    capacity::{Account, Held},
    plugin::{Attachment, Update},
};

/// What its result takes of the budget.
pub(super) fn held_by(outcome: &Outcome) -> Held {
    outcome.result.as_ref().map(|success| success.held.clone()).unwrap_or_default()
}

/// `header` is the time that gRPC itself allows.
pub(super) fn to_call(
    request: CallRequest,
    header: Option<Duration>,
    held: Held,
    payer: Option<Account>,
) -> ToolCall {
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
        payer,
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

pub(super) fn to_update(event: CallEvent) -> call_update::Update {
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

pub(super) fn to_response(outcome: Outcome) -> CallResponse {
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

pub(super) fn to_outcome(outcome: Outcome) -> CallOutcome {
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
