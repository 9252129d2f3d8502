//! What can become of a call besides a result.

use std::time::Duration;

use crate::{
    capacity::Overloaded,
    lifecycle::{Cause, CauseCode, State},
};

/// A call that did not succeed. `Display` is the outcome's `error`.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CallError {
    /// There is no such plugin.
    #[error("Plugin {0} not found")]
    PluginNotFound(String),
    /// It is there and cannot take calls now.
    #[error("Plugin is {state}: {reason}")]
    PluginUnavailable {
        /// FAILED, UNAVAILABLE, or LOADED when it is stopped.
        state: State,
        /// Why.
        reason: String,
        /// When a retry may help; None = not by itself.
        retry_after: Option<Duration>,
    },
    /// It has no such tool.
    #[error("Tool {tool} not found in plugin {plugin} (available: {available})")]
    ToolNotFound {
        /// Asked for.
        tool: String,
        /// Of this plugin.
        plugin: String,
        /// What there is.
        available: String,
    },
    /// The arguments do not fit the tool's schema; the plugin has not seen them.
    #[error("{0}")]
    InvalidArguments(String),
    /// As many calls wait as may.
    #[error("{0}")]
    QueueFull(String),
    /// The daemon has as much to do, or holds as many bytes, as it may.
    #[error("{0}")]
    Overloaded(String),
    /// The deadline passed.
    #[error("{message}")]
    Timeout {
        /// Whose deadline, and what became of the process.
        message: String,
        /// Set when the process was killed for it.
        cause: Option<Cause>,
    },
    /// The caller gave up.
    #[error("The call was cancelled")]
    Cancelled,
    /// The process died for memory.
    #[error("{}", .0.reason)]
    MemoryLimitExceeded(Cause),
    /// The process died, or was killed, for another cause.
    #[error("{}", .0.reason)]
    WorkerCrashed(Cause),
    /// More bytes than allowed.
    #[error("{0}")]
    PayloadTooLarge(String),
    /// The tool's result is not JSON or not what its schema says.
    #[error("{0}")]
    InvalidResult(String),
    /// The plugin may not be called so.
    #[error("{0}")]
    PermissionDenied(String),
    /// The call would come back to a plugin that waits for it, or goes too deep.
    #[error("{0}")]
    CallCycle(String),
    /// The tool raised.
    #[error("{message}")]
    Raised {
        /// Class of the error.
        kind: String,
        /// Its message.
        message: String,
    },
}

impl From<Overloaded> for CallError {
    fn from(overloaded: Overloaded) -> Self {
        CallError::Overloaded(format!("Not now: {overloaded}."))
    }
}

impl CallError {
    /// The cause of a death, as the caller of a call in flight sees it.
    pub(super) fn of_death(cause: Cause) -> Self {
        match cause.code {
            CauseCode::OomOwn | CauseCode::OomHost | CauseCode::MemoryLimit => {
                CallError::MemoryLimitExceeded(cause)
            }
            _ => CallError::WorkerCrashed(cause),
        }
    }

    /// `error_type` of the outcome.
    pub fn error_type(&self) -> &str {
        match self {
            CallError::PluginNotFound(_) => "PluginNotFound",
            CallError::PluginUnavailable { .. } => "PluginUnavailable",
            CallError::ToolNotFound { .. } => "ToolNotFound",
            CallError::InvalidArguments(_) => "InvalidArguments",
            CallError::QueueFull(_) => "QueueFull",
            CallError::Overloaded(_) => "Overloaded",
            CallError::Timeout { .. } => "TimeoutError",
            CallError::Cancelled => "Cancelled",
            CallError::MemoryLimitExceeded(_) => "MemoryLimitExceeded",
            CallError::WorkerCrashed(_) => "WorkerCrashed",
            CallError::PayloadTooLarge(_) => "PayloadTooLarge",
            CallError::InvalidResult(_) => "InvalidResult",
            CallError::PermissionDenied(_) => "PermissionDenied",
            CallError::CallCycle(_) => "CallCycle",
            CallError::Raised { kind, .. } => kind,
        }
    }

    /// Why the process died, if it did.
    pub fn cause(&self) -> Option<&Cause> {
        match self {
            CallError::MemoryLimitExceeded(cause) | CallError::WorkerCrashed(cause) => Some(cause),
            CallError::Timeout { cause, .. } => cause.as_ref(),
            _ => None,
        }
    }

    /// When a retry may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            CallError::PluginUnavailable { retry_after, .. } => *retry_after,
            CallError::QueueFull(_) | CallError::Overloaded(_) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }

    /// It counts against the plugin.
    pub(super) fn counts(&self) -> bool {
        match self {
            CallError::Timeout { .. }
            | CallError::MemoryLimitExceeded(_)
            | CallError::WorkerCrashed(_)
            | CallError::InvalidResult(_)
            | CallError::Raised { .. } => true,
            CallError::PluginNotFound(_)
            | CallError::PluginUnavailable { .. }
            | CallError::ToolNotFound { .. }
            | CallError::InvalidArguments(_)
            | CallError::QueueFull(_)
            | CallError::Overloaded(_)
            | CallError::Cancelled
            | CallError::PermissionDenied(_)
            | CallError::CallCycle(_)
            | CallError::PayloadTooLarge(_) => false,
        }
    }
}
