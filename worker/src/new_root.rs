//! A root directory of the plugin's own: what was granted, at its usual path,
//! and nothing else.

use std::{
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2, symlinkat},
    io::{Errno, Result},
    mount::{
        MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_bind_recursive, mount_change,
        unmount,
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
    let sources: Vec<(&Place, OwnedFd)> = devices
        .iter()
        .chain(&sandbox.places)
        .map(|place| Ok((place, source(place)?)))
        .collect::<std::result::Result<_, Failure>>()?;
    tmpfs(Path::new(STAGE), "size=1m,mode=755", MountFlags::empty()).map_err(at("mount root"))?;
    let stage = open(CWD, Path::new(STAGE), OFlags::DIRECTORY, ResolveFlags::empty())
        .map_err(at("mount root"))?;
    let scratch = format!("size={},nr_inodes=65536,mode=1777", sandbox.scratch);
    for place in ["/dev/shm", "/tmp"] {
        let target = target(&stage, place, true).map_err(at("mount tmpfs"))?;
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
    let proc = target(&stage, "/proc", true).map_err(at("mount proc"))?;
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

/// The place as it is now; it must still be what the supervisor looked at.
fn source(place: &Place) -> std::result::Result<OwnedFd, Failure> {
    let path = Path::new(&place.source);
    let fd = open(CWD, path, OFlags::empty(), ResolveFlags::NO_SYMLINKS).map_err(at("open"))?;
    let seen = fstat(&fd).map_err(at("open"))?;
    if place.inode != 0 && (seen.st_ino, seen.st_dev) != (place.inode, place.device) {
        return Err(Failure { step: "changed", errno: Errno::STALE });
    }
    Ok(fd)
}

/// The folder or file at `path` of the new root, made if it is not there. Links
/// are resolved inside the new root: none leads out of it.
fn target(stage: &OwnedFd, path: &str, folder: bool) -> Result<OwnedFd> {
    let path = Path::new(path);
    let mut above = std::path::PathBuf::from("/");
    let parts: Vec<_> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    for (index, name) in parts.iter().enumerate() {
        let parent = open(stage, &above, OFlags::DIRECTORY, ResolveFlags::IN_ROOT)?;
        above.push(name);
        if open(stage, &above, OFlags::empty(), ResolveFlags::IN_ROOT).is_ok() {
            continue;
        }
        if index + 1 < parts.len() || folder {
            mkdirat(&parent, *name, Mode::from_raw_mode(0o755))?;
        } else {
            make_file(&parent, Path::new(name))?;
        }
    }
    open(stage, &above, OFlags::empty(), ResolveFlags::IN_ROOT)
}

fn make_file(parent: &OwnedFd, name: &Path) -> Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o444)).map(drop)
}

fn bind(stage: &OwnedFd, place: &Place, source: &OwnedFd) -> Result<()> {
    let folder = FileType::from_raw_mode(fstat(source)?.st_mode) == FileType::Directory;
    let target = target(stage, &place.path, folder)?;
    mount_bind_recursive(by_descriptor(source), by_descriptor(&target))?;
    let mounted = open(stage, Path::new(&place.path), OFlags::empty(), ResolveFlags::IN_ROOT)?;
    let flags = match place.access() {
        Access::Read => libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NODEV,
        Access::Write => libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NODEV,
        Access::Device => libc::MOUNT_ATTR_NOEXEC,
    };
    sys::restrict_mount(&mounted, libc::MOUNT_ATTR_NOSUID | flags, true)
}

fn link(stage: &OwnedFd, path: &str, to: &str) -> Result<()> {
    let (Some(parent), Some(name)) = (Path::new(path).parent(), Path::new(path).file_name()) else {
        return Err(Errno::INVAL);
    };
    let parent: OwnedFd = target(stage, &parent.display().to_string(), true)?;
    let parent: BorrowedFd<'_> = parent.as_fd();
    match symlinkat(to, parent, name) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}
