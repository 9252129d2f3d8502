//! Who changed what, when, on whose behalf; the newest of each plugin are kept.

use std::{collections::HashMap, sync::Arc};

use rusqlite::{Connection, params};

use super::{Data, DataError, now_ms, operators_turn, writer::Change};
use crate::capacity::limits;

/// Who makes a change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Author {
    /// `plugin:<id>`, or `operator <who>`.
    pub actor: Arc<str>,
    /// Which process of the plugin; 0 for operators.
    pub generation: u64,
    /// The call in which it did; empty outside of one.
    pub call: Arc<str>,
    /// The workspace; empty when there is none.
    pub workspace: Arc<str>,
}

/// One record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// Counts up.
    pub id: u64,
    /// Milliseconds since 1970.
    pub time: i64,
    /// Who.
    pub author: Author,
    /// `kv.set`, `entity.set_flag`, …
    pub operation: String,
    /// What: `plugin:<id>:<key>`, `workspace/kind/id#path`.
    pub key: String,
}

/// Which records are wanted, newest first.
#[derive(Clone, Debug, Default)]
pub struct ProvenanceQuery {
    /// Of this plugin (or operator).
    pub actor: Option<String>,
    /// Of this key, or of those that begin so when it ends in `*`.
    pub key: Option<String>,
    /// In this workspace.
    pub workspace: Option<String>,
    /// At most.
    pub limit: u32,
}

/// Records between two cuts.
const BETWEEN_CUTS: u32 = 64;

/// Bounds the records of each actor.
#[derive(Debug)]
pub(super) struct Pruner {
    keep: usize,
    since: HashMap<Arc<str>, u32>,
    /// The number of the last record.
    last: i64,
}

impl Pruner {
    pub(super) fn new(connection: &Connection, keep: usize) -> Self {
        let last = connection.query_row("SELECT max(id) FROM provenance", [], |row| row.get(0));
        Pruner { keep, since: HashMap::new(), last: last.ok().flatten().unwrap_or(0) }
    }
}

/// Writes the record of a change, in its transaction.
pub(super) fn record(
    change: &mut Change<'_>,
    author: &Author,
    operation: &str,
    key: &str,
) -> Result<(), DataError> {
    let mut insert = change.connection.prepare_cached(
        "INSERT INTO provenance (time, actor, generation, call, workspace, operation, key, id) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    let Author { actor, generation, call, workspace } = author;
    change.pruner.last += 1;
    let (generation, id) = (*generation as i64, change.pruner.last);
    insert.execute(params![now_ms(), actor, generation, call, workspace, operation, key, id])?;
    let since = change.pruner.since.entry(actor.clone()).or_insert(BETWEEN_CUTS);
    *since += 1;
    if *since > BETWEEN_CUTS {
        *since = 0;
        let mut cut = change.connection.prepare_cached(
            "DELETE FROM provenance WHERE actor = ?1 AND id <= (SELECT id FROM provenance \
             WHERE actor = ?1 ORDER BY id DESC LIMIT 1 OFFSET ?2)",
        )?;
        cut.execute(params![actor, change.pruner.keep as i64])?;
    }
    Ok(())
}

impl Data {
    /// Who changed what, newest first.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn provenance(
        self: &Arc<Self>,
        query: ProvenanceQuery,
    ) -> Result<Vec<Provenance>, DataError> {
        self.read(operators_turn(), move |connection| Ok(select(connection, &query)?)).await
    }
}

fn select(connection: &Connection, query: &ProvenanceQuery) -> rusqlite::Result<Vec<Provenance>> {
    let (prefix, exact) = match query.key.as_deref() {
        Some(key) => match key.strip_suffix('*') {
            Some(prefix) => (Some(prefix), None),
            None => (None, Some(key)),
        },
        None => (None, None),
    };
    let mut select = connection.prepare_cached(
        "SELECT id, time, actor, generation, call, workspace, operation, key FROM provenance \
         WHERE (?1 IS NULL OR actor = ?1) AND (?2 IS NULL OR key = ?2) \
         AND (?3 IS NULL OR substr(key, 1, length(?3)) = ?3) AND (?4 IS NULL OR workspace = ?4) \
         ORDER BY id DESC LIMIT ?5",
    )?;
    let text = |row: &rusqlite::Row<'_>, column: usize| row.get::<_, String>(column);
    let rows = select.query_map(
        params![
            query.actor,
            exact,
            prefix,
            query.workspace,
            query.limit.min(limits::PAGE_ROWS as u32)
        ],
        |row| {
            Ok(Provenance {
                id: row.get::<_, i64>(0)? as u64,
                time: row.get(1)?,
                author: Author {
                    actor: text(row, 2)?.into(),
                    generation: row.get::<_, i64>(3)? as u64,
                    call: text(row, 4)?.into(),
                    workspace: text(row, 5)?.into(),
                },
                operation: text(row, 6)?,
                key: text(row, 7)?,
            })
        },
    )?;
    rows.collect()
}
