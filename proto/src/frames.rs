//! gRPC messages as bodies without a copy of what is large in them: a message is written
//! into small pieces, and its long fields are sent as they are.
#![allow(unsafe_code)]

use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut, Bytes, BytesMut, buf::UninitSlice};
use http::HeaderMap;
use hyper::body::{Body, Frame};
use prost::Message;
use tonic::Status;

/// Fields that are longer are sent as they are.
const LONG: usize = 16 * 1024;

/// One encoded message with its head.
#[derive(Debug, Default)]
pub struct Pieces {
    done: VecDeque<Bytes>,
    last: BytesMut,
}

impl Pieces {
    /// Encodes a message.
    pub fn of(message: &impl Message) -> Self {
        let length = message.encoded_len();
        let mut pieces = Pieces::default();
        pieces.last.reserve(5 + length.min(LONG));
        pieces.last.put_u8(0);
        pieces.last.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        // It has room without end, which is all that can fail.
        let _ = message.encode(&mut pieces);
        pieces
    }

    fn into_list(mut self) -> VecDeque<Bytes> {
        if !self.last.is_empty() {
            self.done.push_back(self.last.freeze());
        }
        self.done
    }
}

// SAFETY: `chunk_mut` and `advance_mut` are those of the one buffer `last`, which upholds
// their contract: the bytes that are advanced over are those that its own `chunk_mut` has
// handed out. `put` only moves what is complete from it to the list.
unsafe impl BufMut for Pieces {
    fn remaining_mut(&self) -> usize {
        self.last.remaining_mut()
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        // SAFETY: the caller has initialised `count` bytes of `chunk_mut`, as above.
        unsafe { self.last.advance_mut(count) };
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        self.last.chunk_mut()
    }

    fn put<T: Buf>(&mut self, mut source: T) {
        let length = source.remaining();
        if length < LONG {
            return self.last.put(source);
        }
        if !self.last.is_empty() {
            self.done.push_back(self.last.split().freeze());
        }
        // Of `Bytes` this is another handle of the same bytes.
        self.done.push_back(source.copy_to_bytes(length));
    }

    fn put_slice(&mut self, source: &[u8]) {
        self.last.put_slice(source);
    }
}

/// A body of messages as they come, and what is kept until each has been sent.
#[derive(Debug)]
pub struct Frames<S, H> {
    source: S,
    present: VecDeque<Bytes>,
    held: Option<H>,
    /// A client's body ends without a status.
    trailers: bool,
    over: bool,
}

/// Where messages come from.
pub trait Source<H> {
    /// The next one; None when there are no more.
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(Pieces, H)>>;

    /// What a server's answer ends with, once there are no more.
    fn status(&mut self) -> Status {
        Status::ok("")
    }
}

impl<H> Source<H> for Option<(Pieces, H)> {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Option<(Pieces, H)>> {
        Poll::Ready(self.take())
    }
}

impl<S, H> Frames<S, H> {
    /// What a server answers: it ends with a status.
    pub fn answers(source: S) -> Self {
        Frames { source, present: VecDeque::new(), held: None, trailers: true, over: false }
    }

    /// What a client sends.
    pub fn requests(source: S) -> Self {
        Frames { trailers: false, ..Self::answers(source) }
    }
}

impl<S: Source<H> + Unpin, H: Unpin> Body for Frames<S, H> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        loop {
            if let Some(piece) = self.present.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.over {
                return Poll::Ready(None);
            }
            self.held = None;
            match ready!(self.source.poll_next(context)) {
                Some((pieces, held)) => {
                    self.present = pieces.into_list();
                    self.held = Some(held);
                }
                None => {
                    self.over = true;
                    if self.trailers {
                        let mut trailers = HeaderMap::new();
                        self.source.status().add_header(&mut trailers)?;
                        return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over && self.present.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1;

    #[test]
    fn pieces_are_the_encoding_and_long_fields_are_not_copied() {
        let data = Bytes::from(vec![7; 3 * LONG]);
        let attachment = |data: &Bytes| v1::Attachment {
            name: "a".into(),
            content_type: "t".into(),
            data: data.clone(),
        };
        let message = v1::CallRequest {
            plugin: "p".into(),
            args: data.slice(..LONG),
            attachments: vec![attachment(&data), attachment(&Bytes::from_static(b"short"))],
            ..Default::default()
        };
        let list = Pieces::of(&message).into_list();
        assert!(
            list.iter().any(|piece| piece.as_ptr() == data.as_ptr() && piece.len() == data.len())
        );
        let all: Vec<u8> = list.iter().flatten().copied().collect();
        assert_eq!(all[0], 0);
        assert_eq!(u32::from_be_bytes([all[1], all[2], all[3], all[4]]) as usize, all.len() - 5);
        assert_eq!(v1::CallRequest::decode(&all[5..]).unwrap(), message);
        let small = Pieces::of(&v1::CallRequest::default()).into_list();
        assert_eq!(small.len(), 1);
    }
}
