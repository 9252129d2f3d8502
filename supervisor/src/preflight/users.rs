//! A user for each plugin, when the daemon is root. The owner of the plugin's
//! data directory is the record: the same plugin has the same user for ever.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::RangeInclusive,
    os::unix::fs::{MetadataExt as _, lchown},
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::machine::LayerProbe;

/// Users that are being given away: two plugins must not get the same one.
static GIVING: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// One of them, until its directory says so.
struct Giving(u32);

impl Drop for Giving {
    fn drop(&mut self) {
        giving().remove(&self.0);
    }
}

fn giving() -> MutexGuard<'static, BTreeSet<u32>> {
    GIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The user of the plugin whose data directory this is; the directory and all
/// in it belong to it afterwards.
pub(super) fn assign(data_dir: &Path, probe: &LayerProbe) -> io::Result<u32> {
    let uids = probe.uids();
    let owner = fs::symlink_metadata(data_dir)?.uid();
    if uids.contains(&owner) {
        if !is_shared(data_dir, owner)? {
            return Ok(owner);
        }
        tracing::warn!(
            "{} belongs to the user of another plugin, as a copy does: it is given to one of its \
             own",
            data_dir.display()
        );
    }
    let given = give(data_dir, &uids)?;
    // How much there is in it is the plugin's choice: nobody else waits for it.
    hand_over(data_dir, given.0)?;
    Ok(given.0)
}

/// Another plugin's directory has this owner, too.
fn is_shared(data_dir: &Path, owner: u32) -> io::Result<bool> {
    let own = fs::symlink_metadata(data_dir)?.ino();
    let siblings = fs::read_dir(data_dir.parent().unwrap_or(data_dir))?;
    let mut others = siblings.flatten().filter_map(|entry| fs::symlink_metadata(entry.path()).ok());
    Ok(others.any(|other| other.is_dir() && other.uid() == owner && other.ino() != own))
}

/// A user that nobody has.
fn give(data_dir: &Path, uids: &RangeInclusive<u32>) -> io::Result<Giving> {
    let mut giving = giving();
    let siblings = fs::read_dir(data_dir.parent().unwrap_or(data_dir))?;
    let taken: BTreeSet<u32> = siblings
        .flatten()
        .filter_map(|entry| fs::symlink_metadata(entry.path()).ok())
        .map(|metadata| metadata.uid())
        .chain(giving.iter().copied())
        .collect();
    let free = uids.clone().find(|uid| !taken.contains(uid)).ok_or_else(|| {
        io::Error::other(format!(
            "every user of plugin_uids = \"{}-{}\" is taken; widen it",
            uids.start(),
            uids.end()
        ))
    })?;
    giving.insert(free);
    Ok(Giving(free))
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
    let mut folders = vec![path.to_owned()];
    // One folder is open at a time, however deep they are.
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            lchown(entry.path(), Some(uid), Some(uid))?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    // Itself last: an owner in our range says that all of it is done.
    lchown(path, Some(uid), Some(uid))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deep_tree_is_handed_over_with_its_links_and_nothing_behind_them() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (data, other) = (folder.path().join("data"), folder.path().join("other"));
        let deepest = data.join("d/".repeat(1500));
        fs::create_dir_all(&deepest).unwrap();
        fs::write(&other, "").unwrap();
        let link = deepest.join("link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        hand_over(&data, 61_234).unwrap();
        for path in [&data, &deepest, &link] {
            assert_eq!(fs::symlink_metadata(path).unwrap().uid(), 61_234);
        }
        assert_eq!(fs::metadata(&other).unwrap().uid(), 0);
    }

    #[test]
    fn a_copy_of_other_data_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let (one, copy) = (folder.path().join("one"), folder.path().join("copy"));
        fs::create_dir(&one).unwrap();
        let owner = fs::metadata(&one).unwrap().uid();
        assert!(!is_shared(&one, owner).unwrap());
        fs::create_dir(&copy).unwrap();
        assert!(is_shared(&one, owner).unwrap() && is_shared(&copy, owner).unwrap());
        assert!(!is_shared(&one, owner + 1).unwrap());
    }

    #[test]
    fn a_user_that_is_being_given_away_is_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (folder.path().join("one"), folder.path().join("other"));
        let uids = 4_000_000_000..=4_000_000_001;
        let first = give(&one, &uids).unwrap();
        let second = give(&other, &uids).unwrap();
        assert_ne!(first.0, second.0);
        assert!(give(&other, &uids).is_err());
        drop(first);
        assert!(give(&other, &uids).is_ok());
    }
}
