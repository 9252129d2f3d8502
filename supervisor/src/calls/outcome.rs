//! What came of a call: the seeds' four fields and what clients need besides.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::CallError;
use crate::{capacity::Held, plugin::Attachment};

/// A result: JSON text and attachments. In the text an attachment stands as
/// `"attachment:NAME"`.
#[derive(Clone, Debug, PartialEq)]
pub struct Success {
    /// JSON text.
    pub result: Bytes,
    /// Bytes by name.
    pub attachments: Vec<Attachment>,
    /// What they take of the daemon's budget, until they have been written.
    pub held: Held,
}

/// What came of a call.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The result or the error.
    pub result: Result<Success, CallError>,
    /// Asked for.
    pub plugin: Arc<str>,
    /// Asked for.
    pub tool: Arc<str>,
    /// From the arrival of the call to its end.
    pub duration: Duration,
    /// The id that logs and crash records know; empty when it was not sent.
    pub call_id: Arc<str>,
    /// The process that had it; 0 when it was not sent.
    pub generation: u64,
    /// Did the plugin receive it? If not, a retry can do no harm.
    pub delivered: bool,
}

impl Outcome {
    /// Of a call that was refused before anything was done for it.
    pub(crate) fn refused(plugin: &str, tool: &str, error: CallError) -> Self {
        Outcome {
            result: Err(error),
            plugin: plugin.into(),
            tool: tool.into(),
            duration: Duration::ZERO,
            call_id: "".into(),
            generation: 0,
            delivered: false,
        }
    }

    /// True when there is a result.
    pub fn ok(&self) -> bool {
        self.result.is_ok()
    }

    /// The result as JSON; None when the call failed.
    pub fn json(&self) -> Option<serde_json::Value> {
        serde_json::from_slice(&self.result.as_ref().ok()?.result).ok()
    }
}
