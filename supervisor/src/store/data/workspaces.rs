//! Workspaces: their documents, and which plugins are enabled where. Kept in
//! memory, so that a call's check waits for nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension as _, params};
use serde_json::{Map, Value};

use super::{Author, Data, DataError, TRIES, now_ms, provenance, writer::Change as StoreChange};
use crate::{
    capacity::limits::{DOCUMENT as MAX_DOCUMENT, PLUGIN_NAMES, WORKSPACE_BYTES, WORKSPACES},
    store::row_text,
};

/// One workspace: `{"behavior": {"enabledPlugins": […], "simulationConfig": {…}}}`
/// and whatever else its owner keeps in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workspace {
    /// As it was set: the text of a JSON object.
    pub text: Bytes,
    /// Which plugins may run; None = all.
    pub enabled: Option<BTreeSet<String>>,
}

impl Workspace {
    /// Checks a document.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn of(document: Map<String, Value>) -> Result<Self, DataError> {
        let invalid = |what: &str| Err(DataError::Invalid(what.to_owned()));
        let enabled = match document.get("behavior") {
            None | Some(Value::Null) => None,
            Some(Value::Object(behavior)) => {
                if !matches!(
                    behavior.get("simulationConfig"),
                    None | Some(Value::Null | Value::Object(_))
                ) {
                    return invalid("behavior.simulationConfig must be an object");
                }
                enabled_plugins(behavior)?
            }
            Some(_) => return invalid("behavior must be an object"),
        };
        let text: Bytes = serde_json::to_vec(&document).unwrap_or_default().into();
        if text.len() > MAX_DOCUMENT {
            let text = format!("the document has {} bytes; {MAX_DOCUMENT} are allowed", text.len());
            return Err(DataError::Invalid(text));
        }
        Ok(Workspace { text, enabled })
    }

    /// The same of one that somebody sets: what would be ignored, and so enable every
    /// plugin, is refused.
    fn given(document: Map<String, Value>) -> Result<Self, DataError> {
        let behavior = document.get("behavior").and_then(Value::as_object);
        let inside = |name: &str| behavior.is_some_and(|behavior| behavior.contains_key(name));
        let misplaced = ["enabledPlugins", "enabled_plugins", "simulationConfig"];
        let text = if let Some(name) = misplaced.iter().find(|name| document.contains_key(**name)) {
            let answered = match document.get("document") {
                Some(Value::Object(_)) => ". Of what was answered for a workspace, send `document`",
                _ => "",
            };
            format!(
                "{name} has no meaning at the top: send \
                 {{\"behavior\": {{\"enabledPlugins\": [\"NAME\"]}}}}{answered}"
            )
        } else if inside("enabled_plugins") {
            "behavior.enabled_plugins has no meaning: it is called enabledPlugins".to_owned()
        } else {
            return Workspace::of(document);
        };
        Err(DataError::Invalid(text))
    }

    /// As it was stored. One that nobody can read enables nothing.
    fn stored(name: &str, text: &str) -> Self {
        read(Some(text)).unwrap_or_else(|why| {
            tracing::warn!("workspace {name}: {why}; until then no plugin is enabled there");
            Workspace { enabled: Some(BTreeSet::new()), ..Workspace::default() }
        })
    }

    /// Bytes of its text.
    pub fn size(&self) -> usize {
        self.text.len()
    }

    /// `behavior`, an empty object when there is none.
    pub fn behavior(&self) -> Map<String, Value> {
        match self.document().remove("behavior") {
            Some(Value::Object(behavior)) => behavior,
            _ => Map::new(),
        }
    }

    /// The document, which is read for it.
    fn document(&self) -> Map<String, Value> {
        serde_json::from_slice(&self.text).unwrap_or_default()
    }

    fn set_enabled(self, enabled: BTreeSet<String>) -> Result<Self, DataError> {
        let mut document = self.document();
        let mut behavior = match document.remove("behavior") {
            Some(Value::Object(behavior)) => behavior,
            _ => Map::new(),
        };
        let names = enabled.iter().cloned().map(Value::String).collect();
        behavior.insert("enabledPlugins".to_owned(), Value::Array(names));
        document.insert("behavior".to_owned(), Value::Object(behavior));
        Workspace::of(document)
    }
}

