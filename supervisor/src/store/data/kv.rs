//! Keys and values, each plugin's own.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};

use super::{
    Author, Data, DataError, Payer, Usage, cache::Cache, now_ms, operators_turn, provenance,
    usage::Room, writer::Change,
};
use crate::{
    capacity::{Charge, Lane, is_quick, limits, read_exactly},
    manifest::Quota,
};

/// The end of the year 9999, in milliseconds since 1970.
const LAST: i64 = 253_402_300_799_999;

/// A value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// JSON text, unless binary.
    pub data: Bytes,
    /// Bytes of any kind.
    pub binary: bool,
    /// Milliseconds since 1970; 0 = never.
    pub expires: i64,
    /// Milliseconds since 1970.
    pub modified: i64,
}

impl Entry {
    /// One that is written now; `ttl_ms` 0 = for ever.
    pub fn new(data: Bytes, binary: bool, ttl_ms: u64) -> Self {
        let modified = now_ms();
        let ttl = i64::try_from(ttl_ms).unwrap_or(i64::MAX);
        let expires = if ttl == 0 { 0 } else { modified.saturating_add(ttl) };
        // A time that cannot be written down does not come.
        let expires = if expires > LAST { 0 } else { expires };
        Entry { data, binary, expires, modified }
    }

    pub(super) fn expired(&self, now: i64) -> bool {
        self.expires > 0 && self.expires <= now
    }
}

/// What a compare-and-set expects to find.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// The key is not there.
    Absent,
    /// It has this value.
    Value(Bytes, bool),
}

/// What came of a compare-and-set: done, or what is there.
pub type Swap = Result<(), Option<Entry>>;

/// A key of a list, with its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose.
    pub plugin: String,
    /// Without the plugin's prefix.
    pub key: String,
    /// Its value.
    pub entry: Entry,
}

