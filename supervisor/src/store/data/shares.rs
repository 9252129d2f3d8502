//! What plugins pay for documents: whoever makes a part grow pays for that, until anybody
//! makes it smaller.

use rusqlite::{Connection, OptionalExtension as _, params};

use super::{Author, DataError, documents::DocumentPart, usage::Room, writer::Change};
use crate::{capacity::limits, manifest::Quota};

/// The share of one plugin in one part.
struct Share<'a> {
    workspace: &'a str,
    entity: &'a str,
    part: String,
}

/// Enters that a part of a document has grown by so many bytes, or shrunk.
///
/// What is gone is taken off the share of whoever removed it, and then off those of the
/// others: all shares of a part are never more than the part.
///
/// # Errors
/// The author's quota, or its share of the document, has no room for it, or the store cannot
/// be written.
pub(super) fn enter(
    change: &mut Change<'_>,
    author: &Author,
    (entity, part): (&str, &DocumentPart),
    grown: i64,
    quota: Quota,
) -> Result<(), DataError> {
    let share = Share { workspace: &author.workspace, entity, part: part.to_string() };
    let plugin = author.actor.strip_prefix("plugin:");
    if grown > 0 {
        let Some(plugin) = plugin else { return Ok(()) };
        let room = Room { keys: quota.keys, bytes: quota.bytes };
        let has = share.of_document(change.connection, plugin)? + grown;
        if has > limits::DOCUMENT_SHARE as i64 {
            return Err(DataError::Quota(format!(
                "Plugin '{plugin}' would have {has} bytes in the document of {entity}; {} are \
                 allowed to each plugin, so that others find room there. Delete some.",
                limits::DOCUMENT_SHARE
            )));
        }
        let before = share.of(change.connection, plugin)?;
        return share.set(change, plugin, before, before + grown, room);
    }
    let mut gone = -grown;
    let others = share.others(change.connection, plugin.unwrap_or_default())?;
    for plugin in plugin.into_iter().map(str::to_owned).chain(others) {
        if gone == 0 {
            break;
        }
        let before = share.of(change.connection, &plugin)?;
        let less = before.min(gone);
        if less > 0 {
            share.set(change, &plugin, before, before - less, Room::ENDLESS)?;
        }
        gone -= less;
    }
    Ok(())
}

/// No plugin pays for the document any more.
pub(super) fn forget(
    connection: &Connection,
    workspace: &str,
    entity: &str,
) -> rusqlite::Result<()> {
    let mut delete =
        connection.prepare_cached("DELETE FROM part WHERE workspace = ?1 AND entity = ?2")?;
    delete.execute(params![workspace, entity]).map(drop)
}

