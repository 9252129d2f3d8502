//! HTTP with JSON, as the seeds and their clients have it.

mod actions;
mod admin;
mod bounded;
mod data;
mod extensions;
mod inlined;
mod parts;
mod plugins;
mod render;
mod run;
mod stream;

use std::error::Error;

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Request},
    http::{StatusCode, request::Parts},
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use super::{
    body,
    door::{Caller, NOT_HERE},
    texts,
    watch::Watch,
};
use crate::{Supervisor, capacity::read_exactly};

/// Every route.
pub(super) fn router(supervisor: &Supervisor, watch: &Watch) -> Router {
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
        .route("/v1/plugins/{name}/permissions", get(data::plugin_permissions))
        .route("/v1/plugins/{name}/{action}", post(actions::act))
        .route("/v1/extensions", get(extensions::list))
        .route("/v1/conditions/evaluate", post(extensions::evaluate))
        .route("/v1/effects/apply", post(extensions::apply))
        .route("/v1/simulation-config/build", post(extensions::build))
        .route("/v1/plugin-events", post(extensions::emit))
        .route("/v1/permissions", get(data::permissions))
        .route("/v1/kv/{plugin}", get(data::keys))
        .route(
            "/v1/kv/{plugin}/{*key}",
            get(data::get_value).put(data::set_value).delete(data::delete_value),
        )
        .route("/v1/provenance", get(data::provenance))
        .route("/v1/workspaces", get(data::workspaces))
        .route("/v1/workspaces:reopen", post(data::reopen_workspaces))
        .route(
            "/v1/workspaces/{name}",
            get(data::workspace).put(data::set_workspace).delete(data::delete_workspace),
        )
        .route("/v1/workspaces/{name}/{action}", post(data::switch_in_workspace))
        .route("/admin/plugins/list", get(admin::list))
        .route("/admin/plugins/metrics", get(admin::metrics))
        .route("/admin/plugins/metrics/reset", post(admin::reset_metrics))
        .route("/admin/plugins/metrics/{plugin}", get(admin::metrics_of))
        .route("/admin/plugins/health", get(admin::health))
        .route("/admin/plugins/behavior-extensions", get(admin::extensions))
        .route("/admin/plugins/{plugin}/details", get(admin::details))
        .route("/v1/events", get(plugins::events))
        // Bodies are bounded before they come here.
        .layer(DefaultBodyLimit::disable())
        .layer(Extension(watch.clone()))
        .fallback(|| async { detail(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async {
            detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed")
        })
        .with_state(supervisor.clone())
}

/// Who asks, if it may act as an operator; everybody else is answered 403.
struct Operator(String);

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let who = parts.extensions.get::<Caller>().and_then(Caller::admin);
        who.map(Operator).ok_or_else(|| detail(StatusCode::FORBIDDEN, NOT_HERE))
    }
}

/// The body of a request.
struct Text(Bytes);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        body::read(request.into_body()).await.map(Text).map_err(|error| {
            body_failed(&error)
                .unwrap_or_else(|| detail(StatusCode::BAD_REQUEST, "the body did not come"))
        })
    }
}

/// Why a body was not read, if it is we who did not want it.
fn body_failed(error: &(dyn Error + 'static)) -> Option<Response> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(status) = error.downcast_ref::<tonic::Status>() {
            return Some(refused_body(status));
        }
        cause = error.source();
    }
    None
}

/// What [`body::Counted`] says, over HTTP.
pub(super) fn refused_body(status: &tonic::Status) -> Response {
    let code = match status.code() {
        tonic::Code::OutOfRange => StatusCode::PAYLOAD_TOO_LARGE,
        tonic::Code::ResourceExhausted | tonic::Code::Unavailable => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        tonic::Code::DeadlineExceeded => StatusCode::REQUEST_TIMEOUT,
        tonic::Code::InvalidArgument => StatusCode::UNPROCESSABLE_ENTITY,
        _ => StatusCode::BAD_REQUEST,
    };
    let mut response = detail(code, status.message());
    if code == StatusCode::SERVICE_UNAVAILABLE {
        let second = axum::http::HeaderValue::from(1);
        response.headers_mut().insert(axum::http::header::RETRY_AFTER, second);
    }
    response
}

/// A body of JSON; no body is `{}`.
fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, Box<Response>> {
    let text = if text.is_empty() { b"{}" } else { text };
    let read = is_object(text).and_then(|()| read_exactly(text).map_err(|error| error.to_string()));
    read.map_err(|why| {
        let why = format!("the body is not as it should be: {why}");
        Box::new(detail(StatusCode::UNPROCESSABLE_ENTITY, &why))
    })
}

/// An array would be taken for the fields of an object, in their order.
fn is_object(text: &[u8]) -> Result<(), String> {
    match text {
        [0xef, 0xbb, 0xbf, ..] | [0xfe, 0xff, ..] | [0xff, 0xfe, ..] | [0, ..] | [_, 0, ..] => {
            Err("it begins with a byte order mark, or is UTF-16: send UTF-8 without one".to_owned())
        }
        _ if text.trim_ascii_start().first() == Some(&b'{') => Ok(()),
        _ => Err("it is no JSON object".to_owned()),
    }
}

/// The same, by the crew when it is large.
async fn read<T: DeserializeOwned + Send + 'static>(
    supervisor: &Supervisor,
    text: Bytes,
) -> Result<T, Box<Response>> {
    let read = texts::read(supervisor, text, |text| parse(text)).await;
    read.unwrap_or_else(|why| {
        Err(Box::new(detail(StatusCode::SERVICE_UNAVAILABLE, &why.to_string())))
    })
}

/// `{"detail": "…"}`
fn detail(status: StatusCode, text: &str) -> Response {
    (status, Json(json!({ "detail": text }))).into_response()
}

fn plugin_not_found(name: &str) -> Response {
    detail(StatusCode::NOT_FOUND, &format!("Plugin '{name}' not found"))
}