impl Data {
    /// A value. What was read or written lately is answered without waiting.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn get(
        self: &Arc<Self>,
        lane: impl Into<Lane>,
        plugin: &str,
        key: &str,
    ) -> Result<Option<Entry>, DataError> {
        if let Some(known) = self.cache.get(plugin, key) {
            return Ok(known);
        }
        let changes = self.cache.changes();
        let (of, which) = (plugin.to_owned(), key.to_owned());
        let entry = self.read(lane, move |connection| Ok(find(connection, &of, &which)?)).await?;
        self.cache.keep(plugin, key, entry.clone(), changes);
        Ok(entry)
    }

    /// Sets a value; it is on the disk when this answers.
    ///
    /// # Errors
    /// There is no room for it, or the store cannot be written.
    pub async fn set(
        self: &Arc<Self>,
        author: Author,
        plugin: &str,
        key: &str,
        entry: Entry,
        payer: Payer,
    ) -> Result<(), DataError> {
        let (of, which, cache) = (plugin.to_owned(), key.to_owned(), self.cache.clone());
        let waits = payer.hold(entry.data.len())?;
        self.write(&author.actor.clone(), move |change| {
            let _waits = waits;
            put(change, &of, &which, &entry, payer.quota)?;
            provenance::record(change, &author, "kv.set", &format!("plugin:{of}:{which}"))?;
            change.after_commit(move || cache.changed(&of, &which, Some(entry)));
            Ok(())
        })
        .await
    }

    /// Deletes a value; false when there was none.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn delete(
        self: &Arc<Self>,
        author: Author,
        plugin: &str,
        key: &str,
    ) -> Result<bool, DataError> {
        let (of, which, cache) = (plugin.to_owned(), key.to_owned(), self.cache.clone());
        self.write(&author.actor.clone(), move |change| {
            let there = remove(change, &of, &which)?;
            if there {
                let key = format!("plugin:{of}:{which}");
                provenance::record(change, &author, "kv.delete", &key)?;
            }
            change.after_commit(move || cache.changed(&of, &which, None));
            Ok(there)
        })
        .await
    }

    /// Sets (or, without an entry, deletes) a value if it is as expected. Texts that are
    /// the same JSON, however they were written, are compared by a thread of its own when
    /// that takes long: no small change waits for it.
    ///
    /// # Errors
    /// There is no room for it, or the store cannot be written.
    pub async fn compare_and_set(
        self: &Arc<Self>,
        author: Author,
        plugin: &str,
        key: &str,
        (expected, entry): (Expectation, Option<Entry>),
        payer: Payer,
    ) -> Result<Swap, DataError> {
        let bytes = expected.bytes() + entry.as_ref().map_or(0, |entry| entry.data.len());
        let _waits = payer.hold(bytes)?;
        let (actor, cache) = (author.actor.clone(), self.cache.clone());
        let (plugin, key) = (plugin.to_owned(), key.to_owned());
        let task =
            Arc::new(Swapping { author, plugin, key, expected, entry, payer, cache, _waits });
        let quick = task.clone();
        if let Some(done) = self.write(&actor, move |change| quick.at_once(change)).await? {
            return Ok(done);
        }
        let data = self.clone();
        self.prepare(&actor, move |connection| task.aside(&data, connection)).await
    }

    /// Rows of one plugin (or all) in order, behind `after`, at most `limit` and as many as
    /// fit into a page; and whether there may be more.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn rows(
        self: &Arc<Self>,
        lane: impl Into<Lane>,
        plugin: Option<String>,
        prefix: String,
        after: (String, String),
        limit: u32,
        values: bool,
    ) -> Result<(Vec<Row>, bool), DataError> {
        self.read(lane, move |connection| {
            // Bounds that the index is asked with: it ends where the keys do.
            let first = (plugin.clone().unwrap_or_default(), prefix.clone());
            let (from, comes) = if after < first { (first, ">=") } else { (after, ">") };
            let below = end_of(&plugin, &prefix);
            let mut select = connection.prepare_cached(&format!(
                "SELECT plugin, key, CASE WHEN ?1 THEN value ELSE zeroblob(0) END, binary, expires, \
                 modified FROM kv WHERE (plugin, key) {comes} (?2, ?3) AND (plugin, key) < (?4, ?5) \
                 AND substr(key, 1, length(?6)) = ?6 AND (expires = 0 OR expires > ?7) \
                 ORDER BY plugin, key LIMIT ?8",
            ))?;
            let limit = limit.min(limits::PAGE_ROWS as u32);
            let now = now_ms();
            let rows = select.query_map(
                params![values, from.0, from.1, below.0, below.1, prefix, now, limit],
                |row| {
                    Ok(Row { plugin: row.get(0)?, key: row.get(1)?, entry: read_entry(row, 2)? })
                },
            )?;
            // As many as fit into a page; one at least.
            let mut page = Vec::new();
            let mut bytes = 0;
            for row in rows {
                let row: Row = row?;
                bytes += row.key.len() + row.entry.data.len();
                if bytes > limits::PAGE_BYTES && !page.is_empty() {
                    return Ok((page, true));
                }
                page.push(row);
            }
            let more = page.len() >= limit as usize;
            Ok((page, more))
        })
        .await
    }

    /// How much a plugin has stored.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn usage(self: &Arc<Self>, plugin: &str) -> Result<Usage, DataError> {
        let plugin = plugin.to_owned();
        self.read(operators_turn(), move |connection| Ok(Usage::of(connection, &plugin)?)).await
    }
}

impl Expectation {
    fn bytes(&self) -> usize {
        match self {
            Expectation::Absent => 0,
            Expectation::Value(data, _) => data.len(),
        }
    }
}

/// A compare-and-set.
struct Swapping {
    author: Author,
    plugin: String,
    key: String,
    expected: Expectation,
    entry: Option<Entry>,
    payer: Payer,
    cache: Arc<Cache>,
    _waits: Option<Charge>,
}

/// The value may change so often while it is compared.
const TRIES: usize = 16;

impl Swapping {
    /// Whether the value is as expected; None: that takes long to find out.
    fn fits(&self, current: Option<&Entry>) -> Option<bool> {
        match (&self.expected, current) {
            // Nothing that large can be there; it is not read.
            (Expectation::Value(data, _), _) if data.len() as u64 > self.payer.quota.value => {
                Some(false)
            }
            (Expectation::Absent, current) => Some(current.is_none()),
            (Expectation::Value(..), None) => Some(false),
            (Expectation::Value(data, binary), Some(entry)) => {
                if entry.binary != *binary || entry.data == *data || *binary {
                    return Some(entry.binary == *binary && entry.data == *data);
                }
                (is_quick(&entry.data) && is_quick(data)).then(|| alike(&entry.data, data))
            }
        }
    }