impl Share<'_> {
    fn of(&self, connection: &Connection, plugin: &str) -> rusqlite::Result<i64> {
        let mut select = connection.prepare_cached(
            "SELECT bytes FROM part \
             WHERE workspace = ?1 AND entity = ?2 AND name = ?3 AND plugin = ?4",
        )?;
        let place = params![self.workspace, self.entity, self.part, plugin];
        Ok(select.query_row(place, |row| row.get(0)).optional()?.unwrap_or(0))
    }

    /// All that it pays for of the document.
    fn of_document(&self, connection: &Connection, plugin: &str) -> rusqlite::Result<i64> {
        let mut select = connection.prepare_cached(
            "SELECT coalesce(sum(bytes), 0) FROM part \
             WHERE workspace = ?1 AND entity = ?2 AND plugin = ?3",
        )?;
        select.query_row(params![self.workspace, self.entity, plugin], |row| row.get(0))
    }

    fn others(&self, connection: &Connection, plugin: &str) -> rusqlite::Result<Vec<String>> {
        let mut select = connection.prepare_cached(
            "SELECT plugin FROM part \
             WHERE workspace = ?1 AND entity = ?2 AND name = ?3 AND plugin <> ?4",
        )?;
        let place = params![self.workspace, self.entity, self.part, plugin];
        select.query_map(place, |row| row.get(0))?.collect()
    }

    fn set(
        &self,
        change: &mut Change<'_>,
        plugin: &str,
        before: i64,
        after: i64,
        room: Room,
    ) -> Result<(), DataError> {
        let place = params![self.workspace, self.entity, self.part, plugin];
        if after == 0 {
            let mut delete = change.connection.prepare_cached(
                "DELETE FROM part \
                 WHERE workspace = ?1 AND entity = ?2 AND name = ?3 AND plugin = ?4",
            )?;
            delete.execute(place)?;
        } else {
            let mut upsert = change.connection.prepare_cached(
                "INSERT INTO part (workspace, entity, name, plugin, bytes) \
                 VALUES (?1, ?2, ?3, ?4, ?5) \
                 ON CONFLICT (workspace, entity, name, plugin) DO UPDATE SET bytes = ?5",
            )?;
            upsert.execute(params![self.workspace, self.entity, self.part, plugin, after])?;
        }
        let keys = i64::from(before == 0) - i64::from(after == 0);
        change.ledger.enter(change.connection, plugin, keys, after - before, room)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use serde_json::{Value, json};

    use super::*;
    use crate::store::{
        data::{
            Data, Payer,
            documents::{Document, Edit},
            usage::Usage,
        },
        made::Made,
    };

    async fn set(data: &Arc<Data>, plugin: &str, part: (&'static str, &str), value: Value) {
        try_set(data, plugin, part, value).await.unwrap();
    }

    async fn try_set(
        data: &Arc<Data>,
        plugin: &str,
        part: (&'static str, &str),
        value: Value,
    ) -> Result<(), DataError> {
        let actor = format!("plugin:{plugin}").into();
        let author = Author { actor, ..Author::default() };
        let part = DocumentPart { section: part.0, key: part.1.to_owned() };
        let own = part.clone();
        let apply = move |document: &mut Document| {
            let section = document.entry(own.section).or_insert_with(|| json!({}));
            let section = section.as_object_mut().unwrap();
            match &value {
                Value::Null => drop(section.remove(&own.key)),
                value => drop(section.insert(own.key.clone(), value.clone())),
            }
            Ok(Some(Bytes::new()))
        };
        let edit = Edit { operation: "o", part, apply: Box::new(apply), is_quick: true };
        data.change_document(author, "npc/1", Payer::operators(), edit).await.map(drop)
    }

    fn text(bytes: usize) -> Value {
        // The quotes, and the one letter of the name.
        json!("x".repeat(bytes - 3))
    }

    #[tokio::test]
    async fn nobody_pays_for_what_is_gone_or_is_another_plugins() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let made = Arc::new(Made::read(&folder.path().join("made")));
        let data = Arc::new(Data::open(&path, 10, made, &mut Vec::new()));
        let file = Connection::open(&path).unwrap();
        let has = |plugin: &str| {
            let usage = Usage::of(&file, plugin).unwrap();
            (usage.keys, usage.bytes)
        };
        let (flag, shared) = (("flags", "f"), ("relationships", "r"));
        // A name that is longer in `meta` each time costs nobody anything.
        for _ in 0..10 {
            set(&data, "a", flag, text(100)).await;
            set(&data, "much-longer", ("flags", "g"), text(50)).await;
        }
        assert_eq!((has("a"), has("much-longer")), ((1, 100), (1, 50)));
        // What another one removes of a shared part is not paid for any more, again and again.
        for _ in 0..10 {
            set(&data, "a", shared, text(1000)).await;
            set(&data, "b", shared, text(10)).await;
        }
        assert_eq!((has("a"), has("b")), ((2, 110), (0, 0)));
        // One's own comes first, and another part is another matter.
        set(&data, "b", shared, text(510)).await;
        set(&data, "b", shared, text(110)).await;
        assert_eq!((has("a"), has("b")), ((2, 110), (1, 100)));
        set(&data, "a", shared, Value::Null).await;
        assert_eq!((has("a"), has("b")), ((1, 100), (0, 0)));
        // Nobody takes a document for itself, in however many parts.
        let half = limits::DOCUMENT_SHARE / 2;
        set(&data, "c", ("flags", "c"), text(half)).await;
        set(&data, "c", ("flags", "d"), text(half)).await;
        let refused = try_set(&data, "c", ("flags", "e"), text(10)).await.unwrap_err();
        assert!(refused.to_string().contains("so that others find room"), "{refused}");
        set(&data, "b", ("flags", "b"), text(half)).await;
        set(&data, "c", ("flags", "d"), text(half - 20)).await;
        set(&data, "c", ("flags", "e"), text(10)).await;
    }
}
