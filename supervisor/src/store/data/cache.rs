//! The values that were read or written last, so that a read does not wait for
//! another thread.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::{Entry, now_ms};

/// Bytes kept; then it starts over.
const ROOM: usize = 64 << 20;
/// What an entry costs besides its bytes.
const OVERHEAD: usize = 160;

/// Last known values; None = known not to be there.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    plugins: HashMap<String, HashMap<String, Option<Entry>>>,
    bytes: usize,
    /// Counts changes: what was read before one is not kept after it.
    changes: u64,
}

impl Cache {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a key: Some(None) = it is not there.
    pub(super) fn get(&self, plugin: &str, key: &str) -> Option<Option<Entry>> {
        let known = self.lock().plugins.get(plugin)?.get(key)?.clone();
        Some(known.filter(|entry| !entry.expired(now_ms())))
    }

    /// How many changes there were; for [`Cache::keep`].
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Keeps what was read, unless something has changed since.
    pub(super) fn keep(&self, plugin: &str, key: &str, entry: Option<Entry>, changes: u64) {
        let mut known = self.lock();
        if known.changes == changes {
            known.put(plugin, key, entry);
        }
    }

    /// A change has been committed.
    pub(super) fn changed(&self, plugin: &str, key: &str, entry: Option<Entry>) {
        let mut known = self.lock();
        known.changes += 1;
        known.put(plugin, key, entry);
    }
}

impl Known {
    fn put(&mut self, plugin: &str, key: &str, entry: Option<Entry>) {
        let size = key.len() + entry.as_ref().map_or(0, |entry| entry.data.len()) + OVERHEAD;
        if self.bytes + size > ROOM {
            self.plugins.clear();
            self.bytes = 0;
        }
        self.bytes += size;
        if !self.plugins.contains_key(plugin) {
            self.plugins.insert(plugin.to_owned(), HashMap::new());
        }
        if let Some(keys) = self.plugins.get_mut(plugin) {
            keys.insert(key.to_owned(), entry);
        }
    }
}
