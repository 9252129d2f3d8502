//! What came of a call, counted for its plugin.

use std::time::Duration;

use stockade_proto::worker::invoke::Kind;

use super::{CallError, Success};
use crate::plugin::{Handle, MetricKind};

/// Every outcome of a delivered call is counted, once. Events are counted where they
/// are sent from; configuration and providers have no counts.
pub(super) fn account(
    handle: &Handle,
    kind: Kind,
    tool: &str,
    result: &Result<Success, CallError>,
    duration: Duration,
) {
    let (metric, word) = match kind {
        Kind::Tool => (MetricKind::Request, "tool"),
        Kind::Condition => (MetricKind::Condition, "condition"),
        Kind::Effect => (MetricKind::Effect, "effect"),
        Kind::SimulationConfig | Kind::Events | Kind::Provider => return,
    };
    let failure = result.as_ref().err().filter(|error| error.counts());
    let failure =
        failure.map(|error| (error.error_type(), error.to_string(), format!("{word} {tool}")));
    handle.metrics().count(metric, duration, failure);
    if kind != Kind::Tool {
        return;
    }
    match result {
        Ok(_) => handle.counters().count_success(),
        Err(error) if error.counts() => handle.counters().count_error(),
        Err(_) => {}
    }
    handle.recent().add(duration);
}
