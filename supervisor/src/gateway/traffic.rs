//! The bytes of a connection: counted, and read in pieces whose size its requests decide.

use std::{
    io,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Connection;
use crate::capacity::{Turns, frames::Frames, is_free, limits, read_at_most, took};

/// The head of a frame of HTTP/2.
const FRAME_HEAD: i64 = 9;
/// Read at once from a connection that chatters: hundreds of frames.
const SIP: usize = 4096;
/// Read at once from a connection of which it is not known yet what it sends: a dozen
/// requests at most. What is no request is read in ever larger pieces.
const FIRST: usize = 512;
/// A request for each so many bytes: there are no bodies among them.
const HEADS_ONLY: usize = 1024;
/// Bytes from which on a connection chatters. Those of a body that nobody has read yet are among them.
const CHATTERS: f64 = 3.0 * limits::STEP as f64;
/// The beginning of HTTP/2.
const PREFACE: &[u8] = b"PRI";

/// The bytes of a connection, counted and taken in turns.
#[derive(Debug)]
pub(super) struct Counted<I> {
    io: Turns<I>,
    connection: Arc<Connection>,
    /// When it was last looked for a flood, on the connection's clock.
    looked: u64,
    chatter: Bucket,
    flood: Bucket,
    pieces: Pieces,
    /// Of HTTP/2.
    frames: Frames,
}

/// In which pieces a connection is read.
#[derive(Debug)]
struct Pieces {
    size: usize,
    /// Of the present one; 0: it is over.
    left: usize,
    /// It was full: there is more.
    full: bool,
    /// It was read without standing in line.
    is_free: bool,
    /// How many requests there had been before it.
    requests: u64,
}

impl Pieces {
    /// The next one begins.
    fn next(&mut self, requests: u64) {
        let came = (requests - self.requests) as usize;
        let heads_only = came * HEADS_ONLY > self.size;
        self.size = match self.full && !heads_only {
            true => (4 * self.size).min(limits::STEP),
            false => FIRST,
        };
        self.left = self.size;
        self.requests = requests;
    }

    /// So many bytes came where there was room for `most`.
    fn read(&mut self, bytes: usize, most: usize) {
        self.left -= bytes;
        if bytes < most {
            self.left = 0;
            self.full = false;
        } else if self.left == 0 {
            self.full = true;
        }
    }
}

/// How much more of something there is than may run off in the time.
#[derive(Debug, Default)]
struct Bucket {
    level: f64,
    before: i64,
}

impl Bucket {
    /// There is so much of it altogether; so much of it ran off since the last look.
    fn fill(&mut self, total: i64, ran_off: f64) {
        let more = (total - self.before) as f64;
        self.level = (self.level + more - ran_off).max(0.0);
        self.before = total;
    }
}

impl<I> Counted<I> {
    pub(super) fn new(io: I, connection: Arc<Connection>) -> Self {
        let looked = connection.now();
        let (chatter, flood) = Default::default();
        let pieces = Pieces { size: FIRST, left: 0, full: false, is_free: false, requests: 0 };
        let (io, frames) = (Turns::new(io), Frames::of_client());
        Counted { io, connection, looked, chatter, flood, pieces, frames }
    }

    /// A flood of frames that ask for nothing.
    fn is_flood(&mut self, now: u64) -> bool {
        let elapsed = now - std::mem::replace(&mut self.looked, now);
        let ran_off = limits::FLOOD as f64 * elapsed as f64 / 1000.0;
        let chatter = self.connection.chatter();
        self.chatter.fill(chatter, ran_off);
        let heads = FRAME_HEAD * self.connection.parts.load(Ordering::Relaxed) as i64;
        self.flood.fill(chatter - heads, ran_off);
        // What is in the window may not have been counted as a body yet.
        let allowed = (limits::FLOOD + limits::WINDOW) as f64;
        self.connection.http2.load(Ordering::Relaxed) && self.flood.level > allowed
    }
}

impl<I: AsyncRead + Unpin> Counted<I> {
    /// A byte of frames that carry nothing costs a hundred times what one of a body
    /// does: few of them are a turn.
    fn sip(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = read_at_most(&mut self.io, context, buffer, SIP);
        if buffer.filled().len() > before {
            self.io.end_turn();
        }
        polled
    }
}

impl<I: AsyncRead + Unpin> Counted<I> {
    /// Who asks for more than a little, or with thousands of others, stands in line.
    fn piece(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.pieces.left == 0 {
            self.pieces.is_free = !self.pieces.full && is_free();
            match self.pieces.full {
                true => self.io.end_turn(),
                false if !self.pieces.is_free => self.io.end_brief_turn(),
                false => {}
            }
            self.pieces.next(self.connection.requests.load(Ordering::Relaxed));
        }
        let (before, most) = (buffer.filled().len(), self.pieces.left.min(buffer.remaining()));
        let polled = read_at_most(&mut self.io, context, buffer, most);
        let came = buffer.filled().len() - before;
        // Pending: nothing more is there, unless it stands in line.
        if polled.is_ready() || !self.io.stands() {
            self.pieces.read(came, most);
        }
        if self.pieces.is_free {
            took(came);
        }
        polled
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Counted<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.connection.has_caught_up(context) {
            // It is not the client who is waited for.
            self.connection.awaited(None);
            return Poll::Pending;
        }
        let before = buffer.filled().len();
        let polled = match self.chatter.level > CHATTERS {
            true => self.sip(context, buffer),
            false => self.piece(context, buffer),
        };
        let came = &buffer.filled()[before..];
        if came.is_empty() {
            if polled.is_pending() && self.io.stands() {
                self.connection.awaited(None);
            }
            return polled;
        }
        let this = &mut *self;
        let connection = &this.connection;
        let now = connection.now();
        // It may come a byte at a time.
        let read = connection.read.load(Ordering::Relaxed) as usize;
        if let Some(rest) = PREFACE.get(read..).filter(|rest| !rest.is_empty()) {
            let so_far = read == 0 || connection.http2.load(Ordering::Relaxed);
            let fits = came.iter().zip(rest).all(|(one, wanted)| one == wanted);
            connection.http2.store(so_far && fits, Ordering::Relaxed);
        }
        connection.read.fetch_add(came.len() as u64, Ordering::Relaxed);
        connection.last_in.store(now, Ordering::Relaxed);
        if connection.http2.load(Ordering::Relaxed) {
            this.frames.read(came);
            connection.awaited(this.frames.open());
        }
        if connection.active.load(Ordering::Relaxed) == 0 {
            let _ = connection.head.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
        if self.is_flood(now) {
            return Poll::Ready(Err(io::Error::other("a flood of frames that ask for nothing")));
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> Counted<I> {
    fn wrote(&self, polled: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &polled {
            self.connection.written.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        self.waited(polled)
    }

    fn waited<T>(&self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let blocked = &self.connection.blocked;
        match &polled {
            Poll::Ready(_) => blocked.store(0, Ordering::Relaxed),
            Poll::Pending => {
                let now = self.connection.now();
                let _ = blocked.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Counted<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(context, bytes);
        self.wrote(polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.wrote(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Under TLS what was written may still wait.
        let polled = Pin::new(&mut self.io).poll_flush(context);
        self.waited(polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces() -> Pieces {
        Pieces { size: FIRST, left: 0, full: false, is_free: false, requests: 0 }
    }

    #[test]
    fn bodies_are_read_in_ever_larger_pieces_however_small_the_buffers_are() {
        let mut pieces = pieces();
        let mut sizes = Vec::new();
        for _ in 0..6 {
            pieces.next(1);
            sizes.push(pieces.size);
            while pieces.left > 0 {
                let most = pieces.left.min(8 << 10);
                pieces.read(most, most);
            }
            assert!(pieces.full);
        }
        assert_eq!(sizes, [512, 2048, 8192, 32 << 10, 64 << 10, 64 << 10]);
        pieces.next(1);
        pieces.read(100, 8 << 10);
        assert!(!pieces.full && pieces.left == 0, "there was no more");
        pieces.next(1);
        assert_eq!(pieces.size, FIRST);
    }

    #[test]
    fn requests_are_read_in_small_pieces() {
        let mut pieces = pieces();
        for requests in (0..100).step_by(10) {
            pieces.next(requests);
            assert_eq!(pieces.size, FIRST);
            pieces.read(FIRST, FIRST);
        }
    }
}
