//! From evidence to cause: what the kernel, our own records and the plugin's
//! last words say about one death.

use std::time::Duration;

use super::cause::{Cause, CauseCode, signal_name};

/// How the main process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// With this code.
    Code(i32),
    /// By this signal.
    Signal {
        /// Its number.
        signal: i32,
        /// The kernel wrote a core.
        core: bool,
    },
}

impl ExitStatus {
    /// From the raw wait status.
    pub fn from_wait(status: i32) -> Self {
        match status & 0x7f {
            0 => ExitStatus::Code((status >> 8) & 0xff),
            signal => ExitStatus::Signal { signal, core: status & 0x80 != 0 },
        }
    }

    /// The exit code, if it exited.
    pub fn code(self) -> Option<i32> {
        match self {
            ExitStatus::Code(code) => Some(code),
            ExitStatus::Signal { .. } => None,
        }
    }

    /// The signal, if one killed it.
    pub fn signal(self) -> Option<i32> {
        match self {
            ExitStatus::Code(_) => None,
            ExitStatus::Signal { signal, .. } => Some(signal),
        }
    }
}

/// What the kernel's counters say about a SIGKILL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KillFacts {
    /// The plugin's own cgroup counted an OOM.
    pub own_oom: bool,
    /// The machine (or a parent limit) counted an OOM kill just now.
    pub host_oom: bool,
    /// It had used up its RLIMIT_CPU.
    pub cpu_spent: bool,
}

/// Everything known about one death.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// How it ended.
    pub status: ExitStatus,
    /// Our own recorded intent to kill it.
    pub intent: Option<Cause>,
    /// It had been asked to end.
    pub asked: bool,
    /// From the spawn.
    pub up: Duration,
    /// It had answered Hello.
    pub greeted: bool,
    /// The fatal signal that its handler announced.
    pub notice_signal: Option<i32>,
    /// The blocked system call of a SIGSYS.
    pub syscall: Option<String>,
    /// The tool that ran on the crashed thread, or the only one in flight.
    pub tool: Option<String>,
    /// Counters.
    pub kill: KillFacts,
    /// Last lines of standard error.
    pub stderr: String,
    /// Name and value of the memory limit that was set (`limits.data = 4GiB`).
    pub memory_limit: Option<String>,
    /// `limits.cpu_time`, as written.
    pub cpu_limit: Option<String>,
    /// `limits.file_size`, as written.
    pub file_size_limit: Option<String>,
    /// Memory cap and peak, as written.
    pub memory: (String, String),
    /// Where the core is, or how to get one.
    pub core: String,
    /// Path of the program.
    pub program: String,
}

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
const SIGXCPU: i32 = 24;
const SIGXFSZ: i32 = 25;
const SIGSYS: i32 = 31;
/// ILL, TRAP, ABRT, BUS, FPE, SEGV
const CRASHES: [i32; 6] = [4, 5, 6, 7, 8, 11];

/// Words of runtimes that could not allocate.
const OUT_OF_MEMORY: [&str; 5] = [
    "memory allocation of",
    "std::bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
    "failed to spawn thread",
];

/// The cause of a death. First match wins; see docs/lifecycle.md.
pub fn infer(evidence: &Evidence) -> Cause {
    // A kill of ours, or an end that we asked for. Anything else it did by
    // itself, even if our kill was on its way.
    if let Some(intent) = &evidence.intent {
        let ours = match evidence.status {
            ExitStatus::Signal { signal: SIGKILL, .. } | ExitStatus::Code(0) => true,
            ExitStatus::Signal { signal: SIGTERM, .. } | ExitStatus::Code(_) => evidence.asked,
            ExitStatus::Signal { .. } => false,
        };
        if ours {
            return intent.clone();
        }
    }
    match evidence.status {
        ExitStatus::Code(code) => exited(evidence, code),
        ExitStatus::Signal { signal, core } => signalled(evidence, signal, core),
    }
}

fn exited(evidence: &Evidence, code: i32) -> Cause {
    let up = up(evidence.up);
    if code == 127 && !evidence.greeted && evidence.stderr.contains("shared librar") {
        let program = &evidence.program;
        let reason = format!(
            "Cannot execute {program}: missing library. {} Install the library.",
            last_line(&evidence.stderr)
        );
        return Cause::new(CauseCode::ExecFailed, reason);
    }
    if let Some(cause) = out_of_memory(evidence) {
        return cause;
    }
    if code == 0 {
        let reason = format!(
            "Exited 0 without being asked after {up}. Plugins must serve until told to stop."
        );
        return Cause::new(CauseCode::CleanExit, reason);
    }
    let reason = format!("Exited {code} after {up}.{}", tail(&evidence.stderr));
    Cause::new(CauseCode::ExitCode, reason)
}

