//! Manifest and machine → what holds the plugin back and what it may see.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Refusal, users};
use crate::{
    lifecycle::{Cause, CauseCode},
    machine::{Gap, LayerProbe},
    manifest::{Manifest, Net, Profile, Sandbox},
};

/// What may be done with a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read and execute.
    Read,
    /// Read and change; nothing is executed from it.
    Write,
    /// A device.
    Device,
}

/// A file or folder that the plugin sees, at its usual path.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Absolute.
    pub path: PathBuf,
    /// What may be done with it.
    pub access: Access,
    /// Device and inode that were looked at.
    pub identity: (u64, u64),
}

/// One layer of the sandbox.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// `users`, `namespaces`, `landlock`, `seccomp`.
    pub name: &'static str,
    /// It holds; otherwise why not, and how to get it.
    pub holds: Result<String, String>,
}

/// What holds one process of a plugin back.
#[derive(Clone, Debug, PartialEq)]
pub struct Confinement {
    /// What was granted.
    pub granted: Sandbox,
    /// What holds; empty for profile none.
    pub layers: Vec<Layer>,
    /// The user to become.
    pub uid: Option<u32>,
    /// Outer places before inner ones.
    pub places: Vec<Place>,
    /// Symbolic links of the new root: path and target.
    pub links: Vec<(PathBuf, PathBuf)>,
    /// Bytes of /tmp and of /dev/shm, each.
    pub scratch: u64,
}

/// What a plugin needs to see besides the system and its own directories.
#[derive(Default)]
pub(super) struct Needs<'a> {
    /// Read and executed.
    pub(super) programs: Vec<PathBuf>,
    pub(super) models: Option<&'a BTreeMap<String, PathBuf>>,
    /// Device files.
    pub(super) devices: Vec<PathBuf>,
}

impl Confinement {
    /// A layer is there and applied.
    pub fn has(&self, name: &str) -> bool {
        self.layers.iter().any(|layer| layer.name == name && layer.holds.is_ok())
    }

    /// What health says: the profile, or what is left of it.
    pub fn label(&self) -> String {
        let profile = self.granted.profile;
        if profile == Profile::None {
            return "UNSANDBOXED".to_owned();
        }
        let missing: Vec<String> = self
            .layers
            .iter()
            .filter_map(|layer| Some(format!("{}: {}", layer.name, layer.holds.as_ref().err()?)))
            .collect();
        if missing.is_empty() {
            let weaker = if self.granted.gpu { " (weakened by gpu)" } else { "" };
            return format!("{}{weaker}", profile.as_str());
        }
        let held: Vec<&str> = self
            .layers
            .iter()
            .filter(|layer| layer.holds.is_ok())
            .map(|layer| layer.name)
            .collect();
        let held = if held.is_empty() { "nothing".to_owned() } else { held.join("+") };
        format!("degraded({held}): {}", missing.join("; "))
    }
}

/// Decides all of it.
pub(super) fn of(
    manifest: &Manifest,
    probe: &LayerProbe,
    state_dir: &Path,
    data_dir: &Path,
    needs: &Needs<'_>,
) -> Result<Confinement, Refusal> {
    let granted = manifest.sandbox.clone();
    let mut confinement = Confinement {
        granted: granted.clone(),
        layers: Vec::new(),
        uid: None,
        places: Vec::new(),
        links: Vec::new(),
        scratch: (manifest.limits.memory / 2).max(1 << 20),
    };
    if granted.profile == Profile::None {
        return match granted.allow_unsandboxed {
            true => Ok(confinement),
            false => Err(refused(
                "It asks to run without a sandbox (sandbox.profile = \"none\"), which the operator \
                 has not allowed. Remove that line, or set allow_unsandboxed = true in \
                 [plugin.NAME.sandbox] of stockade.toml."
                    .replace("NAME", &manifest.name),
            )),
        };
    }
    layers(&mut confinement, probe);
    let missing: Vec<String> = confinement
        .layers
        .iter()
        .filter_map(|layer| Some(format!("{} ({})", layer.name, layer.holds.as_ref().err()?)))
        .collect();
    if !missing.is_empty() && !granted.allow_degraded {
        return Err(refused(format!(
            "Its sandbox cannot be built here; missing: {}. Run `stockade doctor`, or set \
             allow_degraded = true to run it with less.",
            missing.join("; ")
        )));
    }
    if let Some(grant) = exposes(&granted, state_dir) {
        return Err(refused(format!(
            "Its grant {} covers the daemon's state directory {}. Grant a narrower folder.",
            grant.display(),
            state_dir.display()
        )));
    }
    if confinement.has("users") {
        let uid = users::assign(data_dir, probe)
            .map_err(|error| refused(format!("No user could be made for it: {error}.")))?;
        confinement.uid = Some(uid);
    }
    confinement.places = places(manifest, &granted, data_dir, needs);
    confinement.links = system_links();
    Ok(confinement)
}

