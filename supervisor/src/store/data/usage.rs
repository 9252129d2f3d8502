//! How much each plugin has stored: asked of the file once, then kept.

use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, params};

use super::DataError;

/// What one plugin has stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Keys, and parts of documents that it pays for.
    pub keys: u64,
    /// Bytes of keys, values and its shares of documents.
    pub bytes: u64,
}

impl Usage {
    /// As the file says.
    pub(super) fn of(connection: &Connection, plugin: &str) -> rusqlite::Result<Self> {
        let mut query = connection.prepare_cached(
            "SELECT count(*), coalesce(sum(length(key) + length(value)), 0) FROM kv WHERE plugin = ?1",
        )?;
        let kv = query.query_row(params![plugin], numbers)?;
        let mut query = connection.prepare_cached(
            "SELECT count(*), coalesce(sum(bytes), 0) FROM part WHERE plugin = ?1",
        )?;
        let documents = query.query_row(params![plugin], numbers)?;
        Ok(Usage { keys: kv.0 + documents.0, bytes: kv.1 + documents.1 })
    }
}

impl Usage {
    fn and(self, keys: i64, bytes: i64) -> Self {
        Usage {
            keys: self.keys.saturating_add_signed(keys),
            bytes: self.bytes.saturating_add_signed(bytes),
        }
    }
}

fn numbers(row: &rusqlite::Row<'_>) -> rusqlite::Result<(u64, u64)> {
    Ok((row.get::<_, i64>(0)? as u64, row.get::<_, i64>(1)? as u64))
}

/// The most that a plugin may store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) keys: u64,
    pub(super) bytes: u64,
}

impl Room {
    /// For what becomes less.
    pub(super) const ENDLESS: Room = Room { keys: u64::MAX, bytes: u64::MAX };
}

/// The writer's book.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    known: HashMap<String, Usage>,
    /// Those of which some may have expired meanwhile.
    doubtful: HashSet<String>,
    /// What the change under way has found there; None: what is to be asked for again.
    before: Vec<(String, Option<Usage>)>,
}

impl Ledger {
    /// What was rolled back may be in the book: it is asked for again.
    pub(super) fn forget(&mut self) {
        self.known.clear();
        self.doubtful.clear();
        self.before.clear();
    }

    /// Of some of the plugins keys that had expired are gone: who seems to have no room is
    /// asked for again.
    pub(super) fn doubt(&mut self) {
        self.doubtful.extend(self.known.keys().cloned());
    }

    /// The next change begins.
    pub(super) fn begin(&mut self) {
        self.before.clear();
    }

    /// The change is undone in the file, and so here.
    pub(super) fn undo(&mut self) {
        for (plugin, usage) in self.before.drain(..).rev() {
            match usage {
                Some(usage) => self.known.insert(plugin, usage),
                None => self.known.remove(&plugin),
            };
        }
    }

    /// Enters a change, if there is room for what grows.
    pub(super) fn enter(
        &mut self,
        connection: &Connection,
        plugin: &str,
        keys: i64,
        bytes: i64,
        room: Room,
    ) -> Result<(), DataError> {
        let before = match self.known.get(plugin) {
            Some(usage) => *usage,
            // The change itself is in the file already.
            None => Usage::of(connection, plugin)?.and(-keys, -bytes),
        };
        self.before.push((plugin.to_owned(), Some(before)));
        self.known.insert(plugin.to_owned(), before.and(keys, bytes));
        let checked = self.check(plugin, keys, bytes, room);
        if checked.is_err() && self.doubtful.remove(plugin) {
            self.known.insert(plugin.to_owned(), Usage::of(connection, plugin)?);
            self.before.retain(|(other, _)| other != plugin);
            self.before.push((plugin.to_owned(), None));
            return self.check(plugin, keys, bytes, room);
        }
        checked
    }

    fn check(&self, plugin: &str, keys: i64, bytes: i64, room: Room) -> Result<(), DataError> {
        let usage = self.known.get(plugin).copied().unwrap_or_default();
        let over = |what: &str, has: u64, may: u64| {
            Err(DataError::Quota(format!(
                "Plugin '{plugin}' would have {has} {what} in the store; {may} are allowed. Delete \
                 some, or raise quota.{what} in stockade.toml."
            )))
        };
        if keys > 0 && usage.keys > room.keys {
            return over("keys", usage.keys, room.keys);
        }
        if bytes > 0 && usage.bytes > room.bytes {
            return over("bytes", usage.bytes, room.bytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_seems_to_have_no_room_is_asked_for_again_after_a_sweep() {
        let folder = tempfile::tempdir().unwrap();
        let (connection, _) = super::super::open(&folder.path().join("data.db")).unwrap();
        let mut ledger = Ledger::default();
        let room = Room { keys: 2, bytes: 1000 };
        let put = |ledger: &mut Ledger, key: &str| {
            let insert = "INSERT INTO kv VALUES ('a', ?1, x'30', 0, 0, 0)";
            connection.execute(insert, [key]).unwrap();
            ledger.begin();
            let entered = ledger.enter(&connection, "a", 1, 2, room);
            if entered.is_err() {
                connection.execute("DELETE FROM kv WHERE key = ?1", [key]).unwrap();
                ledger.undo();
            }
            entered
        };
        put(&mut ledger, "k").unwrap();
        put(&mut ledger, "l").unwrap();
        put(&mut ledger, "m").unwrap_err();
        connection.execute("DELETE FROM kv WHERE key = 'k'", []).unwrap();
        ledger.doubt();
        put(&mut ledger, "m").unwrap();
        put(&mut ledger, "n").unwrap_err();
        connection.execute("DELETE FROM kv WHERE key = 'l'", []).unwrap();
        ledger.doubt();
        put(&mut ledger, "n").unwrap();
    }
}
