//! Who sends or takes much gives others their turn: a stream that lets a task move
//! [`limits::STEP`] bytes, then has it stand in [line](super::line).

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use stockade_proto::limits;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Place, frames::Frames};

/// Read at once of a stream that is read one by one with others.
const SIP: usize = 4096;
/// Read at once of a stream of small frames: a hundred of them.
const CRUMBS: usize = 1024;
/// A frame of HTTP/2 is as dear as so many bytes of one that is large.
const FRAME: usize = 256;

/// A stream that is shared fairly.
#[derive(Debug)]
pub struct Turns<I> {
    io: I,
    /// Bytes since others had their turn.
    moved: usize,
    /// Little is wanted next.
    brief: bool,
    place: Place,
    /// What has come is handed on in turn, however little it is.
    one_by_one: bool,
    came: Vec<u8>,
    /// Of HTTP/2, where the peer chooses how large they are.
    frames: Option<Frames>,
    /// Bytes that may be read at once: fewer when the frames are small.
    most: usize,
}

impl<I> Turns<I> {
    /// Of this stream.
    pub fn new(io: I) -> Self {
        let (place, came, frames) = Default::default();
        let most = usize::MAX;
        Turns { io, moved: 0, brief: false, place, one_by_one: false, came, frames, most }
    }

    /// Of one that brings frames of HTTP/2: many small ones are as dear as a few large
    /// ones, however few bytes they are.
    pub fn of_frames(io: I, frames: Frames) -> Self {
        Turns { frames: Some(frames), ..Turns::new(io) }
    }

    /// Of one whose first bytes ask for dear work: of all such streams one is read at a
    /// time, until [`Turns::go_on`].
    pub fn one_by_one(io: I) -> Self {
        Turns { one_by_one: true, ..Turns::new(io) }
    }

    /// The dear work is done.
    pub fn go_on(&mut self) {
        self.one_by_one = false;
    }

    /// What was moved was as dear as much would have been: others are next.
    pub fn end_turn(&mut self) {
        self.moved = limits::STEP;
    }

    /// There is too much for all at once, though little for this one.
    pub fn end_brief_turn(&mut self) {
        self.end_turn();
        self.brief = true;
    }

    /// It stands in line.
    pub fn stands(&self) -> bool {
        self.place.stands()
    }

    /// More may be moved now; else the task is woken when it may.
    fn may_move(&mut self, context: &mut Context<'_>) -> bool {
        if self.moved >= limits::STEP {
            self.moved = 0;
            self.place.join(context, std::mem::take(&mut self.brief));
        }
        self.place.poll_called(context).is_ready()
    }

    fn count<T>(&mut self, polled: &Poll<T>, bytes: usize) {
        match polled {
            Poll::Ready(_) => self.moved += bytes,
            Poll::Pending => self.moved = 0,
        }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Turns<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.one_by_one || !self.came.is_empty() {
            return self.read_in_turn(context, buffer);
        }
        if !self.may_move(context) {
            return Poll::Pending;
        }
        let this = &mut *self;
        let before = buffer.filled().len();
        let polled = read_at_most(&mut this.io, context, buffer, this.most);
        let came = &buffer.filled()[before..];
        let frames = this.frames.as_mut().map_or(0, |frames| {
            let begun = frames.begun();
            frames.read(came);
            (frames.begun() - begun) as usize
        });
        if frames > 0 {
            this.most = if came.len() < frames * FRAME { CRUMBS } else { usize::MAX };
        }
        this.count(&polled, came.len() + frames * FRAME);
        polled
    }
}

/// Reads at most so much, whatever there is room for.
pub(crate) fn read_at_most<I: AsyncRead + Unpin>(
    io: &mut I,
    context: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
    most: usize,
) -> Poll<io::Result<()>> {
    if buffer.remaining() <= most {
        return Pin::new(io).poll_read(context, buffer);
    }
    let mut part = ReadBuf::new(buffer.initialize_unfilled_to(most));
    let polled = Pin::new(io).poll_read(context, &mut part);
    let came = part.filled().len();
    buffer.advance(came);
    polled
}

