//! A root directory of the plugin's own: what was granted, at its usual path,
//! and nothing else.

use std::{
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::Path,
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, symlinkat},
    io::{Errno, Result},
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
        mount_change, move_mount, open_tree, unmount,
    },
};
use stockade_proto::launch::{Access, Place, Sandbox};

use crate::{Failure, at, sys};

/// Where the new root is put together; what is here is hidden meanwhile.
const STAGE: &str = "/dev";

/// Always there.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// Builds the new root and moves this process into it. Runs in a mount
/// namespace of its own, as pid 1 of its pid namespace.
pub(crate) fn enter(sandbox: &Sandbox) -> std::result::Result<(), Failure> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(at("mount private"))?;
    // Before the stage hides what lies under it.
    let devices = DEVICES.map(|path| Place {
        path: path.to_owned(),
        source: path.to_owned(),
        access: Access::Device.into(),
        ..Place::default()
    });
    let sources: Vec<(&Place, Source)> = devices
        .iter()
        .chain(&sandbox.places)
        .map(|place| Ok((place, source(place)?)))
        .collect::<std::result::Result<_, Failure>>()?;
    tmpfs(Path::new(STAGE), "size=1m,mode=755", MountFlags::empty()).map_err(at("mount root"))?;
    let stage = open(CWD, Path::new(STAGE), OFlags::DIRECTORY, ResolveFlags::empty())
        .map_err(at("mount root"))?;
    let scratch = format!("size={},nr_inodes=65536,mode=1777", sandbox.scratch);
    for place in ["/dev/shm", "/tmp"] {
        let target = target(&stage, Path::new(place), true).map_err(at("mount tmpfs"))?;
        tmpfs(Path::new(&by_descriptor(&target)), &scratch, MountFlags::NOEXEC)
            .map_err(at("mount tmpfs"))?;
    }
    for (place, source) in &sources {
        bind(&stage, place, source).map_err(at("bind"))?;
    }
    let links = sandbox.links.iter().map(|link| (link.path.as_str(), link.target.as_str()));
    for (path, target) in LINKS.into_iter().chain(links) {
        link(&stage, path, target).map_err(at("link"))?;
    }
    let proc = target(&stage, Path::new("/proc"), true).map_err(at("mount proc"))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("proc", by_descriptor(&proc), "proc", flags, None).map_err(at("mount proc"))?;
    rustix::process::fchdir(&stage).map_err(at("pivot_root"))?;
    rustix::process::pivot_root(".", ".").map_err(at("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(at("pivot_root"))?;
    rustix::process::chdir("/").map_err(at("pivot_root"))?;
    let root = open(CWD, Path::new("/"), OFlags::DIRECTORY, ResolveFlags::empty())
        .map_err(at("read-only root"))?;
    sys::restrict_mount(&root, libc::MOUNT_ATTR_RDONLY, false).map_err(at("read-only root"))
}

fn by_descriptor(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn tmpfs(target: &Path, options: &str, more: MountFlags) -> Result<()> {
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | more;
    mount("tmpfs", target, "tmpfs", flags, options.as_c_str())
}

fn open(from: impl AsFd, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
    openat2(from, path, OFlags::PATH | OFlags::CLOEXEC | flags, Mode::empty(), resolve)
}

/// What is to be bound.
struct Source {
    fd: OwnedFd,
    folder: bool,
}

/// The place as it is now; it must still be what the supervisor looked at.
fn source(place: &Place) -> std::result::Result<Source, Failure> {
    let path = Path::new(&place.source);
    let fd = open(CWD, path, OFlags::empty(), ResolveFlags::NO_SYMLINKS).map_err(at("open"))?;
    let seen = fstat(&fd).map_err(at("open"))?;
    if place.inode != 0 && (seen.st_ino, seen.st_dev) != (place.inode, place.device) {
        return Err(Failure { step: "changed", errno: Errno::STALE });
    }
    let folder = FileType::from_raw_mode(seen.st_mode) == FileType::Directory;
    Ok(Source { fd, folder })
}

/// The folder or file at `path` of the new root, made if it is not there. Links
/// are resolved inside the new root: none leads out of it.
fn target(stage: &OwnedFd, path: &Path, folder: bool) -> Result<OwnedFd> {
    let inside = |path: &Path| open(stage, path, OFlags::empty(), ResolveFlags::IN_ROOT);
    match inside(path) {
        Err(Errno::NOENT) => {}
        found => return found,
    }
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Errno::INVAL);
    };
    let parent = target(stage, above, true)?;
    if folder {
        mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
    } else {
        make_file(&parent, Path::new(name))?;
    }
    inside(path)
}

fn make_file(parent: &OwnedFd, name: &Path) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o444)).map(drop)
}

/// A copy of the source's mounts, restricted before anybody can see it.
fn bind(stage: &OwnedFd, place: &Place, source: &Source) -> Result<()> {
    let target = target(stage, Path::new(&place.path), source.folder)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(&source.fd, "", flags)?;
    let attributes = match place.access() {
        Access::Read => libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
        Access::Write => libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NODEV,
        Access::Device => libc::MOUNT_ATTR_NOEXEC,
    };
    sys::restrict_mount(&tree, libc::MOUNT_ATTR_NOSUID | attributes, true)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(&tree, "", &target, "", flags)
}

fn link(stage: &OwnedFd, path: &str, to: &str) -> Result<()> {
    let (Some(parent), Some(name)) = (Path::new(path).parent(), Path::new(path).file_name()) else {
        return Err(Errno::INVAL);
    };
    let parent = target(stage, parent, true)?;
    match symlinkat(to, &parent, name) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
