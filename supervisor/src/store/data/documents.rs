//! Documents of entities, per workspace: `{"flags", "relationships",
//! "components", "meta"}`. What the keys mean and who may change them is decided
//! above.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Map, Value, json};

use super::{
    Author, Data, DataError, now_ms, operators_turn, provenance, time_text, usage::Room,
    writer::Change as StoreChange,
};
use crate::{
    capacity::{Account, Charge, Weight, limits, weigh},
    manifest::Quota,
};

/// The document of one entity.
pub type Document = Map<String, Value>;

/// One change of a document, and the text of what is there after it; None = nothing to do.
pub type Change = Box<dyn FnOnce(&mut Document) -> Result<Option<Bytes>, DataError> + Send>;

impl Data {
    /// The document of an entity.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn document(
        self: &Arc<Self>,
        workspace: &str,
        entity: &str,
    ) -> Result<Option<Document>, DataError> {
        let (workspace, entity) = (workspace.to_owned(), entity.to_owned());
        self.read(operators_turn(), move |connection| {
            let found = text(connection, &workspace, &entity)?;
            found.map(|text| read(&entity, &text)).transpose()
        })
        .await
    }

    /// What `look` finds in the document of an entity, where it is read and in the turn of
    /// the plugin that asks, whose account has room for it.
    ///
    /// # Errors
    /// The store cannot be read, or there is no room.
    pub async fn in_document<T: Send + 'static>(
        self: &Arc<Self>,
        (plugin, account): (&Arc<str>, Account),
        workspace: &str,
        entity: &str,
        look: impl FnOnce(Document) -> T + Send + 'static,
    ) -> Result<Option<T>, DataError> {
        let (workspace, entity) = (workspace.to_owned(), entity.to_owned());
        self.read(plugin, move |connection| {
            let Some(text) = text(connection, &workspace, &entity)? else { return Ok(None) };
            let _room = room(&text, &account)?;
            read(&entity, &text).map(look).map(Some)
        })
        .await
    }

    /// The entities of a workspace.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn entities(self: &Arc<Self>, workspace: &str) -> Result<Vec<String>, DataError> {
        let workspace = workspace.to_owned();
        self.read(operators_turn(), move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT entity FROM document WHERE workspace = ?1 ORDER BY entity",
            )?;
            let rows = select.query_map(params![workspace], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Changes a document, making it when it is new, and tells what is there afterwards.
    /// `part` names what is changed, for the record; `account` has room for the document
    /// meanwhile.
    ///
    /// # Errors
    /// There is no room for it, the change refuses, or the store cannot be written.
    pub async fn change_document(
        self: &Arc<Self>,
        author: Author,
        entity: &str,
        (operation, part): (&'static str, String),
        (quota, account): (Quota, Account),
        apply: Change,
    ) -> Result<Option<Bytes>, DataError> {
        let entity = entity.to_owned();
        self.write(&author.actor.clone(), move |change| {
            let found = text(change.connection, &author.workspace, &entity)?;
            let before = found.as_ref().map_or(0, String::len);
            let _room = found.as_ref().map(|text| room(text, &account)).transpose()?;
            let found = found.map(|text| read(&entity, &text)).transpose()?;
            let mut document = found.unwrap_or_default();
            let Some(value) = apply(&mut document)? else { return Ok(None) };
            sign(&mut document, &author);
            let text = text_of(&document);
            check(&text).map_err(|why| {
                DataError::Invalid(format!("the document of {entity} would have {why}"))
            })?;
            put(change.connection, &author.workspace, &entity, &text)?;
            let grown = text.len() as i64 - before as i64;
            share(change, &author, &entity, grown, quota)?;
            let key = format!("{}/{entity}#{part}", author.workspace);
            provenance::record(change, &author, operation, &key)?;
            Ok(Some(value))
        })
        .await
    }

    /// Replaces a document (None = deletes it), as the host may.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn set_document(
        self: &Arc<Self>,
        author: Author,
        entity: &str,
        document: Option<Document>,
    ) -> Result<(), DataError> {
        let entity = entity.to_owned();
        if let Some(document) = &document {
            check(&text_of(document))
                .map_err(|why| DataError::Invalid(format!("the document has {why}")))?;
        }
        self.write(&author.actor.clone(), move |change| {
            change.ledger.forget();
            let workspace = &author.workspace;
            match document {
                Some(mut document) => {
                    sign(&mut document, &author);
                    put(change.connection, workspace, &entity, &text_of(&document))?;
                }
                None => {
                    let mut delete = change.connection.prepare_cached(
                        "DELETE FROM document WHERE workspace = ?1 AND entity = ?2",
                    )?;
                    delete.execute(params![workspace, entity])?;
                }
            }
            // It is the host's now.
            let mut forget = change
                .connection
                .prepare_cached("DELETE FROM share WHERE workspace = ?1 AND entity = ?2")?;
            forget.execute(params![workspace, entity])?;
            let key = format!("{workspace}/{entity}");
            provenance::record(change, &author, "entity.set", &key)
        })
        .await
    }
}

