//! The one table from outcomes to gRPC and HTTP statuses.

use std::{collections::HashMap, time::Duration};

use axum::http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    calls::{CallError, Outcome},
    capacity::{Exhausted, limits},
};

/// After which who was refused for want of room may ask again.
const SOON: Duration = Duration::from_secs(1);

/// HTTP status of a call.
pub(super) fn http(result: &Result<crate::Success, CallError>) -> StatusCode {
    match result {
        Ok(_) => StatusCode::OK,
        Err(error) => table(error).0,
    }
}

/// The client gave up (nginx's number; there is no standard one).
const CLIENT_CLOSED: u16 = 499;

fn table(error: &CallError) -> (StatusCode, Code) {
    let status = |code: u16| StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY);
    match error {
        CallError::PluginNotFound(_) | CallError::ToolNotFound { .. } => {
            (StatusCode::NOT_FOUND, Code::NotFound)
        }
        CallError::InvalidArguments(_) => (StatusCode::UNPROCESSABLE_ENTITY, Code::InvalidArgument),
        CallError::PluginUnavailable { .. } => (StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable),
        CallError::QueueFull(_) => (StatusCode::TOO_MANY_REQUESTS, Code::ResourceExhausted),
        CallError::Overloaded(_) => (StatusCode::SERVICE_UNAVAILABLE, Code::ResourceExhausted),
        CallError::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, Code::DeadlineExceeded),
        CallError::MemoryLimitExceeded(_) | CallError::WorkerCrashed(_) => {
            (StatusCode::BAD_GATEWAY, Code::Aborted)
        }
        CallError::InvalidResult(_) => (StatusCode::BAD_GATEWAY, Code::Internal),
        CallError::Cancelled => (status(CLIENT_CLOSED), Code::Cancelled),
        CallError::PermissionDenied(_) => (StatusCode::FORBIDDEN, Code::PermissionDenied),
        CallError::CallCycle(_) => (StatusCode::LOOP_DETECTED, Code::FailedPrecondition),
        // An SDK's word about arguments that only the tool's own types refuse.
        CallError::Raised { .. } if error.error_type() == "InvalidArguments" => {
            (StatusCode::UNPROCESSABLE_ENTITY, Code::InvalidArgument)
        }
        CallError::Raised { .. } => (StatusCode::INTERNAL_SERVER_ERROR, Code::Internal),
        CallError::PayloadTooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, Code::ResourceExhausted),
    }
}

/// gRPC status of a failed call, with google.rpc details.
pub(super) fn grpc(outcome: &Outcome, error: &CallError) -> Status {
    let mut details = ErrorDetails::new();
    let mut metadata = vec![
        ("plugin", outcome.plugin.to_string()),
        ("tool", outcome.tool.to_string()),
        ("delivered", outcome.delivered.to_string()),
        ("call_id", outcome.call_id.to_string()),
        ("generation", outcome.generation.to_string()),
        ("duration_ms", format!("{:.3}", outcome.duration.as_secs_f64() * 1000.0)),
    ];
    metadata.extend(error.cause().map(|cause| ("cause", cause.code.to_string())));
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    details.set_error_info(error.error_type(), "stockade", metadata);
    if let Some(wait) = error.retry_after() {
        details.set_retry_info(Some(wait));
    }
    // In the details, and as the violation.
    let copies = 1 + usize::from(matches!(error, CallError::InvalidArguments(_)));
    let text = fitting(error.to_string(), copies);
    if let CallError::InvalidArguments(message) = error {
        details.add_bad_request_violation("args", limits::cut(message, text.len()));
    }
    Status::with_error_details(table(error).1, text, details)
}

/// What has no room now and may have it soon.
pub(super) fn overloaded(why: impl ToString) -> Status {
    let mut details = ErrorDetails::with_retry_info(Some(SOON));
    details.set_error_info("Overloaded", "stockade", HashMap::new());
    exhausted(&why.to_string(), details)
}

/// What never has room.
pub(super) fn too_large(why: impl ToString) -> Status {
    let details = ErrorDetails::with_error_info("PayloadTooLarge", "stockade", HashMap::new());
    exhausted(&why.to_string(), details)
}

