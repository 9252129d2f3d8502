//! How much of the host a plugin may use: the operator's `[quota]`.

use serde::Serialize;

use crate::document::Table;

/// The most that one plugin may store and ask.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quota {
    /// Keys in its store.
    pub keys: u64,
    /// Bytes of keys, values and its parts of documents.
    pub bytes: u64,
    /// Bytes of one value.
    pub value: u64,
    /// Requests over the host channel per second.
    pub requests: f64,
    /// Changes of stored data per second.
    pub writes: f64,
    /// Events emitted per second.
    pub events: f64,
    /// Series of its own metrics.
    pub series: u64,
}

impl Default for Quota {
    fn default() -> Self {
        Quota {
            keys: 10_000,
            bytes: 64 << 20,
            value: 1 << 20,
            requests: 20_000.0,
            writes: 2_000.0,
            events: 10_000.0,
            series: 200,
        }
    }
}

impl Quota {
    /// Changes when any of it does.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        format!("{self:?}").hash(&mut hasher);
        hasher.finish()
    }
}

/// Reads `[quota]` over `quota`.
pub fn read_quota(table: Table<'_>, quota: &mut Quota) {
    quota.keys = table.integer("keys", 0..=1_000_000_000).unwrap_or(quota.keys);
    quota.bytes = table.bytes("bytes").unwrap_or(quota.bytes);
    quota.value = table.bytes("value").unwrap_or(quota.value);
    quota.requests = table.positive("requests").unwrap_or(quota.requests);
    quota.writes = table.positive("writes").unwrap_or(quota.writes);
    quota.events = table.positive("events").unwrap_or(quota.events);
    quota.series = table.integer("series", 0..=100_000).unwrap_or(quota.series);
    table.finish();
}
