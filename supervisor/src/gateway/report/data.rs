//! Stored values, workspaces, and who changed what.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde::Serialize;
use serde_json::{Value, json, value::RawValue};
use stockade_proto::v1;

use super::parse;
use crate::store::{Provenance, Row, Workspace, Workspaces, time_text};

/// A stored value.
pub fn value(row: Row) -> v1::Value {
    v1::Value {
        plugin: row.plugin,
        key: row.key,
        size: row.entry.data.len() as u64,
        binary: row.entry.binary,
        expires_at: (row.entry.expires > 0).then(|| time_text(row.entry.expires)),
        modified_at: time_text(row.entry.modified),
        data: row.entry.data,
    }
}

/// As JSON; bytes are base64.
pub fn value_json(of: &v1::Value, with_data: bool) -> Value {
    let mut value = json!({
        "plugin": of.plugin, "key": of.key, "binary": of.binary,
        "expires_at": of.expires_at, "modified_at": of.modified_at,
    });
    if with_data {
        value["value"] = match of.binary {
            true => json!(STANDARD.encode(&of.data)),
            false => parse(&of.data),
        };
    }
    value
}

/// The same as text, with the data, which is not read for it: it is JSON, and large.
pub fn value_text(of: &v1::Value) -> Vec<u8> {
    let mut text = value_json(of, false).to_string().into_bytes();
    // Its closing brace.
    text.pop();
    text.extend_from_slice(b",\"value\":");
    match of.binary {
        true => text.extend_from_slice(format!("\"{}\"", STANDARD.encode(&of.data)).as_bytes()),
        false => text.extend_from_slice(&of.data),
    }
    text.push(b'}');
    text
}

/// A workspace; one that nobody has configured is empty.
pub fn workspace(name: &str, of: Option<&Workspace>) -> v1::Workspace {
    let document = of.map(|workspace| workspace.text.clone()).filter(|text| !text.is_empty());
    let enabled = of.and_then(|workspace| workspace.enabled.clone());
    v1::Workspace {
        name: name.to_owned(),
        document: document.unwrap_or_else(|| Bytes::from_static(b"{}")),
        configured: of.is_some(),
        all_enabled: enabled.is_none(),
        enabled_plugins: enabled.unwrap_or_default().into_iter().collect(),
        closed: String::new(),
    }
}

/// The same of one that may be closed.
pub fn known_workspace(name: &str, known: &Workspaces) -> v1::Workspace {
    let mut one = workspace(name, known.get(name).as_deref());
    if let Some(why) = known.why_closed(name) {
        one.all_enabled = false;
        one.closed = why;
    }
    one
}

/// As JSON; the document is the text that was set.
#[derive(Debug, Serialize)]
pub struct WorkspaceJson<'w> {
    name: &'w str,
    configured: bool,
    enabled_plugins: Option<&'w [String]>,
    document: &'w RawValue,
    closed: Option<&'w str>,
}

/// As JSON.
pub fn workspace_json(of: &v1::Workspace) -> WorkspaceJson<'_> {
    WorkspaceJson {
        name: &of.name,
        configured: of.configured,
        enabled_plugins: (!of.all_enabled).then_some(&of.enabled_plugins),
        document: serde_json::from_slice(&of.document).unwrap_or(RawValue::NULL),
        closed: (!of.closed.is_empty()).then_some(&of.closed),
    }
}

/// All of them, as the text of a JSON object.
pub fn workspaces_text(all: &BTreeMap<String, Arc<Workspace>>, closed: Option<&str>) -> Vec<u8> {
    let mut text = b"{\"workspaces\":[".to_vec();
    for (index, (name, one)) in all.iter().enumerate() {
        if index > 0 {
            text.push(b',');
        }
        let _ = serde_json::to_writer(&mut text, &workspace_json(&workspace(name, Some(one))));
    }
    text.extend_from_slice(b"],\"closed\":");
    let _ = serde_json::to_writer(&mut text, &closed);
    text.push(b'}');
    text
}

/// A record of a change.
pub fn provenance(record: Provenance) -> v1::ProvenanceRecord {
    v1::ProvenanceRecord {
        id: record.id,
        time: time_text(record.time),
        actor: record.author.actor.to_string(),
        generation: record.author.generation,
        call_id: record.author.call.to_string(),
        workspace: record.author.workspace.to_string(),
        operation: record.operation,
        key: record.key,
    }
}

/// As JSON.
pub fn provenance_json(of: &v1::ProvenanceRecord) -> Value {
    json!({
        "id": of.id, "time": of.time, "actor": of.actor, "generation": of.generation,
        "call_id": of.call_id, "workspace": of.workspace, "operation": of.operation,
        "key": of.key,
    })
}
