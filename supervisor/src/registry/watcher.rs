//! Tells when something changed in the plugin folders.

use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use crate::manifest::{self, Found, Run};

/// Watches folders, plugin directories and the folders of their programs; not
/// deeper (a virtual environment has ten thousand files).
#[derive(Clone)]
pub(super) struct FolderWatcher(Arc<Mutex<Watched>>);

struct Watched {
    watcher: Option<RecommendedWatcher>,
    watched: HashSet<PathBuf>,
}

impl FolderWatcher {
    /// The receiver gets a token for each burst of changes.
    pub(super) fn new(enabled: bool) -> (Self, mpsc::Receiver<()>, Option<String>) {
        let (changes, receiver) = mpsc::channel(1);
        let of = |watcher| {
            FolderWatcher(Arc::new(Mutex::new(Watched { watcher, watched: HashSet::new() })))
        };
        if !enabled {
            return (of(None), receiver, None);
        }
        let made = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            let relevant = event.is_ok_and(|event| !event.kind.is_access());
            if relevant {
                // A token that waits already stands for this change too.
                let _ = changes.try_send(());
            }
        });
        let (watcher, problem) = match made {
            Ok(watcher) => (Some(watcher), None),
            Err(error) => {
                let text = format!(
                    "cannot watch the plugin folders: {error}; use `stockade reload` after changes"
                );
                (None, Some(text))
            }
        };
        (of(watcher), receiver, problem)
    }

    /// Watches these, too. Blocks on the file systems.
    pub(super) fn add(&self, wanted: HashSet<PathBuf>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Watched { watcher: Some(watcher), watched } = &mut *inner else { return };
        watched.extend(
            wanted
                .into_iter()
                .filter(|path| watcher.watch(path, RecursiveMode::NonRecursive).is_ok()),
        );
    }

    /// Watches exactly these from now on. Blocks on the file systems.
    pub(super) fn set(&self, wanted: HashSet<PathBuf>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Watched { watcher: Some(watcher), watched } = &mut *inner else { return };
        for gone in watched.extract_if(|path| !wanted.contains(path)) {
            let _ = watcher.unwatch(&gone);
        }
        drop(inner);
        // Also what is watched already: the path may be another directory now.
        self.add(wanted);
    }
}

/// The folders whose changes are looked out for.
pub(super) fn watched(
    folders: &[PathBuf],
    python: Option<&Path>,
    found: &[Found],
) -> HashSet<PathBuf> {
    let mut paths: HashSet<PathBuf> = folders.iter().cloned().collect();
    // Those without a manifest, too: it may come.
    let read = folders.iter().filter_map(|folder| manifest::directories(folder).ok());
    paths.extend(read.flat_map(|(directories, _)| directories));
    for one in found {
        paths.insert(one.directory.clone());
        match one.manifest.as_ref().map(|manifest| &manifest.run) {
            Ok(Run::Binary(program)) => {
                paths.extend(one.directory.join(program).parent().map(PathBuf::from));
            }
            Ok(Run::Python { .. }) => {
                let sources = manifest::python_sources(&one.directory);
                paths.extend(sources.iter().filter_map(|file| file.parent()).map(PathBuf::from));
            }
            Ok(Run::Library(_) | Run::Remote(_)) | Err(_) => {}
        }
    }
    paths.extend(python.iter().flat_map(|python| manifest::libraries(python)));
    paths
}