/// `meta.last_modified_by` and `meta.last_modified_at`.
fn sign(document: &mut Document, author: &Author) {
    let meta = document.entry("meta").or_insert_with(|| json!({}));
    if !meta.is_object() {
        *meta = json!({});
    }
    meta["last_modified_by"] = json!(*author.actor);
    meta["last_modified_at"] = json!(time_text(now_ms()));
}

fn text_of(document: &Document) -> String {
    serde_json::to_string(document).unwrap_or_default()
}

/// What a document has too much of.
fn check(text: &str) -> Result<(), String> {
    let Weight { values, depth, .. } = weigh(text.as_bytes());
    let bounds = [
        (text.len(), limits::DOCUMENT, "bytes"),
        (values, limits::DOCUMENT_VALUES, "values"),
        // What cannot be read again must not be written.
        (depth, limits::JSON_DEPTH, "objects and arrays within each other"),
    ];
    let over = bounds.into_iter().find(|(has, most, _)| has > most);
    over.map_or(Ok(()), |(has, most, what)| Err(format!("{has} {what}; {most} are allowed")))
}

fn text(
    connection: &Connection,
    workspace: &str,
    entity: &str,
) -> rusqlite::Result<Option<String>> {
    let mut select = connection
        .prepare_cached("SELECT text FROM document WHERE workspace = ?1 AND entity = ?2")?;
    select.query_row(params![workspace, entity], |row| row.get(0)).optional()
}

/// A document that cannot be read is not an empty one: it stays as it is.
fn read(entity: &str, text: &str) -> Result<Document, DataError> {
    serde_json::from_str(text).map_err(|error| {
        DataError::Broken(format!(
            "the document of {entity} is damaged ({error}); an operator can replace it (stockade.v1.Data/SetDocument)"
        ))
    })
}

/// What a text becomes when it is read.
fn room(text: &str, account: &Account) -> Result<Charge, DataError> {
    let weight = weigh(text.as_bytes());
    account.charge(weight.bytes).map_err(|why| DataError::Room(why.to_string()))
}

fn put(connection: &Connection, workspace: &str, entity: &str, text: &str) -> rusqlite::Result<()> {
    let mut upsert = connection.prepare_cached(
        "INSERT INTO document (workspace, entity, text, modified) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (workspace, entity) DO UPDATE SET text = ?3, modified = ?4",
    )?;
    upsert.execute(params![workspace, entity, text, now_ms()]).map(drop)
}

/// Whoever makes a document grow is charged for it.
fn share(
    change: &mut StoreChange<'_>,
    author: &Author,
    entity: &str,
    grown: i64,
    quota: Quota,
) -> Result<(), DataError> {
    let Some(plugin) = author.actor.strip_prefix("plugin:") else { return Ok(()) };
    let mut select = change.connection.prepare_cached(
        "SELECT bytes FROM share WHERE plugin = ?1 AND workspace = ?2 AND entity = ?3",
    )?;
    let place = params![plugin, author.workspace, entity];
    let before: Option<i64> = select.query_row(place, |row| row.get(0)).optional()?;
    // Whoever makes it smaller has no part in it.
    if before.is_none() && grown <= 0 {
        return Ok(());
    }
    let after = (before.unwrap_or(0) + grown).max(0);
    let mut upsert = change.connection.prepare_cached(
        "INSERT INTO share (plugin, workspace, entity, bytes) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (plugin, workspace, entity) DO UPDATE SET bytes = ?4",
    )?;
    upsert.execute(params![plugin, author.workspace, entity, after])?;
    let keys = i64::from(before.is_none());
    let room = Room { keys: quota.keys, bytes: quota.bytes };
    change.ledger.enter(change.connection, plugin, keys, after - before.unwrap_or(0), room)
}
