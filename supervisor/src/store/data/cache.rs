//! The values that were read or written last, so that a read does not wait for
//! another thread.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

use super::{Entry, now_ms};

/// Bytes kept, and keys: then the oldest go.
const ROOM: usize = 64 << 20;
const KEYS: usize = 16 << 10;
/// So many go at once; what would need more room than that is not kept.
const AT_ONCE: usize = 64;
/// What an entry costs besides its bytes.
const OVERHEAD: usize = 160;

/// Last known values; None = known not to be there.
#[derive(Debug, Default)]
pub(super) struct Cache(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    plugins: HashMap<Arc<str>, HashMap<Arc<str>, Option<Entry>>>,
    /// As they came. One that has gone since may be there still.
    order: VecDeque<(Arc<str>, Arc<str>)>,
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
        self.remove(plugin, key);
        let size = size_of(key, entry.as_ref());
        for _ in 0..AT_ONCE {
            if self.bytes + size <= ROOM && self.order.len() < KEYS {
                return self.insert(plugin, key, entry, size);
            }
            let Some((plugin, key)) = self.order.pop_front() else { return };
            self.remove(&plugin, &key);
        }
    }

    fn insert(&mut self, plugin: &str, key: &str, entry: Option<Entry>, size: usize) {
        // Of its own: it may be a small part of a large message.
        let entry = entry.map(|entry| Entry { data: Bytes::copy_from_slice(&entry.data), ..entry });
        let known = self.plugins.get_key_value(plugin).map(|(known, _)| known.clone());
        let (plugin, key): (Arc<str>, Arc<str>) =
            (known.unwrap_or_else(|| plugin.into()), key.into());
        self.order.push_back((plugin.clone(), key.clone()));
        self.plugins.entry(plugin).or_default().insert(key, entry);
        self.bytes += size;
    }

    fn remove(&mut self, plugin: &str, key: &str) {
        let Some(keys) = self.plugins.get_mut(plugin) else { return };
        if let Some(entry) = keys.remove(key) {
            self.bytes -= size_of(key, entry.as_ref());
        }
    }
}

fn size_of(key: &str, entry: Option<&Entry>) -> usize {
    key.len() + entry.map_or(0, |entry| entry.data.len()) + OVERHEAD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_the_last_is_known() {
        let cache = Cache::default();
        let entry = |size: usize| Some(Entry::new(vec![7; size].into(), true, 0));
        for n in 0..100 {
            cache.changed("a", &format!("large {n}"), entry(1 << 20));
        }
        assert_eq!(cache.get("a", "large 0"), None);
        assert!(cache.get("a", "large 99").flatten().is_some());
        assert!(cache.lock().bytes <= ROOM);
        for n in 0..2 * KEYS {
            cache.changed("b", &format!("none {n}"), None);
            cache.changed("b", "often", entry(n % 9));
        }
        assert_eq!(cache.get("b", &format!("none {}", 2 * KEYS - 1)), Some(None));
        assert_eq!(
            cache.get("b", "often").flatten().map(|one| one.data.len()),
            Some((2 * KEYS - 1) % 9)
        );
        let known = cache.lock();
        assert!(known.order.len() <= KEYS && known.bytes <= ROOM);
        // A part of a message does not keep the message.
        let message = Bytes::from(vec![1; 1 << 20]);
        drop(known);
        let part = Entry { data: message.slice(..1), ..entry(0).unwrap() };
        cache.changed("c", "k", Some(part));
        assert!(message.is_unique());
    }
}