/// `enabledPlugins` of a `behavior` object: None = all.
///
/// # Errors
/// It is not a list of names.
pub fn enabled_plugins(
    behavior: &Map<String, Value>,
) -> Result<Option<BTreeSet<String>>, DataError> {
    let wrong = || DataError::Invalid("behavior.enabledPlugins must be a list of names".to_owned());
    match behavior.get("enabledPlugins") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(names)) if names.len() > PLUGIN_NAMES => {
            let text = format!("behavior.enabledPlugins has more than {PLUGIN_NAMES} names");
            Err(DataError::Invalid(text))
        }
        Some(Value::Array(names)) => {
            let names = names.iter().map(|name| name.as_str().map(str::to_owned));
            names.collect::<Option<BTreeSet<_>>>().map(Some).ok_or_else(wrong)
        }
        Some(_) => Err(wrong()),
    }
}

/// Every configured workspace. Closed until they have been read.
#[derive(Debug, Default)]
pub struct Workspaces(RwLock<Known>);

#[derive(Debug)]
struct Known {
    all: BTreeMap<String, Arc<Workspace>>,
    /// Nothing is known of any of them, and why.
    closed: Option<String>,
    /// Nothing is known of those that are not listed, and why.
    unknown: Option<String>,
}

impl Default for Known {
    fn default() -> Self {
        let closed = Some("data.db has not been read yet".to_owned());
        Known { all: BTreeMap::new(), closed, unknown: None }
    }
}

impl Workspaces {
    fn read(&self) -> RwLockReadGuard<'_, Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Known> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all of them. One that cannot be read has no plugins.
    pub(super) fn load(&self, connection: &Connection) -> rusqlite::Result<()> {
        let mut select = connection.prepare("SELECT name, text FROM workspace")?;
        let rows = select.query_map([], |row| {
            let (name, text) = (row_text(row, 0)?, row_text(row, 1)?);
            let workspace = Arc::new(Workspace::stored(&name, &text));
            Ok((name, workspace))
        })?;
        let all = rows.collect::<rusqlite::Result<BTreeMap<_, _>>>()?;
        let mut note = connection.prepare("SELECT text FROM note WHERE name = 'workspaces'")?;
        let unknown = note.query_row([], |row| row_text(row, 0)).optional()?;
        *self.write() = Known { all, closed: None, unknown };
        Ok(())
    }

    /// Nothing is known any more: none of them runs anything.
    pub(super) fn close(&self, why: &str) {
        self.write().closed = Some(why.to_owned());
    }

    /// Those that are not listed are open again.
    fn reopen(&self) {
        self.write().unknown = None;
    }

    /// One workspace; None = nobody has configured it.
    pub fn get(&self, name: &str) -> Option<Arc<Workspace>> {
        self.read().all.get(name).cloned()
    }

    /// All of them by name.
    pub fn all(&self) -> BTreeMap<String, Arc<Workspace>> {
        self.read().all.clone()
    }

    /// The plugin may run there.
    pub fn allows(&self, workspace: &str, plugin: &str) -> bool {
        if workspace.is_empty() {
            return true;
        }
        let known = self.read();
        match known.all.get(workspace) {
            _ if known.closed.is_some() => false,
            Some(workspace) => {
                workspace.enabled.as_ref().is_none_or(|enabled| enabled.contains(plugin))
            }
            None => known.unknown.is_none(),
        }
    }

    /// Why those that are not listed are closed, if they are.
    pub fn closed(&self) -> Option<String> {
        let known = self.read();
        known.closed.clone().or_else(|| known.unknown.clone())
    }

    /// Why nothing runs in a workspace, if that is because nothing is known of it.
    pub fn why_closed(&self, workspace: &str) -> Option<String> {
        let known = self.read();
        if let Some(why) = &known.closed {
            return Some(format!("which plugins are enabled there is not known: {why}"));
        }
        let why = known.unknown.as_ref().filter(|_| !known.all.contains_key(workspace))?;
        Some(format!(
            "its list of plugins was lost: {why}. Set it again (`stockade workspace enable \
             {workspace} PLUGIN --only`), or open all workspaces that have no list: `stockade \
             workspace reopen`"
        ))
    }

