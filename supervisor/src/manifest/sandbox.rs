//! What a plugin asks for beyond its own directory (`[sandbox]`), and what the
//! operator allows of it.

use std::path::{Component, Path, PathBuf};

use serde::{Serialize, Serializer};

use crate::document::Table;

/// How a plugin is confined.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    /// Limits and a clean environment only.
    None,
    /// Namespaces, a root of its own, Landlock, seccomp.
    #[default]
    Standard,
    /// The same, and it executes nothing and opens no socket.
    Strict,
}

impl Profile {
    const NAMES: [(&'static str, Profile); 3] =
        [("none", Profile::None), ("standard", Profile::Standard), ("strict", Profile::Strict)];

    /// As in the manifest.
    pub fn as_str(self) -> &'static str {
        match self {
            Profile::None => "none",
            Profile::Standard => "standard",
            Profile::Strict => "strict",
        }
    }
}

/// Which network a plugin has; more is greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Net {
    /// None.
    #[default]
    None,
    /// A loopback device of its own.
    Loopback,
    /// The machine's.
    Host,
}

impl Serialize for Net {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        match self {
            Net::None => s.serialize_bool(false),
            Net::Loopback => s.serialize_str("loopback"),
            Net::Host => s.serialize_bool(true),
        }
    }
}

/// What a plugin gets: requested by its manifest and allowed by the operator.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sandbox {
    /// How it is confined.
    pub profile: Profile,
    /// Files and folders that it may read.
    pub read: Vec<PathBuf>,
    /// Files and folders that it may change.
    pub write: Vec<PathBuf>,
    /// Its network.
    pub net: Net,
    /// The devices of its GPUs.
    pub gpu: bool,
    /// Memory that is writable and executable.
    pub jit: bool,
    /// Requested, and not allowed by the operator.
    pub denied: Vec<String>,
    /// The operator's lists, for what a path turns out to lead to.
    #[serde(skip)]
    pub allowed: AllowedPaths,
    /// It may run with profile none.
    pub allow_unsandboxed: bool,
    /// It may run where a layer of its profile is missing.
    pub allow_degraded: bool,
}

/// Lists that must each contain a path.
pub type Allowed = Vec<Vec<PathBuf>>;

/// What may be read and written at most.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AllowedPaths {
    /// For `fs.read`, and models outside of the plugin's directory.
    pub read: Allowed,
    /// For `fs.write`.
    pub write: Allowed,
}

impl Default for Sandbox {
    fn default() -> Self {
        Sandbox {
            profile: Profile::Standard,
            read: Vec::new(),
            write: Vec::new(),
            net: Net::None,
            gpu: false,
            jit: true,
            denied: Vec::new(),
            allowed: AllowedPaths::default(),
            allow_unsandboxed: false,
            allow_degraded: false,
        }
    }
}

/// Reads a manifest's `[sandbox]`. Relative paths lie in the plugin's directory.
pub(super) fn read_request(table: Table<'_>, directory: &Path, sandbox: &mut Sandbox) {
    let wanted = Restrictions::read(&table, Some(directory));
    table.finish();
    sandbox.profile = wanted.profile.unwrap_or(sandbox.profile);
    sandbox.read = wanted.read.unwrap_or_default();
    sandbox.write = wanted.write.unwrap_or_default();
    sandbox.net = wanted.net.unwrap_or(sandbox.net);
    sandbox.gpu = wanted.gpu.unwrap_or(sandbox.gpu);
    sandbox.jit = wanted.jit.unwrap_or(sandbox.jit);
}

/// The operator's word. None = everything that was requested.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Restrictions {
    profile: Option<Profile>,
    read: Option<Vec<PathBuf>>,
    write: Option<Vec<PathBuf>>,
    net: Option<Net>,
    gpu: Option<bool>,
    jit: Option<bool>,
    /// Profile none may be used.
    pub allow_unsandboxed: Option<bool>,
    /// A missing layer is no reason not to start.
    pub allow_degraded: Option<bool>,
}

