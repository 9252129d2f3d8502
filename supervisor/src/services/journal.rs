//! A plugin's log lines and its own metrics, by its channel.

use std::{collections::BTreeMap, fmt::Write as _};

use stockade_proto::host::{self as wire, OnDenied, record_request::Kind};
use tonic::{Response, Status};

use super::channel::{Channel, Reply};
use crate::{
    capacity::limits,
    plugin::{SeriesKind, Stream, Unrecorded},
};

/// Bytes of a line.
const LONGEST: usize = limits::LOG_LINE;

impl Channel {
    pub(super) fn write_log(&self, request: wire::LogRequest) -> Reply<wire::LogResponse> {
        let wire::LogRequest { scope, level, message, fields } = request;
        let granted = self.ask_or("log.emit", &["log:emit"], scope, OnDenied::Silent)?;
        if granted.is_none() {
            return Ok(Response::new(wire::LogResponse { denied: true }));
        }
        let level = match level.as_str() {
            "debug" => "debug",
            "warning" | "warn" => "warning",
            "error" => "error",
            _ => "info",
        };
        let fields: BTreeMap<String, String> = fields.into_iter().collect();
        let text = limits::cut(&with_fields(&message, &fields), LONGEST);
        let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.caller.logs.push(self.caller.generation, Stream::Log, Some(level), &text);
        Ok(Response::new(wire::LogResponse { denied: false }))
    }

    pub(super) fn record_metric(
        &self,
        request: wire::RecordRequest,
    ) -> Reply<wire::RecordResponse> {
        self.within(&self.requests, "requests")?;
        let kind = match request.kind() {
            Kind::Counter => SeriesKind::Counter,
            Kind::Gauge => SeriesKind::Gauge,
            Kind::Histogram => SeriesKind::Histogram,
            Kind::Unspecified => return Err(Status::invalid_argument("the metric has no kind")),
        };
        let fine = word(&request.name)
            && request.labels.len() <= 8
            && request.labels.iter().all(|(key, value)| word(key) && value.len() <= 128);
        if !fine || !request.value.is_finite() {
            return Err(Status::invalid_argument(
                "a metric has a name and up to 8 labels of 1 to 64 letters, digits and `_`, values \
                 of labels have at most 128 bytes, and the value is a finite number",
            ));
        }
        if kind == SeriesKind::Counter && request.value < 0.0 {
            return Err(Status::invalid_argument("a counter does not go down"));
        }
        let labels = request.labels.into_iter().collect();
        let most = self.caller.manifest.quota.series;
        let recorded = self.caller.metrics.record(kind, &request.name, labels, request.value, most);
        recorded.map_err(|why| {
            let text = format!("Plugin '{}': {why}", self.name);
            match why {
                Unrecorded::TooMany(_) => {
                    self.host.inner.permits.over_quota(&self.name);
                    Status::resource_exhausted(text)
                }
                Unrecorded::OtherKind(_) => Status::invalid_argument(text),
            }
        })?;
        Ok(Response::new(wire::RecordResponse {}))
    }
}

/// A line's text. Quoting makes a value several times longer, so no more is quoted than a
/// line can have: what would be cut out of its middle is left out before.
fn with_fields(message: &str, fields: &BTreeMap<String, String>) -> String {
    let mut text = message.to_owned();
    for (key, value) in fields {
        if text.len() > message.len() + 2 * LONGEST {
            text.push_str(" …");
            break;
        }
        let _ = write!(text, " {}={:?}", limits::cut(key, LONGEST), limits::cut(value, LONGEST));
    }
    text
}

/// A name of a metric or a label.
fn word(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !text.starts_with(|c: char| c.is_ascii_digit())
}
