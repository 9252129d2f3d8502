//! The context that a service elsewhere gets: only what its permissions allow.

use serde_json::{Map, Value};

use crate::manifest::{Manifest, Remote};

/// Beginnings of keys, and what a plugin must hold to see them.
const KEYS: [(&str, &str); 4] = [
    ("session_", "session:read"),
    ("npc_", "npc:read"),
    ("world_", "world:read"),
    ("location_", "world:read"),
];

/// Drops the keys that this remote plugin must not see. Keys of no permission are
/// dropped unless `remote.context` lists them.
pub(super) fn context(
    manifest: &Manifest,
    remote: &Remote,
    mut context: Map<String, Value>,
) -> Map<String, Value> {
    context.retain(|key, _| {
        let needed = KEYS.iter().find(|(prefix, _)| key.starts_with(prefix));
        match needed {
            Some((_, permission)) => manifest.permissions.has(permission),
            None => remote.context.iter().any(|listed| listed == key),
        }
    });
    context
}
