//! Documents of entities, per workspace: `{"flags", "relationships",
//! "components", "meta"}`. What the keys mean and who may change them is decided
//! above.

use std::sync::Arc;

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Map, Value, json};

use super::{
    Author, Data, DataError, Payer, TRIES, now_ms, operators_turn, provenance, shares, time_text,
    writer::Change as StoreChange,
};
use crate::capacity::{Charge, Weight, is_quick, limits, read_through, weigh};

/// The document of one entity.
pub type Document = Map<String, Value>;

/// Makes one change of a document, and the text of what is there after it; None = nothing
/// to do. It is made again when another change has come before it.
type Apply = Box<dyn Fn(&mut Document) -> Result<Option<Bytes>, DataError> + Send + Sync>;

/// A flag, a relationship or a component of a document.
#[derive(Clone, Debug)]
pub struct DocumentPart {
    /// `flags`, `relationships` or `components`.
    pub section: &'static str,
    /// Its whole name there.
    pub key: String,
}

impl DocumentPart {
    /// Bytes that it takes.
    fn size(&self, document: &Document) -> usize {
        let part = document.get(self.section).and_then(|section| section.get(&self.key));
        part.map_or(0, |value| self.key.len() + value.to_string().len())
    }
}

impl std::fmt::Display for DocumentPart {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.section, self.key)
    }
}

/// One change of a document.
pub struct Edit {
    /// For the record.
    pub operation: &'static str,
    /// What is changed.
    pub part: DocumentPart,
    /// Makes it.
    pub apply: Apply,
    /// That takes little time, if the document is small.
    pub is_quick: bool,
}

/// A change, by whom, of which document.
struct Task {
    author: Author,
    entity: String,
    payer: Payer,
    edit: Edit,
}

/// A document that was changed.
struct Changed {
    /// None: nothing of it is left.
    text: Option<String>,
    /// By so much the part has grown.
    grown: i64,
    /// What is there, for the answer.
    value: Bytes,
    /// For the texts, and what was read.
    _room: Option<Charge>,
}

impl Data {
    /// The document of an entity, as text.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn document(
        self: &Arc<Self>,
        workspace: &str,
        entity: &str,
    ) -> Result<Option<Bytes>, DataError> {
        let (workspace, entity) = (workspace.to_owned(), entity.to_owned());
        self.read(operators_turn(), move |connection| {
            let found = text(connection, &workspace, &entity)?;
            let checked = found.map(|text| match read_through(text.as_bytes()) {
                Ok(()) => Ok(text.into()),
                Err(error) => Err(unreadable(&entity, &error)),
            });
            checked.transpose()
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
        plugin: &Arc<str>,
        payer: Payer,
        workspace: &str,
        entity: &str,
        look: impl FnOnce(Document) -> T + Send + 'static,
    ) -> Result<Option<T>, DataError> {
        let (workspace, entity) = (workspace.to_owned(), entity.to_owned());
        self.read(plugin, move |connection| {
            let Some(text) = text(connection, &workspace, &entity)? else { return Ok(None) };
            let _room = payer.hold_read(text.as_bytes())?;
            read(&entity, &text).map(look).map(Some)
        })
        .await
    }

    /// So many entities of a workspace, in order, that come after this one.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn entities(
        self: &Arc<Self>,
        workspace: &str,
        after: &str,
        most: usize,
    ) -> Result<Vec<String>, DataError> {
        let (workspace, after) = (workspace.to_owned(), after.to_owned());
        self.read(operators_turn(), move |connection| {
            let mut select = connection.prepare_cached(
                "SELECT entity FROM document WHERE workspace = ?1 AND entity > ?2 \
                 ORDER BY entity LIMIT ?3",
            )?;
            let rows =
                select.query_map(params![workspace, after, most as i64], |row| row.get(0))?;
            Ok(rows.collect::<rusqlite::Result<_>>()?)
        })
        .await
    }

    /// Changes a document, making it when it is new, and tells what is there afterwards.
    ///
    /// A small one is read and written by the thread that writes. What takes longer is
    /// prepared by a thread of its own, in the author's turn: no small change waits for it.
    ///
    /// # Errors
    /// There is no room for it, the change refuses, or the store cannot be written.
    pub async fn change_document(
        self: &Arc<Self>,
        author: Author,
        entity: &str,
        payer: Payer,
        edit: Edit,
    ) -> Result<Option<Bytes>, DataError> {
        let actor = author.actor.clone();
        let task = Arc::new(Task { author, entity: entity.to_owned(), payer, edit });
        if task.edit.is_quick {
            let quick = task.clone();
            if let Some(done) = self.write(&actor, move |change| quick.at_once(change)).await? {
                return Ok(done);
            }
        }
        let data = self.clone();
        self.prepare(&actor, move |connection| task.aside(&data, connection)).await
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
        let (entity, actor, data) = (entity.to_owned(), author.actor.clone(), self.clone());
        self.prepare(&actor, move |_| {
            let text = document.map(|mut document| {
                let unsigned = check(&text_of(&document));
                unsigned.map_err(|why| DataError::Invalid(format!("the document has {why}")))?;
                sign(&mut document, &author);
                Ok::<_, DataError>(text_of(&document))
            });
            let text = text.transpose()?;
            data.writer.write_here(&data.prepared, move |change| {
                replace(change, &author, &entity, text.as_deref())
            })
        })
        .await
    }
}

