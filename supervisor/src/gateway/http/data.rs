//! Stored values, permissions, provenance, workspaces. Role admin.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Extension, Json,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use stockade_proto::v1;

use super::{Operator, Text, detail, plugin_not_found, read};
use crate::{
    Supervisor,
    capacity::{Overloaded, limits, read_through},
    gateway::{
        body::Reservation,
        grpc::{
            data::{Pages, actor, handles, key_of},
            workspaces::author,
        },
        report, texts, whole,
    },
    services::HostServices,
    store::{DataError, Entry, Payer, ProvenanceQuery, Row, Workspace, operators_turn},
};

fn refused(error: &DataError) -> Response {
    let status = match error {
        DataError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        DataError::Full(_) | DataError::Quota(_) => StatusCode::INSUFFICIENT_STORAGE,
        DataError::Locked(_) | DataError::Busy | DataError::Room(_) | DataError::Broken(_) => {
            StatusCode::SERVICE_UNAVAILABLE
        }
    };
    detail(status, &error.to_string())
}

// ── permissions ─────────────────────────────────────────────────────────────

pub(super) async fn permissions(_: Operator, State(supervisor): State<Supervisor>) -> Response {
    permissions_of("", &supervisor).await
}

pub(super) async fn plugin_permissions(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Path(plugin): Path<String>,
) -> Response {
    permissions_of(&plugin, &supervisor).await
}

async fn permissions_of(plugin: &str, supervisor: &Supervisor) -> Response {
    let Some(handles) = handles(supervisor, plugin) else { return plugin_not_found(plugin) };
    let list = match report::permissions::permissions(supervisor, &handles).await {
        Ok(list) => list,
        Err(error) => return refused(&error),
    };
    let mut list: Vec<Value> = list.iter().map(report::permissions::json).collect();
    match plugin {
        "" => Json(json!({ "plugins": list })).into_response(),
        _ => Json(list.pop().unwrap_or_default()).into_response(),
    }
}

// ── keys and values ─────────────────────────────────────────────────────────

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listing {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    values: bool,
}

/// What a list of values may take while it is made: two pages, and their text.
const LISTED: usize = 4 * limits::PAGE_BYTES;

