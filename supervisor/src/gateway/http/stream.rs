//! Progress and items as they come: one JSON object per line, or server-sent
//! events.

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use serde_json::{json, value::RawValue};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::run::{inline, to_json};
use crate::{Success, Supervisor, ToolCall, calls::CallEvent, plugin::Update};

/// Runs the call while the client reads. A client that goes cancels it.
pub(super) fn respond(supervisor: &Supervisor, call: ToolCall, events: bool) -> Response {
    let lines = ReceiverStream::new(supervisor.calls().stream(call)).map(move |event| {
        let (kind, json) = line(event);
        let text = match events {
            true => format!("event: {kind}\ndata: {json}\n\n"),
            false => format!("{{\"{kind}\":{json}}}\n"),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(text))
    });
    let kind = if events { "text/event-stream" } else { "application/x-ndjson" };
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response()
}

fn line(event: CallEvent) -> (&'static str, String) {
    match event {
        CallEvent::Update(Update::Progress(fraction, message)) => {
            ("progress", json!({ "fraction": fraction, "message": message }).to_string())
        }
        CallEvent::Update(Update::Item(result, attachments)) => {
            let text = inline(Success { result, attachments });
            // A tool's item is not checked like its result: one line, or null.
            let one_line = serde_json::from_str::<Box<RawValue>>(&text).is_ok();
            ("item", if one_line { text.replace('\n', " ") } else { "null".to_owned() })
        }
        CallEvent::Outcome(outcome) => ("outcome", to_json(*outcome).replace('\n', " ")),
    }
}
