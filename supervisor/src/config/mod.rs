//! `stockade.toml` → [`Config`]. Flag > environment > file > default, each
//! value with where it came from.

mod files;
mod layer;
mod load;
mod overlay;
mod paths;
mod raw;
mod tables;
mod tokens;

use std::{
    collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, path::PathBuf, time::Duration,
};

use crate::capacity::{Budget, limits};
use crate::manifest::{Ceilings, PermissionLists, Quota, RemoteRules, Restrictions};
pub use layer::{Layer, Setting};
pub use load::Source;
pub use overlay::Overlay;
pub use paths::{default_config_file, default_socket};

pub use tokens::{Role, Token, digest as token_digest, hex as token_hex};

/// The daemon's configuration, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folders that hold one directory per plugin.
    pub plugin_dirs: Vec<PathBuf>,
    /// State: counters, crash records, data directories of plugins.
    pub state_dir: PathBuf,
    /// gRPC and HTTP; None = the unix socket only.
    pub listen: Option<SocketAddr>,
    /// The unix socket; it also serves admin actions.
    pub socket: PathBuf,
    /// The launcher.
    pub worker: PathBuf,
    /// Host names that may stand in a Host header, besides loopback.
    pub allowed_hosts: Vec<String>,
    /// Development: verbose, colourful.
    pub dev: bool,
    /// Log filter (`info`, `stockade=debug`).
    pub log: String,
    /// Log lines as JSON.
    pub log_json: bool,
    /// Starts at once.
    pub max_starting: usize,
    /// From SIGTERM until the daemon kills what is left.
    pub shutdown_timeout: Duration,
    /// Largest request (arguments and attachments).
    pub max_request: usize,
    /// Largest result.
    pub max_result: usize,
    /// Bytes that are held for others: bodies, arguments, results.
    pub max_buffered: usize,
    /// Connections at once.
    pub max_connections: usize,
    /// Captured log lines kept per plugin.
    pub log_lines: usize,
    /// Crash records kept per plugin.
    pub crash_records: usize,
    /// Watch the plugin folders.
    pub watch: bool,
    /// Another NVML library than libnvidia-ml.so.1.
    pub nvml: Option<PathBuf>,
    /// The interpreter of Python plugins that bring none.
    pub python: PathBuf,
    /// The folder that holds the Python package `stockade`.
    pub python_host: PathBuf,
    /// The program that runs plugins which are shared libraries.
    pub library_host: PathBuf,
    /// The program that speaks to remote plugins.
    pub remote_host: PathBuf,
    /// Plugins that distributions of `python` advertise are plugins too.
    pub entry_points: bool,
    /// The port's certificate chain and key (PEM): it speaks TLS.
    pub tls_cert: Option<PathBuf>,
    /// The key of `tls_cert`.
    pub tls_key: Option<PathBuf>,
    /// Clients must show a certificate of this authority (PEM).
    pub tls_client_ca: Option<PathBuf>,
    /// Who may come in by the port; none = everybody on this machine may read
    /// and call.
    pub tokens: Vec<Token>,
    /// Plugins may ask for no sandbox at all (`profile = "none"`).
    pub allow_unsandboxed: bool,
    /// Plugins run with what there is of their sandbox.
    pub allow_degraded: bool,
    /// Users that plugins are given when the daemon is root.
    pub plugin_uids: RangeInclusive<u32>,
    /// What plugins may be granted (`[sandbox]`); one plugin's own table is
    /// applied after it.
    pub sandbox: Restrictions,
    /// Which permissions plugins may be granted (`[permissions]`).
    pub permissions: PermissionLists,
    /// What any manifest may ask for at most, and all plugins together (`[limits]`).
    pub ceilings: Ceilings,
    /// How much of the host each plugin may use (`[quota]`).
    pub quota: Quota,
    /// Which private addresses remote plugins may have (`[remote]`).
    pub remote: RemoteRules,
    /// Records of who changed what, kept per plugin.
    pub provenance_records: usize,
    /// What the operator lays over single plugins.
    pub plugins: BTreeMap<String, Overlay>,
    /// Where each value came from, for `stockade config show`.
    pub settings: Vec<Setting>,
    /// The files that were read.
    pub files: Vec<PathBuf>,
    /// How to read it all again; None for one made in code.
    pub source: Option<Source>,
}

impl Config {
    /// The defaults with these folders: for embedding and for tests.
    pub fn new(plugin_dir: impl Into<PathBuf>, state_dir: impl Into<PathBuf>) -> Self {
        let state_dir = state_dir.into();
        Config {
            plugin_dirs: vec![plugin_dir.into()],
            socket: state_dir.join("stockade.sock"),
            state_dir,
            listen: None,
            worker: paths::default_worker(),
            allowed_hosts: Vec::new(),
            dev: false,
            log: "info".into(),
            log_json: false,
            max_starting: 4,
            shutdown_timeout: Duration::from_secs(30),
            max_request: limits::MAX_REQUEST,
            max_result: limits::MAX_RESULT,
            max_buffered: Budget::usual(),
            max_connections: limits::CONNECTIONS,
            log_lines: limits::LOG_LINES,
            crash_records: 50,
            watch: true,
            nvml: None,
            python: paths::default_python(),
            python_host: paths::default_python_host(),
            library_host: paths::default_library_host(),
            entry_points: true,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
            tokens: Vec::new(),
            allow_unsandboxed: false,
            allow_degraded: false,
            plugin_uids: 70_000..=79_999,
            sandbox: Restrictions::default(),
            permissions: PermissionLists::default(),
            ceilings: Ceilings::default(),
            quota: Quota::default(),
            remote: RemoteRules::default(),
            provenance_records: 10_000,
            remote_host: paths::default_remote_host(),
            plugins: BTreeMap::new(),
            settings: Vec::new(),
            files: Vec::new(),
            source: None,
        }
    }
}
