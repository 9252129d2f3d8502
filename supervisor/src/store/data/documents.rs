//! Documents of entities, per workspace: `{"flags", "relationships",
//! "components", "meta"}`. What the keys mean and who may change them is decided
//! above.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Map, Value, json};

use super::{
    Author, Data, DataError, now_ms, provenance, time_text, usage::Room,
    writer::Change as StoreChange,
};
use crate::{capacity::limits, manifest::Quota};

/// Bytes of one document.
pub const MAX_DOCUMENT: usize = limits::DOCUMENT;

/// The document of one entity.
pub type Document = Map<String, Value>;

/// One change of a document, and what is there after it; None = nothing to do.
pub type Change = Box<dyn FnOnce(&mut Document) -> Result<Option<Value>, DataError> + Send>;

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
        let found = self.read(move |connection| find(connection, &workspace, &entity)).await?;
        Ok(found)
    }

    /// What `look` finds in the document of an entity, where it is read.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn in_document<T: Send + 'static>(
        self: &Arc<Self>,
        workspace: &str,
        entity: &str,
        look: impl FnOnce(Document) -> T + Send + 'static,
    ) -> Result<Option<T>, DataError> {
        let (workspace, entity) = (workspace.to_owned(), entity.to_owned());
        self.read(move |connection| Ok(find(connection, &workspace, &entity)?.map(look))).await
    }

    /// The entities of a workspace.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn entities(self: &Arc<Self>, workspace: &str) -> Result<Vec<String>, DataError> {
        let workspace = workspace.to_owned();
        self.read(move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT entity FROM document WHERE workspace = ?1 ORDER BY entity",
            )?;
            select.query_map(params![workspace], |row| row.get(0))?.collect()
        })
        .await
    }

    /// Changes a document, making it when it is new. `part` names what is changed,
    /// for the record.
    ///
    /// # Errors
    /// There is no room for it, the change refuses, or the store cannot be written.
    pub async fn change_document(
        self: &Arc<Self>,
        author: Author,
        entity: &str,
        (operation, part): (&'static str, String),
        quota: Quota,
        apply: Change,
    ) -> Result<Option<Value>, DataError> {
        let entity = entity.to_owned();
        self.write(move |change| {
            let found = find(change.connection, &author.workspace, &entity)?;
            let before = found.as_ref().map_or(0, |document| text_of(document).len());
            let mut document = found.unwrap_or_default();
            let Some(value) = apply(&mut document)? else { return Ok(None) };
            sign(&mut document, &author);
            let text = text_of(&document);
            if text.len() > MAX_DOCUMENT {
                return Err(DataError::Invalid(format!(
                    "the document of {entity} would have {} bytes; {MAX_DOCUMENT} are allowed",
                    text.len()
                )));
            }
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
        let size = document.as_ref().map_or(0, |document| text_of(document).len());
        if size > MAX_DOCUMENT {
            let text = format!("the document has {size} bytes; {MAX_DOCUMENT} are allowed");
            return Err(DataError::Invalid(text));
        }
        self.write(move |change| {
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

fn find(
    connection: &Connection,
    workspace: &str,
    entity: &str,
) -> rusqlite::Result<Option<Document>> {
    let mut select = connection
        .prepare_cached("SELECT text FROM document WHERE workspace = ?1 AND entity = ?2")?;
    let row = select.query_row(params![workspace, entity], |row| {
        let text: String = row.get(0)?;
        Ok(serde_json::from_str(&text).unwrap_or_default())
    });
    row.optional()
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
