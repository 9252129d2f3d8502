//! What plugins requested, were granted, and how they use it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use stockade_proto::v1;

use crate::{Supervisor, manifest::risk, plugin::Handle, store::DataError};

/// Of one plugin (None = of all).
///
/// # Errors
/// The store cannot be read.
pub async fn permissions(
    supervisor: &Supervisor,
    handles: &[Handle],
) -> Result<Vec<v1::PluginPermissions>, DataError> {
    let mut list = Vec::new();
    for handle in handles {
        list.push(one(supervisor, handle).await?);
    }
    Ok(list)
}

async fn one(supervisor: &Supervisor, handle: &Handle) -> Result<v1::PluginPermissions, DataError> {
    let services = supervisor.services();
    let plugin = handle.name();
    let manifest = handle.snapshot().manifest.clone();
    let (permissions, quota) =
        manifest.map(|manifest| (manifest.permissions.clone(), manifest.quota)).unwrap_or_default();
    let used = services.permission_use(plugin);
    let usage = services.data().usage(plugin).await?;
    let names: BTreeSet<&String> = permissions
        .granted
        .iter()
        .chain(&permissions.denied)
        .chain(&permissions.unknown)
        .chain(used.permissions.keys())
        .collect();
    let rows = names.into_iter().map(|name| {
        let (status, note) = if permissions.granted.contains(name) {
            ("granted", risk(name).unwrap_or_default())
        } else if permissions.denied.contains(name) {
            ("denied", "not allowed by the configuration ([permissions])")
        } else if permissions.unknown.contains(name) {
            ("unknown", "there is no such permission")
        } else if permissions.has(name) {
            ("granted", "by plugin:call")
        } else {
            ("not requested", "")
        };
        let counts = used.permissions.get(name).copied().unwrap_or_default();
        v1::PermissionUse {
            permission: name.clone(),
            status: status.to_owned(),
            used: counts.used,
            refused: counts.refused,
            note: note.to_owned(),
        }
    });
    Ok(v1::PluginPermissions {
        plugin: plugin.to_string(),
        requested: permissions.requested.clone(),
        permissions: rows.collect(),
        quota: Some(v1::Quota {
            keys: usage.keys,
            max_keys: quota.keys,
            bytes: usage.bytes,
            max_bytes: quota.bytes,
            max_value_bytes: quota.value,
            max_requests_per_second: quota.requests,
            max_writes_per_second: quota.writes,
            max_events_per_second: quota.events,
            max_series: quota.series,
            refused: used.over_quota,
        }),
    })
}

/// As JSON.
pub fn json(of: &v1::PluginPermissions) -> Value {
    let with = |status: &str| {
        let those = of.permissions.iter().filter(|one| one.status == status);
        those.map(|one| one.permission.clone()).collect::<Vec<_>>()
    };
    let used = of.permissions.iter().map(|one| {
        json!({
            "permission": one.permission, "status": one.status, "used": one.used,
            "refused": one.refused, "note": one.note,
        })
    });
    let quota = of.quota.unwrap_or_default();
    json!({
        "plugin": of.plugin,
        "requested": of.requested,
        "granted": with("granted"),
        "denied": with("denied"),
        "unknown": with("unknown"),
        "permissions": used.collect::<Vec<_>>(),
        "quota": {
            "keys": quota.keys, "max_keys": quota.max_keys,
            "bytes": quota.bytes, "max_bytes": quota.max_bytes,
            "max_value_bytes": quota.max_value_bytes,
            "max_requests_per_second": quota.max_requests_per_second,
            "max_writes_per_second": quota.max_writes_per_second,
            "max_events_per_second": quota.max_events_per_second,
            "max_series": quota.max_series,
            "refused": quota.refused,
        },
    })
}
