//! What a plugin sees: the system, its own directories, what was granted.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use super::confinement::{Access, Place};
use crate::{
    capacity::limits,
    document::read_text,
    manifest::{Manifest, Net, Sandbox},
};

/// What a plugin needs to see besides the system and its own directories.
#[derive(Default)]
pub(super) struct Needs<'a> {
    /// Read and executed.
    pub(super) programs: Vec<PathBuf>,
    pub(super) models: Option<&'a BTreeMap<String, PathBuf>>,
    /// Device files.
    pub(super) devices: Vec<PathBuf>,
}

/// Where distributions keep programs and libraries besides /usr.
const SYSTEM: [&str; 2] = ["/usr", "/nix/store"];
/// Links into /usr on merged systems, folders elsewhere.
const MERGED: [&str; 7] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/libo32"];
/// What the C library, its relatives and language runtimes look for.
const ETC: [&str; 17] = [
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/pki",
    "/var/lib/ca-certificates",
    "/etc/crypto-policies",
    "/etc/locale.alias",
    "/etc/mime.types",
    "/etc/fonts",
    "/etc/OpenCL",
    "/etc/vulkan",
];
/// Beginnings of names in /etc, for what carries a version.
const ETC_FAMILIES: [&str; 2] = ["java-", "ld-musl-"];
/// For plugins with a network.
const ETC_NET: [&str; 6] = [
    "/etc/hosts",
    "/etc/host.conf",
    "/etc/resolv.conf",
    "/etc/services",
    "/etc/protocols",
    "/etc/gai.conf",
];
const TOPOLOGY: [&str; 2] = ["/sys/devices/system/cpu", "/sys/devices/system/node"];

/// The links that make /bin, /lib and their like parts of /usr.
pub(super) fn system_links() -> Vec<(PathBuf, PathBuf)> {
    let link = |path: &&str| Some((PathBuf::from(path), fs::read_link(path).ok()?));
    MERGED.iter().filter_map(link).collect()
}

/// `/bin/x` → `/usr/bin/x` where /bin is such a link: the link itself must stay
/// one in the new root.
fn unmerged(path: &Path) -> PathBuf {
    let mut parts = path.components();
    let (Some(Component::RootDir), Some(Component::Normal(first))) = (parts.next(), parts.next())
    else {
        return path.to_owned();
    };
    let first = Path::new("/").join(first);
    let merged = MERGED.iter().any(|name| Path::new(name) == first) && first.is_symlink();
    match fs::canonicalize(&first) {
        Ok(target) if merged => target.join(parts.as_path()),
        _ => path.to_owned(),
    }
}

/// Everything, outer places before inner ones.
pub(super) fn visible(
    manifest: &Manifest,
    granted: &Sandbox,
    data_dir: &Path,
    needs: &Needs<'_>,
) -> Vec<Place> {
    let mut wanted: Vec<(PathBuf, Access)> = Vec::new();
    let mut read = |path: &Path| wanted.push((path.to_owned(), Access::Read));
    SYSTEM.iter().chain(&ETC).chain(&TOPOLOGY).for_each(|path| read(Path::new(path)));
    families().iter().for_each(|path| read(path));
    MERGED.iter().map(Path::new).filter(|path| !path.is_symlink()).for_each(&mut read);
    if granted.net != Net::None {
        ETC_NET.iter().for_each(|path| read(Path::new(path)));
    }
    if granted.gpu {
        read(Path::new("/sys"));
    }
    read(&manifest.directory);
    needs.programs.iter().chain(&granted.read).for_each(|path| read(path));
    needs.models.into_iter().flat_map(BTreeMap::values).for_each(|path| read(path));
    wanted.push((data_dir.to_owned(), Access::Write));
    wanted.extend(granted.write.iter().map(|path| (path.clone(), Access::Write)));
    wanted.extend(needs.devices.iter().map(|path| (path.clone(), Access::Device)));
    lay_out(wanted)
}

fn families() -> Vec<PathBuf> {
    let entries = fs::read_dir("/etc").into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| ETC_FAMILIES.iter().any(|family| name.starts_with(family)))
        .map(|name| Path::new("/etc").join(name))
        .collect()
}

/// Each at the path by which it was named and at the one where it really is.
fn lay_out(wanted: Vec<(PathBuf, Access)>) -> Vec<Place> {
    let mut found: Vec<Place> = Vec::new();
    for (path, access) in wanted {
        let Ok(source) = fs::canonicalize(&path) else { continue };
        let Ok(metadata) = fs::symlink_metadata(&source) else { continue };
        let identity = (metadata.dev(), metadata.ino());
        for path in [unmerged(&path), source.clone()] {
            found.push(Place { path, source: source.clone(), access, identity });
        }
    }
    // Outer before inner; of two wishes for one place the greater one.
    found.sort_by(|a, b| a.path.cmp(&b.path).then(b.access.cmp(&a.access)));
    found.dedup_by(|b, a| a.path == b.path);
    let mut places: Vec<Place> = Vec::new();
    for place in found {
        // What is read is visible already in a place that is read.
        let around = places.iter().rev().find(|outer| place.path.starts_with(&outer.path));
        let there = around.is_some_and(|outer| outer.access == Access::Read);
        if !(place.access == Access::Read && there) {
            places.push(place);
        }
    }
    places
}

/// The folders that an interpreter lives in: those of every link on the way to
/// it, and the one that a virtual environment was made of.
pub(super) fn interpreter_folders(program: &Path) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    let mut next = Some(program.to_owned());
    for _ in 0..16 {
        let Some(place) = next.take() else { break };
        let Some(bin) = place.parent() else { break };
        if let Some(prefix) = prefix_of(bin) {
            if let Ok(config) = read_text(&prefix.join("pyvenv.cfg"), limits::MANIFEST) {
                let home = config.lines().find_map(|line| {
                    let (key, value) = line.split_once('=')?;
                    (key.trim() == "home").then(|| PathBuf::from(value.trim()))
                });
                folders.extend(home.as_deref().and_then(prefix_of));
            }
            folders.extend(fs::canonicalize(&prefix));
            folders.push(prefix);
        } else {
            folders.push(place.clone());
        }
        let Ok(target) = fs::read_link(&place) else { break };
        let target = bin.join(target);
        next = match (target.parent().map(fs::canonicalize), target.file_name()) {
            (Some(Ok(folder)), Some(name)) => Some(folder.join(name)),
            _ => None,
        };
    }
    folders
}

/// The installation above a `bin` folder, if that is what it is: never a home
/// directory or the root that merely has a `bin`.
fn prefix_of(bin: &Path) -> Option<PathBuf> {
    let prefix = bin.parent().filter(|prefix| *prefix != Path::new("/"))?;
    let library = |folder: &str| {
        let entries = fs::read_dir(prefix.join(folder)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
    };
    let installed = prefix.join("pyvenv.cfg").exists() || library("lib") || library("lib64");
    (bin.ends_with("bin") && installed).then(|| prefix.to_owned())
}
