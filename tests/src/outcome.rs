//! What came of a call, easy to assert on.

use serde_json::Value;
use stockade_proto::v1::CallOutcome;

/// An outcome with its result parsed.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub ok: bool,
    pub result: Value,
    pub error: String,
    pub error_type: String,
    pub cause: String,
    pub delivered: bool,
    pub generation: u64,
    pub items: Vec<Value>,
    pub progress: Vec<(f64, String)>,
    pub attachments: Vec<(String, Vec<u8>)>,
    pub retry_after_ms: u64,
}

impl Outcome {
    pub(crate) fn new(wire: CallOutcome, items: Vec<Value>, progress: Vec<(f64, String)>) -> Self {
        Outcome {
            ok: wire.ok,
            result: serde_json::from_slice(&wire.result).unwrap_or(Value::Null),
            error: wire.error,
            error_type: wire.error_type,
            cause: wire.cause,
            delivered: wire.delivered,
            generation: wire.generation,
            items,
            progress,
            attachments: wire
                .attachments
                .into_iter()
                .map(|blob| (blob.name, blob.data.to_vec()))
                .collect(),
            retry_after_ms: wire.retry_after_ms,
        }
    }

    /// The result of a call that must have worked.
    #[track_caller]
    pub fn unwrap(self) -> Value {
        assert!(self.ok, "the call failed: {self:?}");
        self.result
    }

    /// `(error_type, cause)` of a call that must have failed.
    #[track_caller]
    pub fn failed(&self) -> (&str, &str) {
        assert!(!self.ok, "the call worked: {self:?}");
        (&self.error_type, &self.cause)
    }
}
