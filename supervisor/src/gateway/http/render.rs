//! Outcomes as bodies, written out piece by piece: nothing is assembled.

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use serde_json::json;

use super::inlined::Inlined;
use crate::{
    CallError, Outcome, Success,
    capacity::{Held, Place, limits},
};

/// A part of a body.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Piece {
    /// Sent as it is.
    Plain(Bytes),
    /// Sent with its attachments, on one line if this says so; and how long it is.
    Result(Inlined, bool, usize),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Piece::Plain(data) => data.len(),
            Piece::Result(_, _, length) => *length,
        }
    }

    /// What is sent next of it; true when that was the last.
    fn next(&mut self) -> (Bytes, bool) {
        match self {
            Piece::Plain(data) => {
                let part = data.split_to(data.len().min(limits::STEP));
                (part, data.is_empty())
            }
            Piece::Result(result, one_line, _) => {
                let (part, last) = result.next();
                // JSON has no line breaks within texts.
                let breaks = *one_line && part.iter().any(|byte| matches!(byte, b'\n' | b'\r'));
                let spaced = |byte: &u8| match byte {
                    b'\n' | b'\r' => b' ',
                    other => *other,
                };
                let part = match breaks {
                    false => part,
                    true => part.iter().map(spaced).collect::<Vec<u8>>().into(),
                };
                (part, last)
            }
        }
    }
}

/// A body of pieces. Between two steps others have their turn.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    list: VecDeque<Piece>,
    left: usize,
    /// Bytes sent since others had their turn.
    turn: usize,
    place: Place,
    held: Vec<Held>,
}

impl Pieces {
    pub(super) fn text(&mut self, text: impl Into<Bytes>) {
        self.push(Piece::Plain(text.into()));
    }

    pub(super) fn push(&mut self, piece: Piece) {
        if piece.len() > 0 {
            self.left += piece.len();
            self.list.push_back(piece);
        }
    }

    /// Keeps what the pieces take of the budget until they have been sent.
    pub(super) fn hold(&mut self, held: Held) {
        self.held.push(held);
    }

    pub(super) fn append(&mut self, mut other: Pieces) {
        self.left += other.left;
        self.list.append(&mut other.list);
        self.held.append(&mut other.held);
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        if self.turn >= limits::STEP {
            self.turn = 0;
            self.place.join(context, false);
        }
        ready!(self.place.poll_called(context));
        let Some(piece) = self.list.front_mut() else { return Poll::Ready(None) };
        let (part, last) = piece.next();
        if last {
            self.list.pop_front();
        }
        self.left -= part.len();
        self.turn += part.len();
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.list.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left as u64)
    }
}

/// The outcome as JSON: the result's own text, with base64 where an attachment stands.
pub(super) fn outcome(outcome: Outcome, one_line: bool) -> Pieces {
    let head = head(&outcome);
    let mut pieces = Pieces::default();
    pieces.text(match outcome.ok() {
        true => "{\"ok\":true,\"result\":",
        false => "{\"ok\":false,\"result\":",
    });
    match outcome.result {
        Ok(success) => pieces.append(inline(success, one_line)),
        Err(_) => pieces.text("null"),
    }
    pieces.text(format!(",{}", &head[1..]));
    pieces
}

/// Everything of an outcome but its result.
fn head(outcome: &Outcome) -> String {
    let error = outcome.result.as_ref().err();
    json!({
        "error": error.map(ToString::to_string),
        "error_type": error.map(CallError::error_type),
        "raised": matches!(error, Some(CallError::Raised { .. })),
        "plugin": &*outcome.plugin,
        "tool": &*outcome.tool,
        "duration_ms": outcome.duration.as_secs_f64() * 1000.0,
        "call_id": &*outcome.call_id,
        "generation": outcome.generation,
        "delivered": outcome.delivered,
        "cause": error.and_then(CallError::cause).map(|cause| cause.code.as_str()),
    })
    .to_string()
}

