//! A crash record: everything known about one death.

use serde::{Deserialize, Serialize};

/// One death, kept in the state directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CrashRecord {
    /// Ascending; given by the database.
    pub id: u64,
    /// Whose.
    pub plugin: String,
    /// Its manifest's version.
    pub version: String,
    /// Which process of the plugin.
    pub generation: u64,
    /// Its process id.
    pub pid: u32,
    /// RFC 3339.
    pub time: String,
    /// Code of the cause.
    pub cause: String,
    /// The sentence.
    pub reason: String,
    /// If it exited.
    pub exit_code: Option<i32>,
    /// If a signal ended it.
    pub signal: Option<String>,
    /// The kernel wrote a core.
    pub core_dumped: bool,
    /// Seconds from spawn to death.
    pub uptime_seconds: f64,
    /// Largest resident size of the main process, bytes.
    pub peak_memory_bytes: u64,
    /// Processor seconds of the main process.
    pub cpu_seconds: f64,
    /// Calls that it took with it.
    pub calls: Vec<InFlight>,
    /// The last progress a tool or Init reported.
    pub last_progress: String,
    /// At most 2 KiB.
    pub stderr_tail: String,
    /// Where it was, in the plugin's own language: what its handler printed at
    /// its death, else where its start or its last call failed.
    pub traceback: String,
    /// Raw return addresses of the fatal-signal notice, innermost first.
    pub backtrace: Vec<String>,
}

/// A call that was in flight.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InFlight {
    /// The id that clients know.
    pub call_id: String,
    /// Its tool.
    pub tool: String,
    /// First 16 hexadecimal digits of the sha256 of its input.
    pub input_digest: String,
    /// How long it had been running.
    pub running_ms: f64,
}
