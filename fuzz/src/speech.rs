//! HTTP/2 as the input wants it: messages with their lengths, without, with wrong ones;
//! ends of every kind.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{Reason, SendStream};
use http::{HeaderMap, Response};

use crate::input::Input;

/// A message with its flag and its length before it, most of the time the right ones.
pub fn framed(message: &[u8], input: &mut Input<'_>) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    let (flag, length) = match input.byte() {
        0 => (1, message.len() as u32),
        1 => (input.byte(), message.len() as u32),
        2 => (0, input.bound() as u32),
        3 => (0, u32::MAX - u32::from(input.byte())),
        _ => (0, message.len() as u32),
    };
    frame.put_u8(flag);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

/// The head of an answer that gRPC understands.
pub fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).expect("a head")
}

/// Ends a stream: with a status, without one, by a reset, not at all.
pub fn end(mut stream: SendStream<Bytes>, input: &mut Input<'_>) {
    let mut trailers = HeaderMap::new();
    match input.byte() {
        0 => stream.send_reset(Reason::from(u32::from(input.byte()))),
        1 => drop(stream.send_data(Bytes::new(), true)),
        2 => {
            let text = input.text();
            for (name, value) in [("grpc-status", "13"), ("grpc-message", text.as_str())] {
                if let Ok(value) = value.parse() {
                    trailers.insert(name, value);
                }
            }
            drop(stream.send_trailers(trailers));
        }
        3 => drop(stream),
        _ => {
            trailers.insert("grpc-status", "0".parse().expect("a number"));
            drop(stream.send_trailers(trailers));
        }
    }
}