pub(super) async fn keys(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Path(plugin): Path<String>,
    Query(listing): Query<Listing>,
    Extension(reservation): Extension<Reservation>,
) -> Response {
    let Listing { prefix, values } = listing;
    let room = if values { LISTED } else { 0 };
    let _room = match reservation.account().charge(room) {
        Ok(room) => room,
        Err(why) => return detail(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    };
    let mut pages = Pages::new(supervisor.services().data(), plugin.clone(), prefix, values);
    let mut list: Vec<Row> = Vec::new();
    let mut bytes = 0;
    let more = loop {
        match pages.next().await {
            Ok(page) if page.is_empty() => break false,
            Ok(_) if list.len() >= limits::PAGE_ROWS || bytes >= limits::PAGE_BYTES => break true,
            Ok(page) => {
                bytes += page.iter().map(|row| row.entry.data.len()).sum::<usize>();
                list.extend(page);
            }
            Err(error) => return refused(&error),
        }
    };
    let text = move || {
        let head = json!({ "plugin": plugin, "total": list.len(), "more": more }).to_string();
        let rows = list.into_iter().map(report::data::value).map(|one| match values {
            true => report::data::value_text(&one),
            false => report::data::value_json(&one, false).to_string().into_bytes(),
        });
        let mut text = head.trim_end_matches('}').to_owned().into_bytes();
        text.extend_from_slice(b",\"values\":[");
        for (index, row) in rows.enumerate() {
            if index > 0 {
                text.push(b',');
            }
            text.extend_from_slice(&row);
        }
        text.extend_from_slice(b"]}");
        text
    };
    json_text(texts::aside(&supervisor, text).await)
}

/// JSON that has been written by the crew.
fn json_text(text: Result<Vec<u8>, Overloaded>) -> Response {
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(why) => detail(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    }
}

pub(super) async fn get_value(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Path((plugin, key)): Path<(String, String)>,
) -> Response {
    let key = key_of(&plugin, &key);
    match supervisor.services().data().get(operators_turn(), &plugin, key).await {
        Ok(Some(entry)) => {
            let row = Row { plugin: plugin.clone(), key: key.to_owned(), entry };
            let text = move || report::data::value_text(&report::data::value(row));
            json_text(texts::aside(&supervisor, text).await)
        }
        Ok(None) => detail(StatusCode::NOT_FOUND, &format!("Plugin '{plugin}' has no key '{key}'")),
        Err(error) => refused(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setting {
    ttl_ms: Option<u64>,
}

pub(super) async fn set_value(
    operator: Operator,
    State(supervisor): State<Supervisor>,
    Path((plugin, key)): Path<(String, String)>,
    Query(setting): Query<Setting>,
    headers: HeaderMap,
    Text(data): Text,
) -> Response {
    if supervisor.plugin(&plugin).is_none() {
        return plugin_not_found(&plugin);
    }
    if setting.ttl_ms == Some(0) {
        let why = "ttl_ms=0 would be gone at once: leave it out for a value that stays";
        return detail(StatusCode::UNPROCESSABLE_ENTITY, why);
    }
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let binary = kind.is_some_and(|kind| kind.starts_with("application/octet-stream"));
    let is_json = |text: &bytes::Bytes| read_through(text).is_ok();
    let valid = match binary {
        true => Ok(true),
        false => texts::read(&supervisor, data.clone(), is_json).await,
    };
    match valid {
        Ok(true) => {}
        Ok(false) => {
            let why = "the body must be the value, as JSON";
            return detail(StatusCode::UNPROCESSABLE_ENTITY, why);
        }
        Err(why) => return detail(StatusCode::SERVICE_UNAVAILABLE, &why.to_string()),
    }
    let key = match HostServices::check_key(&plugin, &key) {
        Ok(key) => key,
        Err(why) => return detail(StatusCode::UNPROCESSABLE_ENTITY, &why),
    };
    let entry = Entry::new(data, binary, setting.ttl_ms.unwrap_or(0));
    let author = author(&operator.0, "");
    let store = supervisor.services().data();
    match store.set(author, &plugin, &key, entry, Payer::operators()).await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refused(&error),
    }
}

pub(super) async fn delete_value(
    operator: Operator,
    State(supervisor): State<Supervisor>,
    Path((plugin, key)): Path<(String, String)>,
) -> Response {
    let author = author(&operator.0, "");
    let key = key_of(&plugin, &key);
    match supervisor.services().data().delete(author, &plugin, key).await {
        Ok(deleted) => Json(json!({ "deleted": deleted })).into_response(),
        Err(error) => refused(&error),
    }
}

// ── provenance ──────────────────────────────────────────────────────────────

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Records {
    #[serde(default)]
    plugin: String,
    key: Option<String>,
    workspace: Option<String>,
    limit: Option<u32>,
}

pub(super) async fn provenance(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Query(wanted): Query<Records>,
) -> Response {
    let query = ProvenanceQuery {
        actor: actor(&wanted.plugin),
        key: wanted.key,
        workspace: wanted.workspace,
        limit: wanted.limit.unwrap_or(100),
    };
    match supervisor.services().data().provenance(query).await {
        Ok(records) => {
            let make = move || {
                let records = records.into_iter().map(report::data::provenance);
                let records: Vec<Value> =
                    records.map(|record| report::data::provenance_json(&record)).collect();
                json!({ "records": records })
            };
            whole::json(&supervisor, make).await
        }
        Err(error) => refused(&error),
    }
}

// ── workspaces ──────────────────────────────────────────────────────────────

pub(super) async fn workspaces(
    _: Operator,
    reservation: Option<Extension<Reservation>>,
    State(supervisor): State<Supervisor>,
) -> Response {
    let known = &supervisor.services().data().workspaces;
    let (all, closed) = (known.all(), known.closed());
    // The names of enabled plugins are in the document, too.
    let size = |one: &Arc<Workspace>| one.text.len() << u32::from(one.enabled.is_some());
    let bytes = all.values().map(|one| size(one) + 256).sum();
    let payer = reservation.map(|Extension(reservation)| (reservation, bytes));
    let make = move || report::data::workspaces_text(&all, closed.as_deref());
    whole::text(&supervisor, payer, make).await
}

pub(super) async fn workspace(
    _: Operator,
    State(supervisor): State<Supervisor>,
    Path(name): Path<String>,
) -> Response {
    let known = report::data::known_workspace(&name, &supervisor.services().data().workspaces);
    whole::text(&supervisor, None, move || workspace_text(&known)).await
}

pub(super) async fn set_workspace(
    operator: Operator,
    State(supervisor): State<Supervisor>,
    Path(name): Path<String>,
    Text(text): Text,
) -> Response {
    if text.trim_ascii().is_empty() {
        let text = "the body is empty: {} enables every plugin, DELETE forgets the workspace";
        return detail(StatusCode::UNPROCESSABLE_ENTITY, text);
    }
    let document: Map<String, Value> = match read(&supervisor, text).await {
        Ok(document) => document,
        Err(response) => return *response,
    };
    let author = author(&operator.0, &name);
    match supervisor.services().data().set_workspace(author, &name, document).await {
        Ok(set) => told(&supervisor, &name, &set).await,
        Err(error) => refused(&error),
    }
}

/// The workspace as it is now.
async fn told(supervisor: &Supervisor, name: &str, set: &Workspace) -> Response {
    let workspace = report::data::workspace(name, Some(set));
    whole::text(supervisor, None, move || workspace_text(&workspace)).await
}

fn workspace_text(workspace: &v1::Workspace) -> Vec<u8> {
    serde_json::to_vec(&report::data::workspace_json(workspace)).unwrap_or_default()
}

pub(super) async fn delete_workspace(
    operator: Operator,
    State(supervisor): State<Supervisor>,
    Path(name): Path<String>,
) -> Response {
    let author = author(&operator.0, &name);
    match supervisor.services().data().delete_workspace(author, &name).await {
        Ok(deleted) => Json(json!({ "deleted": deleted })).into_response(),
        Err(error) => refused(&error),
    }
}

pub(super) async fn reopen_workspaces(
    operator: Operator,
    State(supervisor): State<Supervisor>,
) -> Response {
    let author = author(&operator.0, "");
    match supervisor.services().data().reopen_workspaces(author).await {
        Ok(reopened) => Json(json!({ "reopened": reopened })).into_response(),
        Err(error) => refused(&error),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Enabling {
    plugins: Vec<String>,
    #[serde(default)]
    only: bool,
}

pub(super) async fn switch_in_workspace(
    operator: Operator,
    State(supervisor): State<Supervisor>,
    Path((name, action)): Path<(String, String)>,
    Text(text): Text,
) -> Response {
    if !matches!(action.as_str(), "enable" | "disable") {
        return detail(StatusCode::NOT_FOUND, "Not Found");
    }
    let Enabling { plugins, only } = match read(&supervisor, text).await {
        Ok(enabling) => enabling,
        Err(response) => return *response,
    };
    if plugins.len() > limits::PLUGIN_NAMES {
        let text = format!("plugins has more than {} names", limits::PLUGIN_NAMES);
        return detail(StatusCode::UNPROCESSABLE_ENTITY, &text);
    }
    let author = author(&operator.0, &name);
    let data = supervisor.services().data();
    let set = match action.as_str() {
        "enable" => data.enable_in_workspace(author, &name, plugins, only).await,
        "disable" => {
            let all: BTreeSet<String> =
                supervisor.plugins().keys().map(ToString::to_string).collect();
            data.disable_in_workspace(author, &name, plugins, all).await
        }
        _ => return detail(StatusCode::NOT_FOUND, "Not Found"),
    };
    match set {
        Ok(set) => told(&supervisor, &name, &set).await,
        Err(error) => refused(&error),
    }
}
