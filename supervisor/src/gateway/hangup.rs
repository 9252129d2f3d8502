//! Whether the client of an HTTP/1 request is still there. Whoever serves HTTP/1 does not
//! read on while a byte behind the request waits, and so does not hear that it has gone.

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;

/// Bytes behind a request that are read before it has been answered.
const AHEAD: usize = 16 << 10;
/// Of them at once.
const SIP: usize = 1024;

/// A stream that can be looked at from two sides of one task.
#[derive(Debug)]
pub(super) struct Shared<I>(Arc<Mutex<Inner<I>>>);

#[derive(Debug)]
struct Inner<I> {
    io: I,
    /// Read, and not handed on.
    ahead: Vec<u8>,
    /// There is nothing behind that.
    is_over: bool,
}

impl<I> Clone for Shared<I> {
    fn clone(&self) -> Self {
        Shared(self.0.clone())
    }
}

impl<I> Shared<I> {
    pub(super) fn new(io: I) -> Self {
        Shared(Arc::new(Mutex::new(Inner { io, ahead: Vec::new(), is_over: false })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner<I>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<I: AsyncRead + Unpin> Shared<I> {
    /// Resolves when the client goes while it is being answered over HTTP/1. To be waited
    /// for by the task that serves the connection, behind what serves it.
    pub(super) async fn gone(&self, connection: &Connection) {
        poll_fn(|context| match connection.is_answering() && !connection.is_http2() {
            true => self.inner().look(context),
            false => Poll::Pending,
        })
        .await;
    }
}

impl<I: AsyncRead + Unpin> Inner<I> {
    fn look(&mut self, context: &mut Context<'_>) -> Poll<()> {
        while !self.is_over {
            if self.ahead.len() >= AHEAD {
                return Poll::Pending;
            }
            let mut bytes = [0; SIP];
            let mut part = ReadBuf::new(&mut bytes);
            let read = ready!(Pin::new(&mut self.io).poll_read(context, &mut part));
            self.is_over = read.is_err() || part.filled().is_empty();
            self.ahead.extend_from_slice(part.filled());
            // Whoever serves the connection may have waited for this.
            context.waker().wake_by_ref();
        }
        Poll::Ready(())
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Shared<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut inner = self.inner();
        if !inner.ahead.is_empty() {
            let bytes = inner.ahead.len().min(buffer.remaining());
            buffer.put_slice(&inner.ahead[..bytes]);
            inner.ahead.drain(..bytes);
            return Poll::Ready(Ok(()));
        }
        if inner.is_over {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut inner.io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Shared<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner().io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner().io).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner().io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner().io).poll_shutdown(context)
    }
}
