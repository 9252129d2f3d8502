//! Conditions, effects, simulation configuration; events of servers.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Operator, Text, detail, parse};
use crate::{Supervisor, gateway::report, services::Answer};

pub(super) async fn list(State(supervisor): State<Supervisor>) -> Response {
    let list = report::extensions::extensions(&supervisor);
    Json(report::extensions::json(&list)).into_response()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Evaluate {
    condition_id: String,
    #[serde(default)]
    context: Map<String, Value>,
    #[serde(default)]
    workspace: String,
    enabled_plugins: Option<Arc<BTreeSet<String>>>,
    timeout_ms: Option<u64>,
}

fn answer<T: serde::Serialize>(answer: Answer<T>) -> Response {
    let (error_type, reason) = answer.why.unzip();
    Json(json!({ "result": answer.result, "reason": reason, "error_type": error_type }))
        .into_response()
}

pub(super) async fn evaluate(State(supervisor): State<Supervisor>, Text(text): Text) -> Response {
    let request: Evaluate = match parse(&text) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let evaluated = supervisor
        .services()
        .evaluate_condition(
            &request.condition_id,
            request.context,
            &request.workspace,
            request.enabled_plugins,
            request.timeout_ms.map(Duration::from_millis),
        )
        .await;
    answer(evaluated)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Apply {
    effect_id: String,
    #[serde(default)]
    context: Map<String, Value>,
    #[serde(default)]
    params: Map<String, Value>,
    #[serde(default)]
    workspace: String,
    enabled_plugins: Option<Arc<BTreeSet<String>>>,
    timeout_ms: Option<u64>,
}

pub(super) async fn apply(State(supervisor): State<Supervisor>, Text(text): Text) -> Response {
    let request: Apply = match parse(&text) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let applied = supervisor
        .services()
        .apply_effect(
            &request.effect_id,
            request.context,
            request.params,
            &request.workspace,
            request.enabled_plugins,
            request.timeout_ms.map(Duration::from_millis),
        )
        .await;
    answer(applied)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Build {
    base: Option<Map<String, Value>>,
    #[serde(default)]
    workspace: String,
    enabled_plugins: Option<Arc<BTreeSet<String>>>,
}

pub(super) async fn build(State(supervisor): State<Supervisor>, Text(text): Text) -> Response {
    let request: Build = match parse(&text) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let services = supervisor.services();
    let built = services
        .build_simulation_config(request.base, &request.workspace, request.enabled_plugins)
        .await;
    match built {
        Ok(built) => {
            let skipped = built.skipped.into_iter();
            let skipped: Vec<Value> = skipped
                .map(|(provider_id, reason)| json!({"provider_id": provider_id, "reason": reason}))
                .collect();
            Json(json!({
                "config": built.config, "applied": built.applied, "skipped": skipped,
            }))
            .into_response()
        }
        Err(why) => detail(StatusCode::UNPROCESSABLE_ENTITY, &why),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Emit {
    name: String,
    #[serde(default)]
    payload: Value,
    #[serde(default)]
    workspace: String,
}

pub(super) async fn emit(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Text(text): Text,
) -> Response {
    let request: Emit = match parse(&text) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let payload = request.payload.to_string().into();
    match supervisor.services().emit(&request.name, payload, &request.workspace) {
        Ok((sequence, subscribers)) => {
            Json(json!({ "sequence": sequence, "subscribers": subscribers })).into_response()
        }
        Err(why) => detail(StatusCode::UNPROCESSABLE_ENTITY, &why),
    }
}
