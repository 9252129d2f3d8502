//! HTTP with JSON, as the seeds and their clients have it.

mod actions;
mod plugins;
mod run;
mod stream;

use axum::{
    Json, Router,
    extract::DefaultBodyLimit,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde_json::json;

use crate::Supervisor;

/// Every route.
pub(super) fn router(supervisor: &Supervisor) -> Router {
    let limit = supervisor.config().max_request;
    Router::new()
        .route("/healthz", get(plugins::healthz))
        .route("/readyz", get(plugins::readyz))
        .route("/v1/plugins", get(plugins::list))
        .route("/v1/plugins/", get(plugins::list))
        .route("/v1/plugins/reload", post(actions::reload_all))
        .route("/v1/plugins/{name}/health", get(plugins::health))
        .route("/v1/plugins/{name}/manifest", get(plugins::manifest))
        .route("/v1/plugins/{name}/sandbox", get(plugins::sandbox))
        .route("/v1/plugins/{name}/tools", get(plugins::tools))
        .route("/v1/plugins/{name}/tools/{tool}/run", post(run::run))
        .route("/v1/plugins/{name}/{action}", post(actions::act))
        .route("/v1/events", get(plugins::events))
        // A third of base64 on top of the payload.
        .layer(DefaultBodyLimit::max(limit / 3 * 4 + (1 << 20)))
        .fallback(|| async { detail(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async {
            detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        })
        .with_state(supervisor.clone())
}

/// `{"detail": "…"}`
fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}

fn plugin_not_found(name: &str) -> Response {
    detail(StatusCode::NOT_FOUND, &format!("Plugin '{name}' not found"))
}
