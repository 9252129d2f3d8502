//! Questions: health, manifest, tools, events. Always answered, never late.

use axum::{
    Extension, Json,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response, sse},
};
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use super::{plugin_not_found, render::Pieces};
use crate::{
    Supervisor,
    capacity::limits,
    gateway::{
        door::Caller,
        follow::{Wish, follow},
        report::{health, sandbox},
        watch::Watch,
    },
    plugin::Tool,
};

fn json(text: String) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text).into_response()
}

pub(super) async fn list(State(supervisor): State<Supervisor>) -> Response {
    json(health::list_json(&supervisor.registry().snapshot()))
}

pub(super) async fn health(
    State(supervisor): State<Supervisor>,
    Path(name): Path<String>,
) -> Response {
    match supervisor.plugin(&name) {
        Some(handle) => json(health::health_json(&handle)),
        None => plugin_not_found(&name),
    }
}

pub(super) async fn manifest(
    State(supervisor): State<Supervisor>,
    Path(name): Path<String>,
) -> Response {
    let Some(handle) = supervisor.plugin(&name) else { return plugin_not_found(&name) };
    let snapshot = handle.snapshot();
    match &snapshot.manifest {
        Some(manifest) => Json(&**manifest).into_response(),
        None => {
            let reason = snapshot.cause.as_ref().map(|cause| cause.reason.clone());
            super::detail(StatusCode::NOT_FOUND, &reason.unwrap_or_default())
        }
    }
}

pub(super) async fn sandbox(
    State(supervisor): State<Supervisor>,
    Path(name): Path<String>,
) -> Response {
    let Some(handle) = supervisor.plugin(&name) else { return plugin_not_found(&name) };
    match sandbox::sandbox(&handle) {
        Some(report) => Json(report).into_response(),
        None => super::detail(StatusCode::NOT_FOUND, "Its first checks are not done yet."),
    }
}

pub(super) async fn tools(
    State(supervisor): State<Supervisor>,
    Path(name): Path<String>,
) -> Response {
    let Some(handle) = supervisor.plugin(&name) else { return plugin_not_found(&name) };
    let snapshot = handle.snapshot();
    let list = match &snapshot.session {
        Some(session) => session.tools.described(described),
        None => Bytes::from_static(b"[]"),
    };
    let mut pieces = Pieces::default();
    let (name, state) = (json!(name), json!(snapshot.state().as_str()));
    pieces.text(format!("{{\"plugin\":{name},\"state\":{state},\"tools\":"));
    pieces.text(list);
    pieces.text("}");
    ([(header::CONTENT_TYPE, "application/json")], Body::new(pieces)).into_response()
}

/// The tools as JSON.
fn described(tools: &[Tool]) -> Bytes {
    let schema = |text: &str| serde_json::from_str::<Value>(text).unwrap_or(Value::Null);
    let tool = |tool: &Tool| {
        json!({
            "name": tool.spec.name,
            "title": tool.spec.title,
            "description": tool.spec.description,
            "input_schema": schema(&tool.spec.input_schema),
            "output_schema": schema(&tool.spec.output_schema),
            "streams": tool.spec.streams,
        })
    };
    let list: Vec<Value> = tools.iter().map(tool).collect();
    Value::Array(list).to_string().into()
}

/// The daemon answers.
pub(super) async fn healthz() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// The folders have been read and calls are taken.
pub(super) async fn readyz(State(supervisor): State<Supervisor>) -> Response {
    let registry = supervisor.registry().snapshot();
    let ready = registry.scanned && !registry.draining;
    let (status, word) = match ready {
        true => (StatusCode::OK, "ready"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
    };
    let mut problems = supervisor.problems();
    if registry.draining {
        problems.push("the daemon is ending".to_owned());
    } else if !registry.scanned {
        problems.push("the plugin folders are being read".to_owned());
    }
    (status, Json(json!({ "status": word, "problems": problems }))).into_response()
}

/// Events as they happen (server-sent events).
pub(super) async fn events(
    State(supervisor): State<Supervisor>,
    Extension(watch): Extension<Watch>,
    Extension(caller): Extension<Caller>,
) -> Response {
    let Some(place) = watch.place(Some(&caller)) else {
        return super::detail(StatusCode::TOO_MANY_REQUESTS, Watch::FULL);
    };
    let events = follow(supervisor.journal(), Wish { last: 0, new: true }, place);
    let told = events.map(|event| {
        let data = json!({
            "sequence": event.sequence,
            "time": event.time.to_string(),
            "plugin": &*event.plugin,
            "generation": event.generation,
            "kind": event.kind.as_str(),
            "state": event.state,
            "substate": event.substate,
            "message": &event.message,
            "cause": event.cause,
        });
        let told = sse::Event::default().id(event.sequence.to_string());
        Ok::<_, std::convert::Infallible>(told.event(event.kind.as_str()).data(data.to_string()))
    });
    // A client that is gone is noticed when something is written.
    let quiet = sse::KeepAlive::new().interval(limits::QUIET);
    ([(header::CACHE_CONTROL, "no-store")], sse::Sse::new(told).keep_alive(quiet)).into_response()
}
