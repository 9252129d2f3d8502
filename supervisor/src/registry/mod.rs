//! All plugins: name → handle. The registry actor finds directories, starts
//! and ends their actors, and publishes the list.

mod actor;
mod doubtful;
mod recovered;
mod watcher;

use std::{collections::BTreeMap, sync::Arc};

pub use actor::{Folders, Registry, Reloaded, start};
pub use recovered::obey;

use crate::plugin::Handle;

/// The list of plugins at one moment.
#[derive(Clone, Debug, Default)]
pub struct RegistrySnapshot {
    /// By name, sorted.
    pub plugins: BTreeMap<Arc<str>, Handle>,
    /// False until every folder has been read once.
    pub scanned: bool,
    /// The daemon is ending.
    pub draining: bool,
    /// Folders that cannot be read, and the like.
    pub problems: Vec<String>,
}

impl RegistrySnapshot {
    /// One plugin.
    pub fn get(&self, name: &str) -> Option<&Handle> {
        self.plugins.get(name)
    }
}