fn signalled(evidence: &Evidence, signal: i32, core: bool) -> Cause {
    match signal {
        SIGKILL => killed(evidence),
        SIGXCPU => cpu_limit(evidence),
        SIGXFSZ => {
            let limit = evidence.file_size_limit.as_deref().unwrap_or("of the machine");
            let reason = format!("Hit limits.file_size = {limit}. Raise it or write less.");
            Cause::new(CauseCode::FileSizeLimit, reason)
        }
        SIGSYS => {
            let call = evidence.syscall.as_deref().unwrap_or("unknown");
            let reason = format!(
                "Blocked system call {call} (SIGSYS). Adjust the sandbox profile or grants."
            );
            Cause::new(CauseCode::Sandbox, reason)
        }
        _ if CRASHES.contains(&signal) => crashed(evidence, signal, core),
        _ => foreign(signal),
    }
}

/// SIGKILL, in the order of what can be known.
fn killed(evidence: &Evidence) -> Cause {
    if evidence.kill.own_oom {
        let (cap, peak) = &evidence.memory;
        return Cause::new(CauseCode::OomOwn, oom_reason(cap, peak, "the kernel"));
    }
    if evidence.kill.host_oom {
        let reason = "Killed for memory although under its own cap: the machine or a parent \
                      limit ran out. Free memory or lower limits.memory of what runs here.";
        return Cause::new(CauseCode::OomHost, reason);
    }
    if evidence.kill.cpu_spent {
        return cpu_limit(evidence);
    }
    foreign(SIGKILL)
}

/// The sentence of `oom_own`, shared with the memory guard.
pub fn oom_reason(cap: &str, peak: &str, stopped_by: &str) -> String {
    format!(
        "Exceeded memory = {cap} (peak {peak}, stopped by {stopped_by}). Raise limits.memory or \
         reduce the batch size."
    )
}

fn cpu_limit(evidence: &Evidence) -> Cause {
    let limit = evidence.cpu_limit.as_deref().unwrap_or("of the machine");
    let reason = format!("Hit limits.cpu_time = {limit}. Raise it or compute less.");
    Cause::new(CauseCode::CpuLimit, reason)
}

fn foreign(signal: i32) -> Cause {
    let reason = format!(
        "Killed by {}, not sent by the supervisor. \
         Check operators and other agents on this machine.",
        signal_name(signal)
    );
    Cause::new(CauseCode::Signal, reason)
}

fn crashed(evidence: &Evidence, signal: i32, core: bool) -> Cause {
    if let Some(cause) = out_of_memory(evidence) {
        return cause;
    }
    // What the handler saw first is the crash; an abort may only follow it.
    let signal = evidence.notice_signal.unwrap_or(signal);
    Cause::new(CauseCode::Crash, crash_reason(evidence, signal, core))
}

/// The sentence of `crash`, also used when only the notice is known.
pub fn crash_reason(evidence: &Evidence, signal: i32, core: bool) -> String {
    let tool = evidence.tool.as_ref().map(|tool| format!(" in tool {tool}")).unwrap_or_default();
    let core = match core {
        true => evidence.core.clone(),
        false => "none; set limits.core to get one".to_owned(),
    };
    format!(
        "Crashed with {} after {}{tool}. Core: {core}.{}",
        signal_name(signal),
        up(evidence.up),
        tail(&evidence.stderr)
    )
}

fn out_of_memory(evidence: &Evidence) -> Option<Cause> {
    let limit = evidence.memory_limit.as_ref()?;
    OUT_OF_MEMORY.iter().any(|words| evidence.stderr.contains(words)).then(|| {
        let reason = format!(
            "Allocation failed under {limit}. Raise it or reduce the batch size.{}",
            tail(&evidence.stderr)
        );
        Cause::new(CauseCode::MemoryLimit, reason)
    })
}

fn tail(stderr: &str) -> String {
    match last_line(stderr) {
        "" => String::new(),
        line => format!(" Last stderr: {line}"),
    }
}

fn last_line(text: &str) -> &str {
    text.lines().rev().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

/// `3.2s`, `120ms`, `2h 5m`: short.
fn up(duration: Duration) -> String {
    let rounded = match duration.as_secs() {
        0 => Duration::from_millis(duration.as_millis() as u64),
        1..60 => Duration::from_millis(duration.as_millis() as u64 / 100 * 100),
        _ => Duration::from_secs(duration.as_secs()),
    };
    humantime::format_duration(rounded).to_string()
}
