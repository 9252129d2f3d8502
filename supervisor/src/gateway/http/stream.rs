//! Progress and items as they come: one JSON object per line, or server-sent
//! events.

use axum::{
    body::{Body, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use serde_json::{json, value::RawValue};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};

use super::run::{inline, to_json};
use crate::{Success, Supervisor, ToolCall, plugin::Update};

/// Lines that may wait for the client.
const WAITING: usize = 16;

/// Runs the call while the client reads. A client that goes cancels it.
pub(super) fn respond(supervisor: &Supervisor, call: ToolCall, events: bool) -> Response {
    let (sender, receiver) = mpsc::channel::<(&'static str, String)>(WAITING);
    let calls = supervisor.calls().clone();
    tokio::spawn(async move {
        let (updates, mut incoming) = mpsc::channel(WAITING);
        let mut run = std::pin::pin!(calls.run_streaming(call, updates));
        let outcome = loop {
            tokio::select! {
                biased;
                Some(update) = incoming.recv() => {
                    if sender.send(line(update)).await.is_err() {
                        return;
                    }
                }
                outcome = &mut run => break outcome,
                () = sender.closed() => return,
            }
        };
        let _ = sender.send(("outcome", to_json(outcome))).await;
    });
    let lines = ReceiverStream::new(receiver).map(move |(kind, json)| {
        let text = match events {
            true => format!("event: {kind}\ndata: {json}\n\n"),
            false => format!("{{\"{kind}\":{json}}}\n"),
        };
        Ok::<_, std::convert::Infallible>(Bytes::from(text))
    });
    let kind = if events { "text/event-stream" } else { "application/x-ndjson" };
    ([(header::CONTENT_TYPE, kind)], Body::from_stream(lines)).into_response()
}

fn line(update: Update) -> (&'static str, String) {
    match update {
        Update::Progress(fraction, message) => {
            ("progress", json!({ "fraction": fraction, "message": message }).to_string())
        }
        Update::Item(result, attachments) => {
            let text = inline(Success { result, attachments });
            // A tool's item is not checked like its result: one line, or null.
            let one_line = serde_json::from_str::<Box<RawValue>>(&text).is_ok();
            ("item", if one_line { text.replace('\n', " ") } else { "null".to_owned() })
        }
    }
}
