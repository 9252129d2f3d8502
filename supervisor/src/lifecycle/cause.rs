//! Why a process ended or a plugin cannot run: a code, and the sentence an
//! operator can act on.

use std::fmt;

use stockade_proto::limits;

/// What a cause makes of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Transient: FAILED, restarted.
    Failed,
    /// Something outside must change: UNAVAILABLE.
    Unavailable,
    /// Wanted: LOADED.
    Wanted,
}

macro_rules! causes {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $class:ident;)*) => {
        /// The code of a cause, as it stands in JSON and on the wire.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CauseCode { $($(#[$doc])* $name,)* }

        impl CauseCode {
            /// Every code.
            pub const ALL: &[CauseCode] = &[$(CauseCode::$name),*];

            /// `crash`, `call_timeout`, …
            pub fn as_str(self) -> &'static str {
                match self { $(CauseCode::$name => $code,)* }
            }

            /// What it makes of the plugin.
            pub fn class(self) -> Class {
                match self { $(CauseCode::$name => Class::$class,)* }
            }
        }
    };
}

causes! {
    /// Exited 0 without being asked.
    CleanExit = "clean_exit", Failed;
    /// Exited with another code.
    ExitCode = "exit_code", Failed;
    /// Killed by a signal of somebody else.
    Signal = "signal", Failed;
    /// Crashed with a fatal signal.
    Crash = "crash", Failed;
    /// Exceeded its own memory cap.
    OomOwn = "oom_own", Failed;
    /// The machine ran out of memory.
    OomHost = "oom_host", Failed;
    /// An allocation failed under a limit.
    MemoryLimit = "memory_limit", Failed;
    /// RLIMIT_CPU.
    CpuLimit = "cpu_limit", Failed;
    /// RLIMIT_FSIZE.
    FileSizeLimit = "file_size_limit", Failed;
    /// More processes than allowed.
    ProcessLimit = "process_limit", Failed;
    /// A blocked system call.
    Sandbox = "sandbox", Unavailable;
    /// The program cannot be executed.
    ExecFailed = "exec_failed", Unavailable;
    /// The machine refused another process.
    SpawnResources = "spawn_resources", Failed;
    /// Not ready in time.
    StartupTimeout = "startup_timeout", Failed;
    /// The code could not be imported.
    ImportError = "import_error", Failed;
    /// The load hook raised.
    InitError = "init_error", Failed;
    /// Something that it needs is not there.
    DependencyMissing = "dependency_missing", Unavailable;
    /// No GPU that fits.
    GpuMissing = "gpu_missing", Unavailable;
    /// Sent what the protocol does not allow.
    ProtocolError = "protocol_error", Failed;
    /// No common protocol version.
    ProtocolVersion = "protocol_version", Unavailable;
    /// Did not answer pings.
    Watchdog = "watchdog", Failed;
    /// A call ran past its time-out.
    CallTimeout = "call_timeout", Failed;
    /// Tools raised too often.
    ToolErrors = "tool_errors", Failed;
    /// Ignored SIGTERM.
    StopTimeout = "stop_timeout", Wanted;
    /// Stopped by an operator.
    OperatorStop = "operator_stop", Wanted;
    /// Survives SIGKILL.
    Unkillable = "unkillable", Failed;
    /// The restart budget is spent.
    Exhausted = "exhausted", Failed;
    /// The manifest cannot be used.
    ManifestError = "manifest_error", Unavailable;
}

impl fmt::Display for CauseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A code and its sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// What it was.
    pub code: CauseCode,
    /// What happened and what to do about it.
    pub reason: String,
}

impl Cause {
    /// A cause with its sentence. What is in it of others' making is cut here.
    pub fn new(code: CauseCode, reason: impl Into<String>) -> Self {
        let mut reason = reason.into();
        limits::cut_to(&mut reason, limits::ERROR_TEXT);
        Cause { code, reason }
    }

    /// What it makes of the plugin.
    pub fn class(&self) -> Class {
        self.code.class()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// `SIGSEGV` for 11; `signal 42` for what has no name.
pub fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 32] = [
        "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV",
        "USR2", "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU",
        "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    match usize::try_from(signal).ok().and_then(|index| NAMES.get(index)) {
        Some(name) if !name.is_empty() => format!("SIG{name}"),
        _ => format!("signal {signal}"),
    }
}
