//! Conditions, effects, simulation configuration; events of servers.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{
    Operator, Text,
    bounded::{Id, Name, Part, PluginNames},
    detail, parse, read,
    render::Pieces,
};
use crate::{
    Supervisor,
    gateway::{report, texts, whole},
    services::{Unbuilt, check_json},
};

pub(super) async fn list(State(supervisor): State<Supervisor>) -> Response {
    let asked = supervisor.clone();
    let make = move || report::extensions::json(&report::extensions::extensions(&asked));
    whole::json(&supervisor, make).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluate {
    condition_id: Id,
    #[serde(default)]
    context: Option<Part>,
    #[serde(default)]
    workspace: Name,
    enabled_plugins: Option<PluginNames>,
    timeout_ms: Option<u64>,
}

/// An answer whose result is a text of its own, sent as it is.
fn answer(result: Bytes, why: Option<(String, String)>) -> Response {
    if let Some((_, text)) = why.as_ref().filter(|(kind, _)| kind == "InvalidArguments") {
        return detail(StatusCode::UNPROCESSABLE_ENTITY, text);
    }
    let (error_type, reason) = why.unzip();
    let rest = json!({ "reason": reason, "error_type": error_type }).to_string();
    let mut pieces = Pieces::default();
    pieces.text("{\"result\":");
    pieces.text(result);
    pieces.text(format!(",{}", &rest[1..]));
    json_body(pieces)
}

fn json_body(pieces: Pieces) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], Body::new(pieces)).into_response()
}

pub(super) async fn evaluate(State(supervisor): State<Supervisor>, Text(text): Text) -> Response {
    let request: Evaluate = match read(&supervisor, text).await {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let evaluated = supervisor
        .services()
        .evaluate_condition(
            texts::turn(),
            &request.condition_id.0,
            request.context.unwrap_or_default().0,
            &request.workspace.0,
            request.enabled_plugins.map(|names| names.0),
            request.timeout_ms.map(Duration::from_millis),
        )
        .await;
    answer(Bytes::from(evaluated.result.to_string()), evaluated.why)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    effect_id: Id,
    #[serde(default)]
    context: Option<Part>,
    #[serde(default)]
    params: Option<Part>,
    #[serde(default)]
    workspace: Name,
    enabled_plugins: Option<PluginNames>,
    timeout_ms: Option<u64>,
}

pub(super) async fn apply(State(supervisor): State<Supervisor>, Text(text): Text) -> Response {
    let request: Apply = match read(&supervisor, text).await {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let applied = supervisor
        .services()
        .apply_effect(
            texts::turn(),
            &request.effect_id.0,
            (request.context.unwrap_or_default().0, request.params.unwrap_or_default().0),
            &request.workspace.0,
            request.enabled_plugins.map(|names| names.0),
            request.timeout_ms.map(Duration::from_millis),
        )
        .await;
    answer(applied.result, applied.why)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    base: Option<Part>,
    #[serde(default)]
    workspace: Name,
    enabled_plugins: Option<PluginNames>,
}

pub(super) async fn build(State(supervisor): State<Supervisor>, Text(text): Text) -> Response {
    let request: Build = match read(&supervisor, text).await {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let services = supervisor.services();
    let built = services
        .build_simulation_config(
            texts::turn(),
            request.base.map(|base| base.0),
            &request.workspace.0,
            request.enabled_plugins.map(|names| names.0),
        )
        .await;
    match built {
        Ok(built) => {
            let skipped = built.skipped.into_iter();
            let skipped: Vec<Value> = skipped
                .map(|(provider_id, reason)| json!({"provider_id": provider_id, "reason": reason}))
                .collect();
            let rest = json!({ "applied": built.applied, "skipped": skipped }).to_string();
            let mut pieces = Pieces::default();
            pieces.text("{\"config\":");
            pieces.text(built.config);
            pieces.text(format!(",{}", &rest[1..]));
            json_body(pieces)
        }
        Err(Unbuilt::Invalid(why)) => detail(StatusCode::UNPROCESSABLE_ENTITY, &why),
        Err(Unbuilt::Overloaded(why)) => {
            let retry = [(header::RETRY_AFTER, "1")];
            (retry, detail(StatusCode::SERVICE_UNAVAILABLE, &why)).into_response()
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Emit {
    name: String,
    /// As it was written: its numbers stay what they are.
    payload: Option<Box<RawValue>>,
    #[serde(default)]
    workspace: Name,
}

pub(super) async fn emit(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Text(text): Text,
) -> Response {
    let read = texts::read(&supervisor, text, |text| {
        let request: Emit = parse(text)?;
        let payload = request.payload.as_ref().map_or("", |payload| payload.get());
        let checked = check_json(payload.to_owned().into());
        let refuse = |why: String| Box::new(detail(StatusCode::UNPROCESSABLE_ENTITY, &why));
        checked.map_err(refuse).map(|payload| (request.name, payload, request.workspace))
    });
    let (name, payload, workspace) = match read.await {
        Ok(Ok(emit)) => emit,
        Ok(Err(response)) => return *response,
        Err(why) => return detail(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    };
    match supervisor.services().emit_checked(&name, payload, &workspace.0) {
        Ok((sequence, subscribers)) => {
            Json(json!({ "sequence": sequence, "subscribers": subscribers })).into_response()
        }
        Err(why) => detail(StatusCode::UNPROCESSABLE_ENTITY, &why),
    }
}
