//! What a scan found to be wrong. It may become right where nobody watches: on a disk that
//! comes back, or by a mode that is corrected.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use crate::manifest::{self, Found, Unread};

/// It is looked at again after this long.
const AGAIN: Duration = Duration::from_secs(2);

/// What the last scan could not read.
#[derive(Default)]
pub(super) struct Doubtful {
    /// Folders of plugins.
    folders: Vec<PathBuf>,
    /// Directories whose manifest is none, with their fingerprints.
    plugins: Vec<(PathBuf, u64)>,
}

impl Doubtful {
    pub(super) fn of(unread: Vec<Unread>, found: &[Found]) -> Self {
        let wrong = found.iter().filter(|one| one.manifest.is_err() && one.key == one.directory);
        Doubtful {
            folders: unread.into_iter().map(|unread| unread.folder).collect(),
            plugins: wrong.map(|one| (one.directory.clone(), one.fingerprint)).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.folders.is_empty() && self.plugins.is_empty()
    }

    /// Whether there is a plugin of this key cannot be told now.
    pub(super) fn has(&self, key: &Path) -> bool {
        self.folders.iter().any(|folder| key.starts_with(folder))
    }

    /// Waits until one of them is not as it was.
    pub(super) async fn changes(&self) {
        loop {
            tokio::time::sleep(AGAIN).await;
            let (folders, plugins) = (self.folders.clone(), self.plugins.clone());
            let look = move || {
                folders.iter().any(|folder| manifest::directories(folder).is_ok())
                    || plugins.iter().any(|(directory, before)| {
                        manifest::load(directory).map(|now| now.fingerprint) != Some(*before)
                    })
            };
            if tokio::task::spawn_blocking(look).await.unwrap_or_default() {
                return;
            }
        }
    }
}
