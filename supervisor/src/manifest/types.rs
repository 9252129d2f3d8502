//! A manifest that has been checked: all values present, all in range.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Serialize;

use super::{Permissions, Quota, Remote, Sandbox};
use crate::document::Problem;

/// Everything that is to be known about a plugin before it runs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Manifest {
    /// The plugin's name, `^[a-z][a-z0-9_-]{0,62}$`.
    pub name: String,
    /// Free text; None when the author gave none.
    pub version: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Free text.
    pub author: Option<String>,
    /// The plugin's directory, absolute.
    pub directory: PathBuf,
    /// The manifest file, absolute.
    pub file: PathBuf,
    /// What is to be run.
    pub run: Run,
    /// Arguments after the program itself.
    pub args: Vec<String>,
    /// Environment besides the fixed one.
    pub env: BTreeMap<String, String>,
    /// When it is started.
    pub activation: Activation,
    /// Calls in flight per process.
    pub concurrency: u32,
    /// Calls that may wait for a slot.
    pub queue: Queue,
    /// What must be there.
    pub requires: Requires,
    /// What it may use.
    pub limits: Limits,
    /// How long things may take.
    pub timeouts: Timeouts,
    /// What happens when it dies.
    pub restart: RestartPolicy,
    /// How it is confined and what it may see.
    pub sandbox: Sandbox,
    /// What it asked for of the host, and got.
    pub permissions: Permissions,
    /// How much of the host it may use; the operator's.
    pub quota: Quota,
    /// Problems that do not stop it.
    #[serde(serialize_with = "as_texts")]
    pub warnings: Vec<Problem>,
}

fn as_texts<S: serde::Serializer>(problems: &[Problem], s: S) -> Result<S::Ok, S::Error> {
    s.collect_seq(problems.iter().map(ToString::to_string))
}

impl Manifest {
    /// Where it runs: `local` or `remote`.
    pub fn kind(&self) -> &'static str {
        match self.run {
            Run::Remote(_) => "remote",
            Run::Binary(_) | Run::Python { .. } | Run::Library(_) => "local",
        }
    }

    /// The remote plugin that it is.
    pub fn remote(&self) -> Option<&Remote> {
        match &self.run {
            Run::Remote(remote) => Some(remote),
            _ => None,
        }
    }
}

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Run {
    /// A program that serves the inherited channel, relative to the directory.
    Binary(PathBuf),
    /// `module:Class`, hosted by a Python interpreter.
    Python {
        /// Module and class.
        target: String,
        /// Virtual environment, relative to the directory.
        venv: Option<PathBuf>,
        /// Interpreter, absolute; None = the virtual environment's, else the
        /// machine's.
        interpreter: Option<PathBuf>,
    },
    /// A shared library, hosted by the launcher.
    Library(PathBuf),
    /// A service somewhere else.
    Remote(Box<Remote>),
}

/// When a plugin is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// With the daemon.
    Eager,
    /// At the first call.
    OnDemand,
}

/// Calls that wait for a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Queue {
    /// How many.
    pub size: u32,
    /// How long each.
    pub timeout: Duration,
}

impl Default for Queue {
    fn default() -> Self {
        Queue { size: 64, timeout: Duration::from_secs(5) }
    }
}

/// What must be there before a plugin starts.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Requires {
    /// Python import names.
    pub packages: Vec<String>,
    /// Programs on the PATH.
    pub commands: Vec<String>,
    /// Files.
    pub models: Vec<Model>,
    /// GPUs.
    pub gpu: Option<GpuNeed>,
    /// Other plugins: they start before it and stop after it.
    pub plugins: Vec<String>,
}

/// A file that must exist, be readable and not empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Model {
    /// The author's name for it.
    pub name: String,
    /// As written; relative to the plugin's directory.
    pub path: PathBuf,
    /// Lower-case hex digest of the content.
    pub sha256: Option<String>,
}

/// GPUs that a plugin needs.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct GpuNeed {
    /// How many.
    pub count: u32,
    /// Memory of each in bytes, 0 = any.
    pub memory: u64,
    /// Compute capability of each at least, major and minor.
    pub capability: Option<(u32, u32)>,
}