/// What a budget refuses, for now or for ever.
pub(super) fn of_room(text: impl ToString, why: Exhausted) -> Status {
    match why {
        Exhausted::Never { .. } => too_large(text),
        Exhausted::Now { .. } => overloaded(text),
    }
}

fn exhausted(why: &str, details: ErrorDetails) -> Status {
    Status::with_error_details(Code::ResourceExhausted, fitting(why.to_owned(), 0), details)
}

/// As much of a text as a status may have. Clients take 8 KiB of metadata; of what has more
/// they tell their callers that it was too much, and nothing else.
pub(super) fn fitting(text: String, copies: usize) -> String {
    let mut most = text.len();
    let mut fits = text.clone();
    while encoded(&fits, copies) > limits::STATUS_TEXT {
        most = most * 3 / 4;
        fits = limits::cut(&text, most);
    }
    fits
}

/// Bytes of a text in a status: as its message most bytes but letters and digits become
/// three, and its copies in the details are base64.
fn encoded(text: &str, copies: usize) -> usize {
    let plain = text.bytes().filter(u8::is_ascii_alphanumeric).count();
    plain + 3 * (text.len() - plain) + copies * text.len().div_ceil(3) * 4
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::{Cause, CauseCode, State};

    #[test]
    fn a_text_is_cut_to_what_clients_take() {
        for text in ["x".repeat(2500), "some words of an error".to_owned()] {
            assert_eq!(fitting(text.clone(), 1), text);
        }
        for text in ["x".repeat(4000), "\u{e9}".repeat(2000), " ".repeat(100_000)] {
            for copies in [1, 2] {
                let fits = fitting(text.clone(), copies);
                assert!((700..3000).contains(&fits.len()), "{}", fits.len());
                assert!(encoded(&fits, copies) <= limits::STATUS_TEXT);
            }
        }
    }

    #[test]
    fn the_table_is_the_documented_one() {
        let cause = || Cause::new(CauseCode::Crash, "x");
        let x = || "x".to_owned();
        let unavailable = CallError::PluginUnavailable {
            state: State::Failed,
            reason: x(),
            retry_after: Some(Duration::from_secs(1)),
        };
        let rows = [
            (CallError::PluginNotFound(x()), 404, Code::NotFound, "PluginNotFound"),
            (
                CallError::ToolNotFound { tool: x(), plugin: x(), available: x() },
                404,
                Code::NotFound,
                "ToolNotFound",
            ),
            (CallError::InvalidArguments(x()), 422, Code::InvalidArgument, "InvalidArguments"),
            (unavailable, 503, Code::Unavailable, "PluginUnavailable"),
            (CallError::QueueFull(x()), 429, Code::ResourceExhausted, "QueueFull"),
            (CallError::Overloaded(x()), 503, Code::ResourceExhausted, "Overloaded"),
            (
                CallError::Timeout { message: x(), cause: None },
                504,
                Code::DeadlineExceeded,
                "TimeoutError",
            ),
            (CallError::MemoryLimitExceeded(cause()), 502, Code::Aborted, "MemoryLimitExceeded"),
            (CallError::WorkerCrashed(cause()), 502, Code::Aborted, "WorkerCrashed"),
            (CallError::InvalidResult(x()), 502, Code::Internal, "InvalidResult"),
            (CallError::Cancelled, 499, Code::Cancelled, "Cancelled"),
            (
                CallError::Raised { kind: "ValueError".into(), message: x() },
                500,
                Code::Internal,
                "ValueError",
            ),
            (CallError::PermissionDenied(x()), 403, Code::PermissionDenied, "PermissionDenied"),
            (CallError::CallCycle(x()), 508, Code::FailedPrecondition, "CallCycle"),
            (CallError::PayloadTooLarge(x()), 413, Code::ResourceExhausted, "PayloadTooLarge"),
        ];
        for (error, http, grpc, kind) in rows {
            assert_eq!((table(&error).0.as_u16(), table(&error).1), (http, grpc), "{kind}");
            assert_eq!(error.error_type(), kind);
        }
    }
}
