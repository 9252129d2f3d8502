//! `/admin/plugins/…`: the sources' admin endpoints. Role admin.

use axum::{
    Json,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::json;

use super::{Operator, detail, plugin_not_found};
use crate::{
    Supervisor,
    gateway::{
        grpc::observability::{no_metrics, reset},
        report, whole,
    },
};

pub(super) async fn list(_: Operator, State(supervisor): State<Supervisor>) -> Response {
    let asked = supervisor.clone();
    whole::json(&supervisor, move || report::extensions::list_json(&asked)).await
}

pub(super) async fn metrics(_: Operator, State(supervisor): State<Supervisor>) -> Response {
    let all = report::metrics::all(&supervisor.registry().snapshot());
    whole::json(&supervisor, move || report::metrics::all_json(&all)).await
}

pub(super) async fn metrics_of(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Path(plugin): Path<String>,
) -> Response {
    match supervisor.plugin(&plugin) {
        Some(handle) => {
            let make = move || report::metrics::json(&report::metrics::metrics(&handle));
            whole::json(&supervisor, make).await
        }
        None => detail(StatusCode::NOT_FOUND, &no_metrics(&plugin)),
    }
}

pub(super) async fn health(_: Operator, State(supervisor): State<Supervisor>) -> Response {
    let all = report::metrics::all(&supervisor.registry().snapshot());
    whole::json(&supervisor, move || report::metrics::health_json(&all)).await
}

pub(super) async fn extensions(_: Operator, State(supervisor): State<Supervisor>) -> Response {
    let asked = supervisor.clone();
    let make = move || report::extensions::json(&report::extensions::extensions(&asked));
    whole::json(&supervisor, make).await
}

pub(super) async fn details(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Path(plugin): Path<String>,
) -> Response {
    match supervisor.plugin(&plugin) {
        Some(handle) => {
            let asked = supervisor.clone();
            let make = move || report::extensions::details_json(&asked, &handle);
            whole::json(&supervisor, make).await
        }
        None => plugin_not_found(&plugin),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Which {
    plugin_id: Option<String>,
}

pub(super) async fn reset_metrics(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Query(which): Query<Which>,
) -> Response {
    let plugin = which.plugin_id.as_deref().filter(|plugin| !plugin.is_empty());
    match reset(&supervisor, plugin) {
        Some(message) => Json(json!({ "status": "ok", "message": message })).into_response(),
        None => detail(StatusCode::NOT_FOUND, &no_metrics(plugin.unwrap_or_default())),
    }
}
