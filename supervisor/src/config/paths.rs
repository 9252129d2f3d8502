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
    beside("stockade-worker").unwrap_or_else(|| PathBuf::from("/usr/lib/stockade/stockade-worker"))
}

/// The first `python3` of the usual folders.
pub(super) fn default_python() -> PathBuf {
    ["/usr/local/bin/python3", "/usr/bin/python3"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/usr/bin/python3"))
}

/// The host of shared libraries beside this program, else where packages put it.
pub(super) fn default_library_host() -> PathBuf {
    beside("stockade-library")
        .unwrap_or_else(|| PathBuf::from("/usr/lib/stockade/stockade-library"))
}

/// The host of remote plugins beside this program, else where packages put it.
pub(super) fn default_remote_host() -> PathBuf {
    beside("stockade-remote").unwrap_or_else(|| PathBuf::from("/usr/lib/stockade/stockade-remote"))
}

/// The folder `python` beside this program, else where packages put it.
pub(super) fn default_python_host() -> PathBuf {
    beside("python").unwrap_or_else(|| PathBuf::from("/usr/lib/stockade/python"))
}

/// Something that was built together with this program.
fn beside(name: &str) -> Option<PathBuf> {
    let directory = std::env::current_exe().ok()?.parent()?.to_owned();
    // Test binaries live one folder deeper.
    [directory.join(name), directory.join("..").join(name)].into_iter().find(|path| path.exists())
}