    /// In the thread that writes; None: there is too much to do.
    fn at_once(&self, change: &mut Change<'_>) -> Result<Option<Swap>, DataError> {
        let current = find(change.connection, &self.plugin, &self.key)?;
        Ok(match self.fits(current.as_ref()) {
            None => None,
            Some(false) => Some(Err(current)),
            Some(true) => Some(Ok(self.store(change)?)),
        })
    }

    /// In a thread of its own: the one that writes sees only whether the value is still
    /// the one that was compared.
    fn aside(self: Arc<Self>, data: &Data, connection: &Connection) -> Result<Swap, DataError> {
        for _ in 0..TRIES {
            let current = find(connection, &self.plugin, &self.key)?;
            let fits = match (self.fits(current.as_ref()), &self.expected, &current) {
                (Some(fits), ..) => fits,
                (None, Expectation::Value(data, _), Some(entry)) => {
                    let _one = self.payer.hold_read(data)?;
                    let _other = self.payer.hold_read(&entry.data)?;
                    alike(&entry.data, data)
                }
                (None, ..) => false,
            };
            if !fits {
                return Ok(Err(current));
            }
            let task = self.clone();
            let stored = data.writer.write_here(&data.prepared, move |change| {
                let is_same = find(change.connection, &task.plugin, &task.key)? == current;
                if is_same {
                    task.store(change)?;
                }
                Ok(is_same)
            });
            if stored? {
                return Ok(Ok(()));
            }
        }
        Err(DataError::Locked(format!("the value of {} changes all the time", self.key)))
    }

    fn store(&self, change: &mut Change<'_>) -> Result<(), DataError> {
        let Swapping { author, plugin, key, entry, payer, cache, .. } = self;
        match entry {
            Some(entry) => put(change, plugin, key, entry, payer.quota)?,
            None => drop(remove(change, plugin, key)?),
        }
        let name = format!("plugin:{plugin}:{key}");
        provenance::record(change, author, "kv.compare_and_set", &name)?;
        let (cache, plugin, key, entry) =
            (cache.clone(), plugin.clone(), key.clone(), entry.clone());
        change.after_commit(move || cache.changed(&plugin, &key, entry));
        Ok(())
    }
}

/// Before this the last row stands.
fn end_of(plugin: &Option<String>, prefix: &str) -> (String, String) {
    match plugin {
        None => ("\u{10ffff}".to_owned(), String::new()),
        Some(plugin) => (plugin.clone(), format!("{prefix}\u{10ffff}")),
    }
}

/// The same JSON, however it was written.
fn alike(one: &[u8], other: &[u8]) -> bool {
    // Of integers beyond 64 bits several are read as one float.
    let read = |text: &[u8]| read_exactly::<serde_json::Value>(text).ok();
    one == other || read(one).is_some_and(|value| Some(value) == read(other))
}

fn read_entry(row: &rusqlite::Row<'_>, first: usize) -> rusqlite::Result<Entry> {
    Ok(Entry {
        data: row.get::<_, Vec<u8>>(first)?.into(),
        binary: row.get(first + 1)?,
        expires: row.get(first + 2)?,
        modified: row.get(first + 3)?,
    })
}

fn find(connection: &Connection, plugin: &str, key: &str) -> rusqlite::Result<Option<Entry>> {
    let mut select = connection.prepare_cached(
        "SELECT value, binary, expires, modified FROM kv WHERE plugin = ?1 AND key = ?2",
    )?;
    let entry = select.query_row(params![plugin, key], |row| read_entry(row, 0)).optional()?;
    Ok(entry.filter(|entry| !entry.expired(now_ms())))
}

/// The size of what is there, expired or not.
fn size_of(connection: &Connection, plugin: &str, key: &str) -> rusqlite::Result<Option<i64>> {
    let mut select = connection.prepare_cached(
        "SELECT length(key) + length(value) FROM kv WHERE plugin = ?1 AND key = ?2",
    )?;
    select.query_row(params![plugin, key], |row| row.get(0)).optional()
}

