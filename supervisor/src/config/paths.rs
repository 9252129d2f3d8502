//! Default places: system folders for root, XDG folders for everybody else.

use std::path::{Path, PathBuf};

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| PathBuf::from("/"), PathBuf::from)
}

fn xdg(variable: &str, under_home: &str) -> PathBuf {
    std::env::var_os(variable)
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .unwrap_or_else(|| home().join(under_home))
}

/// `/etc/stockade/stockade.toml`, or the user's.
pub fn default_config_file() -> PathBuf {
    if root() {
        PathBuf::from("/etc/stockade/stockade.toml")
    } else {
        xdg("XDG_CONFIG_HOME", ".config").join("stockade/stockade.toml")
    }
}

/// `/var/lib/stockade`, or the user's.
pub(super) fn default_state_dir() -> PathBuf {
    if root() {
        PathBuf::from("/var/lib/stockade")
    } else {
        xdg("XDG_STATE_HOME", ".local/state").join("stockade")
    }
}

/// The folders that are searched when none is named.
pub(super) fn default_plugin_dirs() -> Vec<PathBuf> {
    if root() {
        vec!["/var/lib/stockade/plugins".into(), "/usr/lib/stockade/plugins".into()]
    } else {
        vec![xdg("XDG_DATA_HOME", ".local/share").join("stockade/plugins")]
    }
}

/// `/run/stockade/stockade.sock`, or the user's.
pub fn default_socket() -> PathBuf {
    if root() {
        return PathBuf::from("/run/stockade/stockade.sock");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(runtime) if Path::new(&runtime).is_absolute() => {
            PathBuf::from(runtime).join("stockade/stockade.sock")
        }
        _ => default_state_dir().join("stockade.sock"),
    }
}

/// The launcher beside this program, else where packages put it.
pub(super) fn default_worker() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|exe| {
        let directory = exe.parent()?.to_owned();
        // Test binaries live one folder deeper.
        [directory.join("stockade-worker"), directory.join("../stockade-worker")]
            .into_iter()
            .find(|path| path.exists())
    });
    beside.unwrap_or_else(|| PathBuf::from("/usr/lib/stockade/stockade-worker"))
}
