//! A user for each plugin, when the daemon is root. The owner of the plugin's
//! data directory is the record: the same plugin has the same user for ever.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt as _, lchown},
    path::Path,
    sync::Mutex,
};

use crate::machine::LayerProbe;

/// One at a time: two plugins must not be given the same user.
static ASSIGNING: Mutex<()> = Mutex::new(());

/// The user of the plugin whose data directory this is; the directory and all
/// in it belong to it afterwards.
pub(super) fn assign(data_dir: &Path, probe: &LayerProbe) -> io::Result<u32> {
    let _guard = ASSIGNING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let uids = probe.uids();
    let owner = fs::symlink_metadata(data_dir)?.uid();
    if uids.contains(&owner) {
        return Ok(owner);
    }
    let siblings = fs::read_dir(data_dir.parent().unwrap_or(data_dir))?;
    let taken: Vec<u32> = siblings
        .flatten()
        .filter_map(|entry| fs::symlink_metadata(entry.path()).ok())
        .map(|metadata| metadata.uid())
        .collect();
    let free = uids.clone().find(|uid| !taken.contains(uid)).ok_or_else(|| {
        io::Error::other(format!(
            "every user of plugin_uids = \"{}-{}\" is taken; widen it",
            uids.start(),
            uids.end()
        ))
    })?;
    hand_over(data_dir, free)?;
    Ok(free)
}

/// A plugin that runs as the daemon leaves files of the daemon's behind; the next
/// user of the directory must be given all of it again.
pub(super) fn take_back(data_dir: &Path) -> io::Result<()> {
    let own = rustix::process::geteuid();
    match own.is_root() {
        true => lchown(data_dir, Some(own.as_raw()), None),
        false => Ok(()),
    }
}

/// Links are handed over themselves, never what they lead to.
fn hand_over(path: &Path, uid: u32) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            hand_over(&entry?.path(), uid)?;
        }
        // Itself last: an owner in our range says that all of it is done.
    }
    lchown(path, Some(uid), Some(uid))
}