impl<I: AsyncRead + Unpin> Turns<I> {
    fn read_in_turn(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.came.is_empty() {
            let mut bytes = [0; SIP];
            let mut part = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(context, &mut part))?;
            if part.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.came.extend_from_slice(part.filled());
            self.place.join(context, false);
        }
        ready!(self.place.poll_called(context));
        let bytes = self.came.len().min(buffer.remaining());
        buffer.put_slice(&self.came[..bytes]);
        self.came.drain(..bytes);
        if self.came.is_empty() {
            self.came = Vec::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// As much of it as one write moves.
fn one_step(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.len().min(limits::STEP)]
}

/// The same of parts: whole ones, and so at least one.
fn whole_parts<'a, 'b>(parts: &'b [IoSlice<'a>]) -> &'b [IoSlice<'a>] {
    let mut bytes = 0;
    let fits = parts.iter().take_while(|part| {
        bytes += part.len();
        bytes <= limits::STEP
    });
    &parts[..fits.count().clamp(1.min(parts.len()), parts.len())]
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Turns<I> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !self.may_move(context) {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.io).poll_write(context, one_step(bytes));
        self.count(&polled, written(&polled));
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let parts = whole_parts(parts);
        if let [one] = parts {
            return self.poll_write(context, one);
        }
        if !self.may_move(context) {
            return Poll::Pending;
        }
        let polled = Pin::new(&mut self.io).poll_write_vectored(context, parts);
        self.count(&polled, written(&polled));
        polled
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

fn written(polled: &Poll<io::Result<usize>>) -> usize {
    match polled {
        Poll::Ready(Ok(bytes)) => *bytes,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A neighbour on the same thread is polled between the steps of a large transfer,
    /// in both directions, though the other side never makes anybody wait; and however
    /// many are large, one step of one of them.
    #[tokio::test]
    async fn a_large_transfer_lets_others_have_their_turn() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counting = turns.clone();
        tokio::spawn(std::future::poll_fn(move |context| {
            counting.fetch_add(1, Ordering::Relaxed);
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let bytes = vec![7; 64 * limits::STEP];
        let mut sink = Turns::new(Box::pin(std::io::Cursor::new(Vec::new())));
        sink.write_all(&bytes).await.unwrap();
        assert!(turns.swap(0, Ordering::Relaxed) >= 60);
        let mut source = Turns::new(&bytes[..]);
        let mut read = Vec::new();
        source.read_to_end(&mut read).await.unwrap();
        assert_eq!(read.len(), bytes.len());
        assert!(turns.swap(0, Ordering::Relaxed) >= 60);
        let all: Vec<_> = (0..8)
            .map(|_| {
                let bytes = bytes.clone();
                tokio::spawn(async move {
                    Turns::new(Vec::<u8>::new()).write_all(&bytes).await.unwrap();
                })
            })
            .collect();
        for one in all {
            one.await.unwrap();
        }
        assert!(turns.load(Ordering::Relaxed) >= 8 * 60);
    }

    /// As many small frames as fill a step are read in many turns.
    #[tokio::test]
    async fn small_frames_let_others_have_their_turn() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counting = turns.clone();
        tokio::spawn(std::future::poll_fn(move |context| {
            counting.fetch_add(1, Ordering::Relaxed);
            context.waker().wake_by_ref();
            Poll::<()>::Pending
        }));
        let frame = [0, 0, 1, 0, 0, 0, 0, 0, 1, b'x'];
        let bytes = frame.repeat(limits::STEP / frame.len());
        let mut source = Turns::of_frames(&bytes[..], Frames::of_server());
        let mut read = Vec::new();
        source.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, bytes);
        let turns = turns.load(Ordering::Relaxed);
        assert!(turns >= 20, "{turns}");
    }

    #[test]
    fn parts_are_taken_up_to_a_step_and_at_least_one() {
        let (small, large) = (vec![0; limits::STEP / 4], vec![0; 4 * limits::STEP]);
        let small: Vec<_> = (0..8).map(|_| IoSlice::new(&small)).collect();
        assert_eq!(whole_parts(&small).len(), 4);
        assert_eq!(whole_parts(&[IoSlice::new(&large), IoSlice::new(&large)]).len(), 1);
        assert_eq!(whole_parts(&[]).len(), 0);
    }
}
