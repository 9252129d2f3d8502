//! Admin actions. By the unix socket, or with a token of the role admin.

use axum::{
    Extension, Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use serde_json::json;

use super::{detail, plugin_not_found};
use crate::{
    Supervisor,
    gateway::{
        door::{Caller, NOT_HERE},
        report::health,
    },
    plugin::Command,
};

pub(super) async fn act(
    State(supervisor): State<Supervisor>,
    Extension(caller): Extension<Caller>,
    Path((name, action)): Path<(String, String)>,
) -> Response {
    let Some(who) = caller.admin() else { return detail(StatusCode::FORBIDDEN, NOT_HERE) };
    let command = match action.as_str() {
        "start" => Command::Start(who),
        "stop" => Command::Stop(who),
        "restart" => Command::Restart(who),
        "reset" => Command::Reset(who),
        "enable" => Command::Enable(who),
        "disable" => Command::Disable(who),
        "reload" => {
            supervisor.reload().await;
            return match supervisor.plugin(&name) {
                Some(handle) => Json(health::health(&handle)).into_response(),
                None => plugin_not_found(&name),
            };
        }
        _ => return detail(StatusCode::NOT_FOUND, "Not Found"),
    };
    let Some(handle) = supervisor.plugin(&name) else { return plugin_not_found(&name) };
    let is_kept = command.is_kept();
    if let Err(error) = handle.order(command).await {
        return detail(StatusCode::TOO_MANY_REQUESTS, &error.to_string());
    }
    if is_kept && let Err(why) = supervisor.noted(&name).await {
        return detail(StatusCode::SERVICE_UNAVAILABLE, &why);
    }
    (StatusCode::ACCEPTED, Json(health::health(&handle))).into_response()
}

pub(super) async fn reload_all(
    State(supervisor): State<Supervisor>,
    Extension(caller): Extension<Caller>,
) -> Response {
    if caller.admin().is_none() {
        return detail(StatusCode::FORBIDDEN, NOT_HERE);
    }
    let reloaded = supervisor.reload_all().await;
    Json(json!({
        "added": reloaded.added,
        "changed": reloaded.changed,
        "removed": reloaded.removed,
        "problems": reloaded.problems,
    }))
    .into_response()
}
