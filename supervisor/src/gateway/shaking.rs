//! A stream under TLS. A handshake is the dearest thing that a stranger can ask for with
//! some hundred bytes: what is read for it is worked on in turns, one at a time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::capacity::{Place, Turns};

/// Read at once of a handshake.
const SIP: usize = 4096;

/// The stream, and what has come for its handshake.
#[derive(Debug)]
pub(super) struct Shaking<I> {
    io: Turns<I>,
    shaken: bool,
    came: Vec<u8>,
    place: Place,
}

impl<I> Shaking<I> {
    pub(super) fn new(io: I) -> Self {
        Shaking { io: Turns::new(io), shaken: false, came: Vec::new(), place: Place::default() }
    }

    /// The handshake is over.
    pub(super) fn is_shaken(&mut self) {
        self.shaken = true;
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Shaking<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.came.is_empty() {
            if this.shaken {
                return Pin::new(&mut this.io).poll_read(context, buffer);
            }
            let mut bytes = [0; SIP];
            let mut part = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.io).poll_read(context, &mut part))?;
            if part.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.came.extend_from_slice(part.filled());
            this.place.join(context, false);
        }
        ready!(this.place.poll_called(context));
        let bytes = this.came.len().min(buffer.remaining());
        buffer.put_slice(&this.came[..bytes]);
        this.came.drain(..bytes);
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Shaking<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
