//! Which layers of the sandbox this machine has: found by having the launcher
//! try each of them, since some systems allow a namespace and then deny what is
//! done inside.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// A layer that does not hold here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// What the kernel said.
    pub what: String,
    /// How to get it.
    pub fix: String,
}

/// What the launcher found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// Another user for each plugin; None when the daemon is not root.
    pub users: Option<Result<(), Gap>>,
    /// A root, pids, a network of its own.
    pub namespaces: Result<(), Gap>,
    /// The kernel's ABI version.
    pub landlock: Result<u32, Gap>,
    /// System-call filter.
    pub seccomp: Result<(), Gap>,
}

/// Asks the launcher once, when somebody wants to know.
#[derive(Debug)]
pub struct LayerProbe {
    worker: PathBuf,
    uids: RangeInclusive<u32>,
    found: OnceLock<Layers>,
}

impl LayerProbe {
    /// Nothing is asked yet.
    pub fn new(worker: PathBuf, uids: RangeInclusive<u32>) -> Self {
        LayerProbe { worker, uids, found: OnceLock::new() }
    }

    /// The users that plugins may be given.
    pub fn uids(&self) -> RangeInclusive<u32> {
        self.uids.clone()
    }

    /// What this machine has. Blocks for some milliseconds the first time.
    pub fn layers(&self) -> &Layers {
        self.found.get_or_init(|| probe(&self.worker, *self.uids.start()))
    }
}

fn probe(worker: &Path, uid: u32) -> Layers {
    let root = rustix::process::geteuid().is_root();
    let output = Command::new(worker)
        .arg("--probe")
        .arg(uid.to_string())
        .env_clear()
        .stdin(Stdio::null())
        .output();
    let text = match output {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => {
            tracing::error!("cannot run the launcher {}: {error}", worker.display());
            String::new()
        }
    };
    let line = |name: &str| -> Result<u32, Gap> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let words: Vec<&str> = line.unwrap_or("failed probe 0").split_whitespace().collect();
        match words.as_slice() {
            ["ok", detail] => Ok(detail.parse().unwrap_or(0)),
            ["ok"] => Ok(0),
            [_, step, errno] => Err(gap(name, step, errno.parse().unwrap_or(0))),
            _ => Err(gap(name, "probe", 0)),
        }
    };
    Layers {
        users: root.then(|| line("users").map(drop)),
        namespaces: line("namespaces").map(drop),
        landlock: line("landlock"),
        seccomp: line("seccomp").map(drop),
    }
}

fn gap(layer: &str, step: &str, errno: i32) -> Gap {
    let what = match (step, errno) {
        ("probe", _) => "the launcher could not be asked".to_owned(),
        _ => format!("{step}: {}", std::io::Error::from_raw_os_error(errno)),
    };
    Gap { what, fix: fix(layer) }
}

fn sysctl(name: &str) -> Option<String> {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// How to get a layer, by what this machine has switched off.
fn fix(layer: &str) -> String {
    match layer {
        "users" => "give the unit CAP_SETUID and CAP_SETGID (CapabilityBoundingSet=), or set \
                    plugin_uids to users that exist in this user namespace"
            .into(),
        "namespaces" => namespaces_fix(),
        "landlock" => "use Linux 5.13 or later with CONFIG_SECURITY_LANDLOCK, and add landlock to \
                       the kernel's lsm= parameter"
            .into(),
        _ => {
            "use a kernel with CONFIG_SECCOMP_FILTER; in a container, do not forbid prctl(2)".into()
        }
    }
}

fn namespaces_fix() -> String {
    if rustix::process::geteuid().is_root() {
        return "give the daemon CAP_SYS_ADMIN (CapabilityBoundingSet=), remove \
                RestrictNamespaces= and ProtectProc= from the unit; in a container, run it with \
                --privileged or as a user on the host"
            .into();
    }
    if sysctl("kernel.unprivileged_userns_clone").as_deref() == Some("0") {
        return "run: sysctl -w kernel.unprivileged_userns_clone=1".into();
    }
    if sysctl("user.max_user_namespaces").as_deref() == Some("0") {
        return "run: sysctl -w user.max_user_namespaces=15000".into();
    }
    if sysctl("kernel.apparmor_restrict_unprivileged_userns").as_deref() == Some("1") {
        return "load an AppArmor profile with `userns,` for stockade-worker, or run: sysctl -w \
                kernel.apparmor_restrict_unprivileged_userns=0"
            .into();
    }
    "run the daemon as root under systemd, or outside of the container that forbids user \
     namespaces"
        .into()
}
