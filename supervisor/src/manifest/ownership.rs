//! Nobody but the daemon's user and root may be able to change what is run: the
//! plugin's directory, its manifest and program, and every folder above them.

use std::{
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Bits of a file's mode.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;
/// Whoever is not known in a user namespace; the real root, most likely.
const OVERFLOW: u32 = 65_534;

/// Who may change `path`, and what to do about it: one text per place, the
/// outermost first.
pub(super) fn problems(path: &Path) -> Vec<String> {
    let own = rustix::process::geteuid().as_raw();
    let mut places: Vec<&Path> = path.ancestors().collect();
    places.reverse();
    places.into_iter().filter_map(|place| judge(place, place == path, own)).collect()
}

/// A file inside a plugin's directory that decides what is run.
pub(super) fn file_problem(file: &Path) -> Option<String> {
    judge(file, true, rustix::process::geteuid().as_raw())
}

fn judge(place: &Path, last: bool, own: u32) -> Option<String> {
    let metadata = fs::metadata(place).ok()?;
    let shown = place.display();
    let owner = metadata.uid();
    if owner != 0 && owner != own && !(owner == OVERFLOW && in_user_namespace()) {
        return Some(format!(
            "{shown} belongs to {}, who could change what is run: chown it to {}",
            user(owner),
            user(own)
        ));
    }
    // In a sticky folder (/tmp) nobody moves what is another's.
    let sticky = metadata.mode() & STICKY != 0 && !last && metadata.is_dir();
    let writes = writers(&metadata)?;
    (!sticky).then(|| {
        format!("{shown} can be written by {writes}, who could change what is run: chmod go-w it")
    })
}

fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().collect::<Vec<_>>() != ["0", "0", "4294967295"]
}

fn writers(metadata: &Metadata) -> Option<String> {
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Some("everybody".to_owned());
    }
    // A group of which the owner is the only member, by the usual convention
    // (the same number), is nobody else.
    let private = metadata.gid() == metadata.uid();
    (metadata.mode() & GROUP_WRITES != 0 && !private).then(|| format!("group {}", metadata.gid()))
}

fn user(uid: u32) -> String {
    nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| format!("uid {uid}"), |user| user.name)
}

/// The place to which `file`, relative to `directory`, leads, if that is
/// outside of it: a symbolic link out.
pub(super) fn leads_out(directory: &Path, file: &Path) -> Option<PathBuf> {
    let root = fs::canonicalize(directory).ok()?;
    let real = fs::canonicalize(directory.join(file)).ok()?;
    (!real.starts_with(&root)).then_some(real)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn writable_places_are_named_with_what_to_do() {
        let folder = tempfile::tempdir().expect("folder");
        let plugin = folder.path().join("plugin");
        fs::create_dir(&plugin).expect("plugin");
        let mode = |path: &Path, mode: u32| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("mode");
        };
        mode(&plugin, 0o755);
        // /tmp is writable for everybody, but sticky.
        assert_eq!(problems(&plugin), Vec::<String>::new());
        mode(&plugin, 0o777);
        let told = problems(&plugin);
        assert_eq!(told.len(), 1);
        assert!(told[0].contains("can be written by everybody") && told[0].contains("chmod go-w"));
        mode(&plugin, 0o755);
        mode(folder.path(), 0o757);
        assert!(problems(&plugin)[0].starts_with(&folder.path().display().to_string()));
    }

    #[test]
    fn links_out_are_seen_and_links_inside_are_not() {
        let folder = tempfile::tempdir().expect("folder");
        fs::create_dir(folder.path().join("bin")).expect("bin");
        fs::write(folder.path().join("bin/real"), "").expect("real");
        symlink("real", folder.path().join("bin/inside")).expect("inside");
        symlink("/bin/sh", folder.path().join("bin/outside")).expect("outside");
        assert_eq!(leads_out(folder.path(), Path::new("bin/inside")), None);
        assert!(leads_out(folder.path(), Path::new("bin/outside")).is_some());
    }
}