fn replace(
    change: &mut StoreChange<'_>,
    author: &Author,
    entity: &str,
    text: Option<&str>,
) -> Result<(), DataError> {
    change.ledger.forget();
    let workspace = &author.workspace;
    match text {
        Some(text) => put(change.connection, workspace, entity, text)?,
        None => remove(change.connection, workspace, entity)?,
    }
    // It is the host's now.
    shares::forget(change.connection, workspace, entity)?;
    provenance::record(change, author, "entity.set", &format!("{workspace}/{entity}"))
}

impl Task {
    /// In the thread that writes; None: there is too much to do.
    fn at_once(&self, change: &mut StoreChange<'_>) -> Result<Option<Option<Bytes>>, DataError> {
        let found = self.find(change.connection)?;
        if found.as_ref().is_some_and(|text| !is_quick(text.as_bytes())) {
            return Ok(None);
        }
        self.change_from(change, found).map(Some)
    }

    /// In a thread of its own: only what has become of the document is written by the one
    /// that writes, if the document is still what was read.
    fn aside(
        self: Arc<Self>,
        data: &Data,
        connection: &Connection,
    ) -> Result<Option<Bytes>, DataError> {
        for _ in 0..TRIES {
            let found = self.find(connection)?;
            let Some(changed) = self.change(found.as_deref())? else { return Ok(None) };
            let task = self.clone();
            let Changed { text, grown, value, _room } = changed;
            let stored = data.writer.write_here(&data.prepared, move |change| {
                let is_same = task.find(change.connection)? == found;
                if is_same {
                    task.store(change, grown, text.as_deref())?;
                }
                Ok(is_same)
            });
            if stored? {
                return Ok(Some(value));
            }
        }
        data.writer.write_here(&data.prepared, move |change| self.here(change))
    }

    /// In the thread that writes, however long it takes: others have changed the document
    /// again and again.
    fn here(&self, change: &mut StoreChange<'_>) -> Result<Option<Bytes>, DataError> {
        let found = self.find(change.connection)?;
        self.change_from(change, found)
    }

    fn change_from(
        &self,
        change: &mut StoreChange<'_>,
        found: Option<String>,
    ) -> Result<Option<Bytes>, DataError> {
        let Some(changed) = self.change(found.as_deref())? else { return Ok(None) };
        self.store(change, changed.grown, changed.text.as_deref())?;
        Ok(Some(changed.value))
    }

    fn find(&self, connection: &Connection) -> rusqlite::Result<Option<String>> {
        text(connection, &self.author.workspace, &self.entity)
    }

    /// What becomes of the document; None: it stays as it is.
    fn change(&self, found: Option<&str>) -> Result<Option<Changed>, DataError> {
        let room = found.map(|text| self.payer.hold_read(text.as_bytes())).transpose()?.flatten();
        let found = found.map(|text| read(&self.entity, text)).transpose()?;
        let is_there = found.is_some();
        let mut document = found.unwrap_or_default();
        let before = self.edit.part.size(&document);
        let Some(value) = (self.edit.apply)(&mut document)? else { return Ok(None) };
        let grown = self.edit.part.size(&document) as i64 - before as i64;
        // Nobody pays for a document in which nothing is.
        if is_bare(&document) && (grown != 0 || !is_there) {
            return Ok(Some(Changed { text: None, grown, value, _room: room }));
        }
        sign(&mut document, &self.author);
        let text = text_of(&document);
        check(&text).map_err(|why| {
            DataError::Invalid(format!("the document of {} would have {why}", self.entity))
        })?;
        Ok(Some(Changed { text: Some(text), grown, value, _room: room }))
    }

