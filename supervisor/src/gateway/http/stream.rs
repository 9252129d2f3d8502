//! Progress and items as they come: one JSON object per line, or server-sent
//! events.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body as HttpBody, Bytes},
    http::header,
    response::{IntoResponse as _, Response},
};
use hyper::body::{Body, Frame};
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::sync::mpsc;

use super::render::{self, Pieces};
use crate::{Success, Supervisor, ToolCall, calls::CallEvent, capacity::Crew, plugin::Update};

/// Runs the call while the client reads. A client that goes cancels it.
pub(super) fn respond(supervisor: &Supervisor, call: ToolCall, events: bool) -> Response {
    let (crew, lane) = (supervisor.calls().crew().clone(), call.plugin.as_str().into());
    let mut happened = supervisor.calls().stream(call);
    // One at a time: a client that does not read holds back the tool.
    let (lines, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let event = tokio::select! {
                event = happened.recv() => event,
                () = lines.closed() => return,
            };
            let Some(event) = event else { return };
            let Some(line) = line(&crew, &lane, event, events).await else { return };
            if lines.send(line).await.is_err() {
                return;
            }
        }
    });
    let kind = if events { "text/event-stream" } else { "application/x-ndjson" };
    let body = Lines { present: Pieces::default(), coming: receiver };
    ([(header::CONTENT_TYPE, kind)], HttpBody::new(body)).into_response()
}

/// Lines one after the other.
struct Lines {
    present: Pieces,
    coming: mpsc::Receiver<Pieces>,
}

impl Body for Lines {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        loop {
            if let Some(part) = ready!(Pin::new(&mut self.present).poll_frame(context)) {
                return Poll::Ready(Some(part));
            }
            match ready!(self.coming.poll_recv(context)) {
                Some(line) => self.present = line,
                None => return Poll::Ready(None),
            }
        }
    }
}

/// What is large is looked at by the crew. None: that failed, and the stream ends without
/// its outcome.
async fn line(
    crew: &Crew,
    lane: &std::sync::Arc<str>,
    event: CallEvent,
    events: bool,
) -> Option<Pieces> {
    let size = match &event {
        CallEvent::Update(Update::Progress(..)) => 0,
        CallEvent::Update(Update::Item(result, ..)) => result.len(),
        CallEvent::Outcome(outcome) => {
            outcome.result.as_ref().map_or(0, |success| success.result.len())
        }
    };
    match size <= crate::capacity::limits::STEP {
        true => Some(written(event, events)),
        false => crew.conclude(lane, move || written(event, events)).await.ok(),
    }
}

fn written(event: CallEvent, events: bool) -> Pieces {
    let (kind, body) = match event {
        CallEvent::Update(Update::Progress(fraction, message)) => {
            let mut pieces = Pieces::default();
            pieces.text(json!({ "fraction": fraction, "message": message }).to_string());
            ("progress", pieces)
        }
        CallEvent::Update(Update::Item(result, attachments, held)) => {
            // A tool's item is not checked like its result: JSON, or null.
            let is_json = str::from_utf8(&result)
                .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok());
            let result = if is_json { result } else { Bytes::from_static(b"null") };
            ("item", render::inline(Success { result, attachments, held }, true))
        }
        CallEvent::Outcome(outcome) => ("outcome", render::outcome(*outcome, true)),
    };
    let mut line = Pieces::default();
    line.text(match events {
        true => format!("event: {kind}\ndata: "),
        false => format!("{{\"{kind}\":"),
    });
    line.append(body);
    line.text(if events { "\n\n" } else { "}\n" });
    line
}