fn refused(reason: String) -> Refusal {
    Refusal {
        cause: Cause::new(CauseCode::Sandbox, reason),
        missing: Vec::new(),
        watch: Vec::new(),
    }
}

fn layers(confinement: &mut Confinement, probe: &LayerProbe) {
    let told = |gap: &Gap| format!("{}; {}", gap.what, gap.fix);
    let found = probe.layers();
    let mut add = |name, holds| confinement.layers.push(Layer { name, holds });
    if let Some(users) = &found.users {
        add("users", users.as_ref().map(|()| "its own user".to_owned()).map_err(told));
    }
    let namespaces = found.namespaces.as_ref();
    add("namespaces", namespaces.map(|()| "its own root, pids, network".into()).map_err(told));
    add("landlock", found.landlock.as_ref().map(|abi| format!("ABI {abi}")).map_err(told));
    add("seccomp", found.seccomp.as_ref().map(|()| "system calls filtered".into()).map_err(told));
}

/// A grant that would show other plugins' data or the daemon's.
fn exposes<'a>(granted: &'a Sandbox, state_dir: &Path) -> Option<&'a PathBuf> {
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let state = real(state_dir);
    granted.read.iter().chain(&granted.write).find(|path| {
        let path = real(path);
        path.starts_with(&state) || state.starts_with(&path)
    })
}

/// Where distributions keep programs and libraries besides /usr.
const SYSTEM: [&str; 2] = ["/usr", "/nix/store"];
/// Links into /usr on merged systems, folders elsewhere.
const MERGED: [&str; 7] = ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/libo32"];
/// What the C library and its relatives look for.
const ETC: [&str; 13] = [
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/alternatives",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/timezone",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/pki",
    "/etc/mime.types",
];
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

fn system_links() -> Vec<(PathBuf, PathBuf)> {
    let link = |path: &&str| Some((PathBuf::from(path), fs::read_link(path).ok()?));
    MERGED.iter().filter_map(link).collect()
}

fn places(
    manifest: &Manifest,
    granted: &Sandbox,
    data_dir: &Path,
    needs: &Needs<'_>,
) -> Vec<Place> {
    let mut wanted: Vec<(PathBuf, Access)> = Vec::new();
    let mut read = |path: &Path| wanted.push((path.to_owned(), Access::Read));
    SYSTEM.iter().chain(&ETC).chain(&TOPOLOGY).for_each(|path| read(Path::new(path)));
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
    // Outer before inner; of two wishes for one place the greater one.
    wanted.sort_by(|(a, x), (b, y)| a.cmp(b).then(y.cmp(x)));
    wanted.dedup_by(|(a, _), (b, _)| a == b);
    let mut places: Vec<Place> = Vec::new();
    for (path, access) in wanted {
        let Ok(metadata) = fs::metadata(&path) else { continue };
        // What is read is visible already in a place that is read.
        let around = places.iter().rev().find(|place| path.starts_with(&place.path));
        if access == Access::Read && around.is_some_and(|place| place.access == Access::Read) {
            continue;
        }
        places.push(Place { path, access, identity: (metadata.dev(), metadata.ino()) });
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
        if let Some(prefix) = prefix(bin) {
            if let Ok(config) = fs::read_to_string(prefix.join("pyvenv.cfg")) {
                let home = config.lines().find_map(|line| {
                    let (key, value) = line.split_once('=')?;
                    (key.trim() == "home").then(|| PathBuf::from(value.trim()))
                });
                folders.extend(home.as_deref().and_then(|home| self::prefix(home)));
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
fn prefix(bin: &Path) -> Option<PathBuf> {
    let prefix = bin.parent().filter(|prefix| *prefix != Path::new("/"))?;
    let library = |folder: &str| {
        let entries = fs::read_dir(prefix.join(folder)).into_iter().flatten().flatten();
        entries.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("python3"))
    };
    let installed = prefix.join("pyvenv.cfg").exists() || library("lib") || library("lib64");
    (bin.ends_with("bin") && installed).then(|| prefix.to_owned())
}