    /// They are all in memory.
    fn room_for(&self, name: &str, size: usize) -> Result<(), DataError> {
        let known = self.read();
        let others = known.all.iter().filter(|(other, _)| *other != name);
        let (count, bytes) =
            others.fold((1, size), |(count, bytes), (_, one)| (count + 1, bytes + one.text.len()));
        match count <= WORKSPACES && bytes <= WORKSPACE_BYTES {
            true => Ok(()),
            false => Err(DataError::Quota(format!(
                "there would be {count} workspaces of {bytes} bytes; {WORKSPACES} of \
                 {WORKSPACE_BYTES} bytes together are allowed. Delete some (`stockade workspace \
                 delete`)"
            ))),
        }
    }

    /// What an operator should know.
    pub(super) fn problem(&self) -> Option<String> {
        let known = self.read();
        let why = known.unknown.as_ref()?;
        Some(format!(
            "workspaces are closed until they are configured again: {why} (`stockade workspace \
             reopen` opens all that are not listed)"
        ))
    }

    fn put(&self, name: &str, workspace: Option<Arc<Workspace>>) {
        let all = &mut self.write().all;
        match workspace {
            Some(workspace) => all.insert(name.to_owned(), workspace),
            None => all.remove(name),
        };
    }
}

fn find(connection: &Connection, name: &str) -> rusqlite::Result<Option<String>> {
    let mut select = connection.prepare_cached("SELECT text FROM workspace WHERE name = ?1")?;
    select.query_row(params![name], |row| row_text(row, 0)).optional()
}

/// What is there now, to be changed. What cannot be read is not nothing.
fn read(text: Option<&str>) -> Result<Workspace, DataError> {
    let Some(text) = text else { return Ok(Workspace::default()) };
    let unreadable = |why: String| {
        DataError::Broken(format!(
            "the workspace cannot be read ({why}); set it again (`stockade workspace set`)"
        ))
    };
    let document = serde_json::from_str(text).map_err(|error| unreadable(error.to_string()))?;
    Workspace::of(document).map_err(|error| unreadable(error.to_string()))
}

/// A workspace's name: 1 to 128 bytes of letters, digits and `-_.:/@`.
///
/// # Errors
/// It is none.
pub fn check_workspace(name: &str) -> Result<(), DataError> {
    let fine = (1..=128).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.:/@".contains(&b));
    match fine {
        true => Ok(()),
        false => Err(DataError::Invalid(format!(
            "{name:?} is no workspace's name: use 1 to 128 letters, digits and -_.:/@"
        ))),
    }
}

impl Data {
    /// Sets a workspace's document.
    ///
    /// # Errors
    /// The document is not one, or the store cannot be written.
    pub async fn set_workspace(
        self: &Arc<Self>,
        author: Author,
        name: &str,
        document: Map<String, Value>,
    ) -> Result<Arc<Workspace>, DataError> {
        let set = move |_: Option<&str>| Workspace::given(document.clone());
        self.change_workspace(author, name, "workspace.set", set).await
    }

    /// Enables plugins; in a workspace where all are enabled only with `only`,
    /// which disables the rest.
    ///
    /// # Errors
    /// All are enabled already, or the store cannot be written.
    pub async fn enable_in_workspace(
        self: &Arc<Self>,
        author: Author,
        name: &str,
        plugins: Vec<String>,
        only: bool,
    ) -> Result<Arc<Workspace>, DataError> {
        let place = name.to_owned();
        if !only {
            self.is_known(name)?;
        }
        self.change_workspace(author, name, "workspace.enable", move |text| {
            let workspace = read(text)?;
            let named = plugins.iter().cloned();
            let enabled = match (&workspace.enabled, only) {
                (_, true) => named.collect(),
                (Some(enabled), false) => enabled.iter().cloned().chain(named).collect(),
                (None, false) => {
                    return Err(DataError::Invalid(format!(
                        "Workspace {place} has no list of plugins: all are enabled there, {} too. \
                         To enable only what is named and disable the rest, say --only.",
                        plugins.join(", ")
                    )));
                }
            };
            workspace.set_enabled(enabled)
        })
        .await
    }