/// Resource limits. Sizes in bytes; None = not limited.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Limits {
    /// Resident memory of the whole process tree.
    pub memory: u64,
    /// RLIMIT_DATA.
    pub data: Option<u64>,
    /// RLIMIT_AS.
    pub address_space: Option<u64>,
    /// RLIMIT_CPU, seconds of processor time.
    pub cpu_time: Option<u64>,
    /// RLIMIT_FSIZE.
    pub file_size: Option<u64>,
    /// RLIMIT_NOFILE.
    pub open_files: u64,
    /// Processes and threads of the tree.
    pub processes: u64,
    /// RLIMIT_CORE.
    pub core: u64,
    /// Processors, for instance 1.5.
    pub cpu: Option<f64>,
}

/// The defaults of the memory limit.
pub(super) const MEMORY: u64 = 1 << 30;
pub(super) const MEMORY_WITH_GPU: u64 = 8 << 30;

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: MEMORY,
            data: Some(4 * MEMORY),
            address_space: None,
            cpu_time: None,
            file_size: None,
            open_files: 1024,
            processes: 512,
            core: 0,
            cpu: None,
        }
    }
}

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Timeouts {
    /// From spawn to the answer to Hello.
    pub handshake: Duration,
    /// From Hello to ready; each progress report extends it.
    pub init: Duration,
    /// Of one call; the only deadline that kills.
    pub call: Duration,
    /// From the cancellation to the kill.
    pub cancel_grace: Duration,
    /// From the request to stop to the kill.
    pub stop: Duration,
    /// Between pings, and until a ping counts as missed.
    pub ping: Duration,
    /// Pings missed in a row that kill.
    pub ping_misses: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            handshake: Duration::from_secs(10),
            init: Duration::from_secs(60),
            call: Duration::from_secs(60),
            cancel_grace: Duration::from_secs(1),
            stop: Duration::from_secs(10),
            ping: Duration::from_secs(5),
            ping_misses: 3,
        }
    }
}

/// What a tool's error does to the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// It counts; `max_errors` in a row make it FAILED.
    Count,
    /// The first one makes it FAILED until restarted.
    Fail,
}

/// What happens once the restart budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Exhausted {
    /// One attempt every 15 minutes.
    SlowRetry,
    /// None, until an operator acts.
    Hold,
}

/// When and how often a plugin is restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RestartPolicy {
    /// The second restart waits about this long; it doubles from there.
    pub backoff_min: Duration,
    /// No restart waits longer.
    pub backoff_max: Duration,
    /// Deaths within `window` that are still restarted.
    pub max_deaths: u32,
    /// The sliding window.
    pub window: Duration,
    /// What happens then.
    pub exhausted: Exhausted,
    /// Between slow retries.
    pub slow_retry: Duration,
    /// What a tool's error does.
    pub on_error: OnError,
    /// Errors in a row that make it FAILED; 0 = never.
    pub max_errors: u32,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        RestartPolicy {
            backoff_min: Duration::from_secs(1),
            backoff_max: Duration::from_secs(60),
            max_deaths: 5,
            window: Duration::from_secs(600),
            exhausted: Exhausted::SlowRetry,
            slow_retry: Duration::from_secs(900),
            on_error: OnError::Count,
            max_errors: 5,
        }
    }
}

impl RestartPolicy {
    /// Of a service elsewhere: it is looked for as long as it takes.
    pub(super) fn remote() -> Self {
        RestartPolicy { max_deaths: 1_000_000, ..RestartPolicy::default() }
    }
}

/// A valid name made of any text: `My_OCR.v2` → `my_ocr-v2`.
pub(super) fn made_valid(text: &str) -> String {
    let mut name: String = text
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' })
        .take(60)
        .collect();
    if !valid_name(&name) {
        name.insert_str(0, "p-");
    }
    name
}

/// `^[a-z][a-z0-9_-]{0,62}$`
pub fn valid_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c))
}
