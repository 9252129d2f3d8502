//! The states of a plugin: what users see ([`State`], [`Substate`]) and what
//! the machine knows ([`Phase`]).

use std::{fmt, time::Duration};

use super::cause::{CauseCode, Class};

/// The five names that stand on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Valid, no serving process.
    Loaded,
    /// Ready, no call in flight.
    Initialized,
    /// At least one call in flight.
    Running,
    /// Transient failure.
    Failed,
    /// Cannot run until something outside changes.
    Unavailable,
}

impl State {
    /// `LOADED`, …
    pub fn as_str(self) -> &'static str {
        match self {
            State::Loaded => "LOADED",
            State::Initialized => "INITIALIZED",
            State::Running => "RUNNING",
            State::Failed => "FAILED",
            State::Unavailable => "UNAVAILABLE",
        }
    }

    /// Counted as available by the list.
    pub fn available(self) -> bool {
        match self {
            State::Loaded | State::Initialized | State::Running => true,
            State::Failed | State::Unavailable => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The rest of the story.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are explained in docs/lifecycle.md")]
pub enum Substate {
    Starting,
    Queued,
    OnDemand,
    Stopping,
    Stopped,
    Disabled,
    Ready,
    Degraded,
    Draining,
    Dying,
    Killing,
    Backoff,
    Exhausted,
    Unkillable,
    PreflightFailed,
    InitRejected,
    GpuLost,
}

impl Substate {
    /// `STARTING`, …
    pub fn as_str(self) -> &'static str {
        match self {
            Substate::Starting => "STARTING",
            Substate::Queued => "QUEUED",
            Substate::OnDemand => "ON_DEMAND",
            Substate::Stopping => "STOPPING",
            Substate::Stopped => "STOPPED",
            Substate::Disabled => "DISABLED",
            Substate::Ready => "READY",
            Substate::Degraded => "DEGRADED",
            Substate::Draining => "DRAINING",
            Substate::Dying => "DYING",
            Substate::Killing => "KILLING",
            Substate::Backoff => "BACKOFF",
            Substate::Exhausted => "EXHAUSTED",
            Substate::Unkillable => "UNKILLABLE",
            Substate::PreflightFailed => "PREFLIGHT_FAILED",
            Substate::InitRejected => "INIT_REJECTED",
            Substate::GpuLost => "GPU_LOST",
        }
    }
}

impl fmt::Display for Substate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a plugin is UNAVAILABLE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailability {
    /// A check before the launch failed, or the program cannot be executed.
    Preflight,
    /// The plugin itself said that something is missing, or speaks another
    /// protocol.
    Rejected,
}

/// Where an instance is. Times are since the start of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// An operator stopped it.
    Stopped,
    /// The configuration or an operator disabled it.
    Disabled,
    /// Starts at the first call.
    OnDemand,
    /// The checks before a launch run.
    Checking,
    /// Waits for a start token.
    Queued,
    /// Launched, no answer to Hello yet.
    Handshake,
    /// Greeted, loading.
    Initializing,
    /// Takes calls.
    Serving,
    /// Finishes its calls, takes no new ones.
    Draining,
    /// Asked to end.
    Stopping,
    /// A notice of death came; the kernel still tears it down.
    Dying,
    /// Dead or being killed; its tree is not gone yet.
    Killing,
    /// Waits for the next restart.
    Backoff {
        /// When.
        until: Duration,
    },
    /// The restart budget is spent.
    Exhausted {
        /// The next slow retry, None = held.
        retry_at: Option<Duration>,
    },
    /// Survived SIGKILL.
    Unkillable,
    /// Something outside must change.
    Unavailable {
        /// What kind.
        kind: Unavailability,
        /// The checks are being repeated.
        checking: bool,
    },
    /// The plugin was removed; nothing is left.
    Gone,
}

impl Phase {
    /// What users see, given the cause of the last failure.
    pub fn visible(self, cause: Option<CauseCode>, degraded: bool) -> (State, Substate) {
        use {State as S, Substate as B};
        match self {
            Phase::Stopped | Phase::Gone => (S::Loaded, B::Stopped),
            Phase::Disabled => (S::Loaded, B::Disabled),
            Phase::OnDemand => (S::Loaded, B::OnDemand),
            Phase::Checking | Phase::Handshake | Phase::Initializing => (S::Loaded, B::Starting),
            Phase::Queued => (S::Loaded, B::Queued),
            Phase::Serving if degraded => (S::Initialized, B::Degraded),
            Phase::Serving => (S::Initialized, B::Ready),
            Phase::Draining => (S::Initialized, B::Draining),
            Phase::Stopping => (S::Loaded, B::Stopping),
            Phase::Dying => (S::Failed, B::Dying),
            Phase::Killing => match cause.map(CauseCode::class) {
                Some(Class::Unavailable) => (S::Unavailable, B::PreflightFailed),
                Some(Class::Failed) => (S::Failed, B::Killing),
                Some(Class::Wanted) | None => (S::Loaded, B::Stopping),
            },
            Phase::Backoff { .. } => (S::Failed, B::Backoff),
            Phase::Exhausted { .. } => (S::Failed, B::Exhausted),
            Phase::Unkillable => (S::Failed, B::Unkillable),
            Phase::Unavailable { kind: Unavailability::Preflight, .. } => {
                (S::Unavailable, B::PreflightFailed)
            }
            Phase::Unavailable { kind: Unavailability::Rejected, .. } => {
                (S::Unavailable, B::InitRejected)
            }
        }
    }
}