    /// Disables plugins. `all` are the plugins that there are: those of a
    /// workspace without a list.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn disable_in_workspace(
        self: &Arc<Self>,
        author: Author,
        name: &str,
        plugins: Vec<String>,
        all: BTreeSet<String>,
    ) -> Result<Arc<Workspace>, DataError> {
        self.is_known(name)?;
        let plugins: BTreeSet<String> = plugins.into_iter().collect();
        self.change_workspace(author, name, "workspace.disable", move |text| {
            let workspace = read(text)?;
            let mut enabled = workspace.enabled.clone().unwrap_or_else(|| all.clone());
            enabled.retain(|name| !plugins.contains(name));
            workspace.set_enabled(enabled)
        })
        .await
    }

    /// A list that was lost cannot be added to, nor taken from.
    fn is_known(&self, name: &str) -> Result<(), DataError> {
        match self.workspaces.why_closed(name) {
            None => Ok(()),
            Some(why) => Err(DataError::Invalid(format!("Workspace {name} is closed: {why}"))),
        }
    }

    /// Changes one where nobody waits for it; only what has become of it is written by the
    /// thread that writes, if it is still what was read.
    async fn change_workspace(
        self: &Arc<Self>,
        author: Author,
        name: &str,
        operation: &'static str,
        apply: impl Fn(Option<&str>) -> Result<Workspace, DataError> + Send + 'static,
    ) -> Result<Arc<Workspace>, DataError> {
        check_workspace(name)?;
        let (place, data, author) = (Arc::<str>::from(name), self.clone(), Arc::new(author));
        self.prepare(&author.actor.clone(), move |connection| {
            for _ in 0..TRIES {
                let found = find(connection, &place)?;
                let workspace = Arc::new(apply(found.as_deref())?);
                let (place, made, author) = (place.clone(), workspace.clone(), author.clone());
                let inner = data.clone();
                let stored = data.writer.write_here(&data.prepared, move |change| {
                    let is_same = find(change.connection, &place)? == found;
                    if is_same {
                        inner.store_workspace(change, &author, operation, &place, made)?;
                    }
                    Ok(is_same)
                });
                if stored? {
                    return Ok(workspace);
                }
            }
            Err(DataError::Busy)
        })
        .await
    }

    fn store_workspace(
        self: Arc<Self>,
        change: &mut StoreChange<'_>,
        author: &Author,
        operation: &'static str,
        name: &Arc<str>,
        workspace: Arc<Workspace>,
    ) -> Result<(), DataError> {
        self.workspaces.room_for(name, workspace.text.len())?;
        let mut upsert = change.connection.prepare_cached(
            "INSERT INTO workspace (name, text, modified) VALUES (?1, ?2, ?3) \
             ON CONFLICT (name) DO UPDATE SET text = ?2, modified = ?3",
        )?;
        let text = String::from_utf8_lossy(&workspace.text);
        upsert.execute(params![name, text, now_ms()])?;
        provenance::record(change, author, operation, name)?;
        let name = name.clone();
        change.after_commit(move || self.workspaces.put(&name, Some(workspace)));
        Ok(())
    }

    /// Workspaces that nobody has configured are open again, after damage; false when
    /// they were not closed.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn reopen_workspaces(self: &Arc<Self>, author: Author) -> Result<bool, DataError> {
        let data = self.clone();
        self.write(&author.actor.clone(), move |change| {
            let forget = "DELETE FROM note WHERE name = 'workspaces'";
            if change.connection.execute(forget, [])? == 0 {
                return Ok(false);
            }
            provenance::record(change, &author, "workspace.reopen", "*")?;
            change.after_commit(move || data.workspaces.reopen());
            Ok(true)
        })
        .await
    }

    /// Forgets a workspace's document; false when there was none.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn delete_workspace(
        self: &Arc<Self>,
        author: Author,
        name: &str,
    ) -> Result<bool, DataError> {
        let (place, data) = (name.to_owned(), self.clone());
        self.write(&author.actor.clone(), move |change| {
            let mut delete =
                change.connection.prepare_cached("DELETE FROM workspace WHERE name = ?1")?;
            let deleted = delete.execute(params![place])? > 0;
            if deleted {
                provenance::record(change, &author, "workspace.delete", &place)?;
                change.after_commit(move || data.workspaces.put(&place, None));
            }
            Ok(deleted)
        })
        .await
    }
}