impl Restrictions {
    /// Reads `[sandbox]` of the configuration, or of `[plugin.NAME]`.
    pub fn of_operator(table: Table<'_>) -> Self {
        let mut restrictions = Self::read(&table, None);
        restrictions.allow_unsandboxed = table.boolean("allow_unsandboxed");
        restrictions.allow_degraded = table.boolean("allow_degraded");
        table.finish();
        restrictions
    }

    fn read(table: &Table<'_>, directory: Option<&Path>) -> Self {
        let (mut read, mut write) = (None, None);
        if let Some(fs) = table.table("fs") {
            read = paths(&fs, "read", directory);
            write = paths(&fs, "write", directory);
            fs.finish();
        }
        let net = match table.boolean_if("net") {
            Some(granted) => Some(if granted { Net::Host } else { Net::None }),
            None if table.has("net") => match table.text("net").as_deref() {
                Some("loopback") => Some(Net::Loopback),
                _ => {
                    table.error("net", "`net` must be true, false or \"loopback\"");
                    None
                }
            },
            None => None,
        };
        Restrictions {
            profile: table.choice("profile", &Profile::NAMES),
            read,
            write,
            net,
            gpu: table.boolean("gpu"),
            jit: table.boolean("jit"),
            allow_unsandboxed: None,
            allow_degraded: None,
        }
    }

    /// Changes when any of it does.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        format!("{self:?}").hash(&mut hasher);
        hasher.finish()
    }

    /// Takes away what is not allowed, and notes it.
    pub fn apply(&self, sandbox: &mut Sandbox) {
        sandbox.profile = self.profile.unwrap_or(sandbox.profile);
        sandbox.allow_unsandboxed = self.allow_unsandboxed.unwrap_or(sandbox.allow_unsandboxed);
        sandbox.allow_degraded = self.allow_degraded.unwrap_or(sandbox.allow_degraded);
        sandbox.allowed.read.extend(self.read.clone());
        sandbox.allowed.write.extend(self.write.clone());
        let denied = &mut sandbox.denied;
        let kinds =
            [("read", &self.read, &mut sandbox.read), ("write", &self.write, &mut sandbox.write)];
        for (kind, allowed, requested) in kinds {
            let Some(allowed) = allowed else { continue };
            requested.retain(|path| {
                let fine = allowed.iter().any(|place| path.starts_with(place));
                if !fine {
                    denied.push(format!("fs.{kind} {}", path.display()));
                }
                fine
            });
        }
        if let Some(net) = self.net
            && sandbox.net > net
        {
            denied.push(format!(
                "net {}",
                if sandbox.net == Net::Host { "true" } else { "loopback" }
            ));
            sandbox.net = net;
        }
        for (name, allowed, granted) in
            [("gpu", self.gpu, &mut sandbox.gpu), ("jit", self.jit, &mut sandbox.jit)]
        {
            if allowed == Some(false) && *granted {
                denied.push(name.to_owned());
                *granted = false;
            }
        }
    }
}

/// Absolute paths of a list; those that nobody can grant are errors.
fn paths(table: &Table<'_>, key: &'static str, directory: Option<&Path>) -> Option<Vec<PathBuf>> {
    let texts = table.texts(key)?;
    let mut paths = Vec::new();
    for text in texts {
        let path = match directory {
            Some(directory) => directory.join(&text),
            None => PathBuf::from(&text),
        };
        match refusal(&path, directory.is_none()) {
            Some(why) => table.error(key, format!("`fs.{key}` entry {text:?} {why}")),
            None => paths.push(path.components().collect()),
        }
    }
    Some(paths)
}

/// Why a path cannot stand in a list. The operator's lists are only compared
/// with, so `/` is fine there.
fn refusal(path: &Path, operator: bool) -> Option<&'static str> {
    let kernel = ["/proc", "/sys", "/dev"];
    if !path.is_absolute() {
        Some("must be an absolute path")
    } else if path.components().any(|part| part == Component::ParentDir) {
        Some("must not contain `..`")
    } else if operator {
        None
    } else if path == Path::new("/") {
        Some("cannot be granted: name the folders that are needed")
    } else if kernel.iter().any(|place| path.starts_with(place)) {
        Some("cannot be granted: it is the kernel's")
    } else {
        None
    }
}
