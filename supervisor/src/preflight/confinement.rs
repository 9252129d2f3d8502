//! Manifest and machine → what holds the plugin back and what it may see.

use std::path::{Path, PathBuf};

use super::{
    Refusal, Surroundings, grants,
    places::{self, Needs},
    users,
};
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

/// A file or folder that the plugin sees.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// Where it sees it.
    pub path: PathBuf,
    /// What it is, without a link on the way.
    pub source: PathBuf,
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
    around: &Surroundings,
    data_dir: &Path,
    needs: &Needs<'_>,
) -> Result<Confinement, Refusal> {
    let mut confinement = Confinement {
        granted: manifest.sandbox.clone(),
        layers: Vec::new(),
        uid: None,
        places: Vec::new(),
        links: Vec::new(),
        scratch: (manifest.limits.memory / 2).max(1 << 20),
    };
    // Traced, it runs unconfined; what is worked out here is what it would see.
    let traced = around.tracer.is_some();
    if manifest.sandbox.profile == Profile::None && !traced {
        unsandboxed(manifest, data_dir)?;
        return Ok(confinement);
    }
    layers(&mut confinement, &around.layers);
    if !traced {
        enough(&confinement)?;
    }
    grants::check(manifest, &mut confinement.granted, needs, &around.guarded).map_err(refused)?;
    if confinement.has("users") && !traced {
        let uid = users::assign(data_dir, &around.layers)
            .map_err(|error| refused(format!("No user could be made for it: {error}.")))?;
        confinement.uid = Some(uid);
    }
    confinement.places = places::visible(manifest, &confinement.granted, data_dir, needs);
    confinement.links = places::system_links();
    Ok(confinement)
}

/// Profile none: only when the operator says so.
fn unsandboxed(manifest: &Manifest, data_dir: &Path) -> Result<(), Refusal> {
    if manifest.sandbox.allow_unsandboxed {
        return users::take_back(data_dir)
            .map_err(|error| refused(format!("Its data cannot be given back: {error}.")));
    }
    Err(refused(format!(
        "It asks to run without a sandbox (sandbox.profile = \"none\"), which the operator has not \
         allowed. Remove that line, or set allow_unsandboxed = true in [plugin.{}.sandbox] of \
         stockade.toml.",
        manifest.name
    )))
}

/// Every layer, or as many as the operator is content with. Never root itself:
/// a confined root is still root wherever a fence has a gap.
fn enough(confinement: &Confinement) -> Result<(), Refusal> {
    let missing: Vec<(&str, &String)> = confinement
        .layers
        .iter()
        .filter_map(|layer| Some((layer.name, layer.holds.as_ref().err()?)))
        .collect();
    let root = missing.iter().any(|(name, _)| *name == "users");
    if missing.is_empty() || (confinement.granted.allow_degraded && !root) {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    let way_out = match root {
        true => "or run the daemon as another user than root.",
        false => "or set allow_degraded = true to run it with less.",
    };
    Err(refused(format!(
        "Its sandbox cannot be built here; missing: {}. Run `stockade doctor`, {way_out}",
        list.join("; ")
    )))
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
    let net = confinement.granted.net;
    let mut add = |name, holds| confinement.layers.push(Layer { name, holds });
    if let Some(users) = &found.users {
        add("users", users.as_ref().map(|()| "its own user".to_owned()).map_err(told));
    }
    let namespaces = found.namespaces.as_ref();
    add("namespaces", namespaces.map(|()| "its own root, pids, network".into()).map_err(told));
    let landlock = found.landlock.as_ref().map(|abi| match abi {
        // Scopes came with ABI 6; a network of its own does the same.
        ..6 if net == Net::Host => {
            format!("ABI {abi}: with net = true, abstract sockets of others can be reached")
        }
        _ => format!("ABI {abi}"),
    });
    add("landlock", landlock.map_err(told));
    add("seccomp", found.seccomp.as_ref().map(|()| "system calls filtered".into()).map_err(told));
}