/// A result with its attachments as base64.
pub(super) fn inline(success: Success, one_line: bool) -> Pieces {
    let Success { result, attachments, held } = success;
    let result = Inlined::new(result, attachments);
    let length = result.len();
    let mut pieces = Pieces::default();
    pieces.push(Piece::Result(result, one_line, length));
    pieces.hold(held);
    pieces
}

/// What the name of a part cannot hold, and what stands for it (WHATWG).
pub(super) const ESCAPES: [(char, &str); 3] = [('"', "%22"), ('\r', "%0D"), ('\n', "%0A")];

/// `multipart/form-data`: the part `outcome` is JSON in which attachments stand
/// as `"attachment:NAME"`; each attachment follows as the part of its name. Returns
/// the boundary, too.
pub(super) fn parts(mut from: Outcome) -> (Pieces, String) {
    let attachments = match &mut from.result {
        Ok(success) => std::mem::take(&mut success.attachments),
        Err(_) => Vec::new(),
    };
    let boundary = format!("stockade-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let begin = |name: &str, kind: &str| {
        let name = ESCAPES.iter().fold(name.to_owned(), |name, (c, text)| name.replace(*c, text));
        format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\
             Content-Type: {kind}\r\n\r\n"
        )
    };
    let mut pieces = Pieces::default();
    pieces.text(begin("outcome", "application/json"));
    pieces.append(outcome(from, false));
    for blob in attachments {
        let plain = blob.content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let kind = match blob.content_type.as_str() {
            kind if plain && !kind.is_empty() => kind,
            _ => "application/octet-stream",
        };
        pieces.text(format!("\r\n{}", begin(&blob.name, kind)));
        pieces.push(Piece::Plain(blob.data));
    }
    pieces.text(format!("\r\n--{boundary}--\r\n"));
    (pieces, boundary)
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};

    use super::*;
    use crate::plugin::Attachment;

    fn all(mut pieces: Pieces) -> String {
        let said = pieces.left;
        let mut bytes = Vec::new();
        for piece in &mut pieces.list {
            loop {
                let (part, last) = piece.next();
                bytes.extend_from_slice(&part);
                if last {
                    break;
                }
            }
        }
        assert_eq!(bytes.len(), said, "the length is known before");
        String::from_utf8(bytes).unwrap()
    }

    fn success(result: &str, names: &[(&str, &str)]) -> Success {
        Success {
            result: Bytes::copy_from_slice(result.as_bytes()),
            attachments: names
                .iter()
                .map(|(name, data)| Attachment {
                    name: (*name).into(),
                    content_type: String::new(),
                    data: Bytes::copy_from_slice(data.as_bytes()),
                })
                .collect(),
            held: Held::default(),
        }
    }

    #[test]
    fn references_become_base64_and_nothing_else_does() {
        let result = r#"{"a":"attachment:b","attachment:b" : 1,"t":"attachment\u003ab","x":"say \"attachment:b\"","u":"attachment:c"}"#;
        let text = all(inline(success(result, &[("b", "hi!x")]), false));
        let wanted = r#"{"a":"aGkheA==","attachment:b" : 1,"t":"attachment\u003ab","x":"say \"attachment:b\"","u":"attachment:c"}"#;
        assert_eq!(text, wanted);
        let twice =
            all(inline(success(r#"["attachment:b", "attachment:b"]"#, &[("b", "x")]), false));
        assert_eq!(twice, r#"["eA==", "eA=="]"#);
        assert_eq!(all(inline(success("{\n\"a\":\r1}", &[]), true)), "{ \"a\": 1}");
    }

    #[test]
    fn what_is_large_goes_in_steps() {
        let data = "x".repeat(limits::STEP * 3 + 1);
        let large = success(r#""attachment:b""#, &[("b", &data)]);
        assert_eq!(all(inline(large, false)), format!("\"{}\"", STANDARD.encode(&data)));
    }
}