    fn store(
        &self,
        change: &mut StoreChange<'_>,
        grown: i64,
        text: Option<&str>,
    ) -> Result<(), DataError> {
        let Task { author, entity, payer, edit } = self;
        match text {
            Some(text) => put(change.connection, &author.workspace, entity, text)?,
            None => remove(change.connection, &author.workspace, entity)?,
        }
        shares::enter(change, author, (entity, &edit.part), grown, payer.quota)?;
        let key = format!("{}/{entity}#{}", author.workspace, edit.part);
        provenance::record(change, author, edit.operation, &key)
    }
}

/// It says nothing but who has changed it.
fn is_bare(document: &Document) -> bool {
    let mut sections = document.iter().filter_map(|(name, value)| Some((name, value.as_object()?)));
    document.values().all(Value::is_object)
        && sections.all(|(name, section)| match name.as_str() {
            "meta" => section.keys().all(|key| SIGNED.contains(&key.as_str())),
            _ => section.is_empty(),
        })
}

/// What the daemon itself writes into `meta`.
const SIGNED: [&str; 2] = ["last_modified_by", "last_modified_at"];

/// `meta.last_modified_by` and `meta.last_modified_at`.
fn sign(document: &mut Document, author: &Author) {
    let meta = document.entry("meta").or_insert_with(|| json!({}));
    if !meta.is_object() {
        *meta = json!({});
    }
    let [by, at] = SIGNED;
    meta[by] = json!(*author.actor);
    meta[at] = json!(time_text(now_ms()));
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
    serde_json::from_str(text).map_err(|error| unreadable(entity, &error))
}

fn unreadable(entity: &str, error: &serde_json::Error) -> DataError {
    DataError::Broken(format!(
        "the document of {entity} is damaged ({error}); an operator can replace it \
         (stockade.v1.Data/SetDocument)"
    ))
}

fn remove(connection: &Connection, workspace: &str, entity: &str) -> rusqlite::Result<()> {
    let mut delete =
        connection.prepare_cached("DELETE FROM document WHERE workspace = ?1 AND entity = ?2")?;
    delete.execute(params![workspace, entity]).map(drop)
}

fn put(connection: &Connection, workspace: &str, entity: &str, text: &str) -> rusqlite::Result<()> {
    let mut upsert = connection.prepare_cached(
        "INSERT INTO document (workspace, entity, text, modified) VALUES (?1, ?2, ?3, ?4) \
         ON CONFLICT (workspace, entity) DO UPDATE SET text = ?3, modified = ?4",
    )?;
    upsert.execute(params![workspace, entity, text, now_ms()]).map(drop)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::store::made::Made;

    /// A document that somebody else changes whenever a change of it is being prepared is
    /// changed all the same, and nothing of theirs is lost.
    #[tokio::test]
    async fn a_change_is_made_however_often_others_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.db");
        let made = Arc::new(Made::read(folder.path()));
        let data = Arc::new(Data::open(&path, 10, made, &mut Vec::new()));
        let others = Connection::open(&path).unwrap();
        put(&others, "", "session/1", "{}").unwrap();
        let (tried, others) = (Arc::new(AtomicUsize::new(0)), std::sync::Mutex::new(others));
        let counted = tried.clone();
        let apply = move |document: &mut Document| {
            let before = counted.fetch_add(1, Ordering::Relaxed);
            if before < TRIES {
                let theirs = format!("{{\"theirs\": {before}}}");
                put(&others.lock().unwrap(), "", "session/1", &theirs)?;
            }
            document.insert("ours".into(), json!(1));
            Ok(Some(Bytes::new()))
        };
        let part = DocumentPart { section: "flags", key: "p".into() };
        let edit = Edit { operation: "o", part, apply: Box::new(apply), is_quick: false };
        let payer = Payer::operators();
        data.change_document(Author::default(), "session/1", payer, edit).await.unwrap();
        assert_eq!(tried.load(Ordering::Relaxed), TRIES + 1);
        let text = data.document("", "session/1").await.unwrap().unwrap();
        let document: Document = serde_json::from_slice(&text).unwrap();
        assert_eq!((&document["theirs"], &document["ours"]), (&json!(TRIES - 1), &json!(1)));
    }
}