fn put(
    change: &mut Change<'_>,
    plugin: &str,
    key: &str,
    entry: &Entry,
    quota: Quota,
) -> Result<(), DataError> {
    let connection = change.connection;
    let before = size_of(connection, plugin, key)?;
    let mut upsert = connection.prepare_cached(
        "INSERT INTO kv (plugin, key, value, binary, expires, modified) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (plugin, key) \
         DO UPDATE SET value = ?3, binary = ?4, expires = ?5, modified = ?6",
    )?;
    let Entry { data, binary, expires, modified } = entry;
    upsert.execute(params![plugin, key, &data[..], binary, expires, modified])?;
    let size = (key.len() + data.len()) as i64;
    let (keys, bytes) = (i64::from(before.is_none()), size - before.unwrap_or(0));
    let room = Room { keys: quota.keys, bytes: quota.bytes };
    match change.ledger.enter(connection, plugin, keys, bytes, room) {
        // What has expired may be in the way.
        Err(refused @ DataError::Quota(_)) => {
            let (gone, free) = sweep_own(connection, plugin)?;
            if gone == 0 {
                return Err(refused);
            }
            let any = Room { keys: u64::MAX, bytes: u64::MAX };
            change.ledger.enter(connection, plugin, -gone - keys, -free - bytes, any)?;
            change.ledger.enter(connection, plugin, keys, bytes, room)
        }
        entered => entered,
    }
}

fn remove(change: &mut Change<'_>, plugin: &str, key: &str) -> Result<bool, DataError> {
    let Some(size) = size_of(change.connection, plugin, key)? else { return Ok(false) };
    let there = find(change.connection, plugin, key)?.is_some();
    let mut delete =
        change.connection.prepare_cached("DELETE FROM kv WHERE plugin = ?1 AND key = ?2")?;
    delete.execute(params![plugin, key])?;
    let room = Room { keys: u64::MAX, bytes: u64::MAX };
    change.ledger.enter(change.connection, plugin, -1, -size, room)?;
    Ok(there)
}

/// Deleted at once of what has expired: other changes wait meanwhile.
pub(super) const AT_ONCE: usize = 100;

/// Deletes some of what has expired; how many.
pub(super) fn sweep(connection: &Connection) -> rusqlite::Result<usize> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM kv WHERE (plugin, key) IN (SELECT plugin, key FROM kv WHERE expires > 0 AND \
         expires <= ?1 LIMIT ?2)",
    )?;
    delete.execute(params![now_ms(), AT_ONCE as i64])
}

/// The same of one plugin: keys, and bytes of them.
fn sweep_own(connection: &Connection, plugin: &str) -> rusqlite::Result<(i64, i64)> {
    let mut delete = connection.prepare_cached(
        "DELETE FROM kv WHERE plugin = ?1 AND key IN (SELECT key FROM kv INDEXED BY kv_expires \
         WHERE plugin = ?1 AND expires > 0 AND expires <= ?2 LIMIT ?3) \
         RETURNING length(CAST(key AS BLOB)) + length(value)",
    )?;
    let mut sizes =
        delete.query_map(params![plugin, now_ms(), AT_ONCE as i64], |row| row.get(0))?;
    sizes.try_fold((0, 0), |(keys, bytes), size: rusqlite::Result<i64>| {
        Ok((keys + 1, bytes + size?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_is_the_same_number() {
        assert!(alike(b"[1, {\"a\":2}]", b"[1,{ \"a\": 2 }]"));
        assert!(alike(b"18446744073709551617", b"18446744073709551617"));
        assert!(!alike(b"18446744073709551617", b"18446744073709551616"));
    }

    /// However much has expired: others' changes wait for a few deletions at a time.
    #[test]
    fn what_has_expired_goes_a_few_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let (connection, _) = super::super::open(&folder.path().join("data.db")).unwrap();
        for (plugin, expires) in [("a", 1), ("b", 1), ("a", i64::MAX)] {
            for n in 0..AT_ONCE + 50 {
                let insert = "INSERT INTO kv VALUES (?1, ?2, x'3030', 0, ?3, 0)";
                let key = format!("{expires:020}{n:04}");
                connection.execute(insert, params![plugin, key, expires]).unwrap();
            }
        }
        assert_eq!(sweep_own(&connection, "a").unwrap(), (100, 100 * 26));
        assert_eq!(sweep_own(&connection, "a").unwrap(), (50, 50 * 26));
        assert_eq!(sweep_own(&connection, "a").unwrap(), (0, 0));
        let swept: Vec<usize> = (0..3).map(|_| sweep(&connection).unwrap()).collect();
        assert_eq!(swept, [100, 50, 0]);
        let left = connection.query_row("SELECT count(*) FROM kv", [], |row| row.get(0));
        assert_eq!(left, Ok(150));
    }
}
