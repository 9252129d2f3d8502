//! A unix stream that is woken when something has come, not each time its peer has read.
#![allow(unsafe_code)]

use std::{
    io::{self, IoSlice, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// Writes of so many bytes may have to wait again.
const LARGE: usize = 16 * 1024;

/// The stream. Whoever listens for room on a unix stream is told of it at each read of the
/// peer, which is one wake for nothing per message; this listens for room only while a
/// write waits for it.
#[derive(Debug)]
pub struct Socket {
    /// None when the runtime would not listen to it any more.
    io: Option<AsyncFd<UnixStream>>,
    for_room: bool,
    /// Who waits for bytes to come.
    reader: Option<Waker>,
}

impl Socket {
    /// Of this stream, on the runtime of the caller.
    ///
    /// # Errors
    /// The stream cannot be listened to.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let io = listened(stream, Interest::READABLE)?;
        Ok(Socket { io: Some(io), for_room: false, reader: None })
    }

    /// Waits until there is something to read, or the peer is gone.
    ///
    /// # Errors
    /// The stream cannot be listened to.
    pub async fn readable(&self) -> io::Result<()> {
        self.io()?.readable().await.map(drop)
    }

    fn io(&self) -> io::Result<&AsyncFd<UnixStream>> {
        self.io.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn listen(&mut self, for_room: bool) -> io::Result<()> {
        let interest = match for_room {
            true => Interest::READABLE | Interest::WRITABLE,
            false => Interest::READABLE,
        };
        let stream = self.io.take().map(AsyncFd::into_inner);
        let stream = stream.ok_or(io::ErrorKind::NotConnected)?;
        self.io = Some(listened(stream, interest)?);
        self.for_room = for_room;
        // It waits for what is listened to no more.
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn poll_written(
        &mut self,
        context: &mut Context<'_>,
        length: usize,
        mut write: impl FnMut(&UnixStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            match write(self.io()?.get_ref()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                done => {
                    if self.for_room && length < LARGE {
                        self.listen(false)?;
                    }
                    return Poll::Ready(done);
                }
            }
            if !self.for_room {
                self.listen(true)?;
            }
            ready!(self.io()?.poll_write_ready(context))?.clear_ready();
        }
    }
}

fn listened(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    // SAFETY: the stream owns its descriptor, which is open and the same until the stream
    // is dropped, and the `AsyncFd` owns the stream.
    Ok(unsafe { AsyncFd::register_with_interest(stream, interest) }?)
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let Poll::Ready(ready) = this.io()?.poll_read_ready(context) else {
                match &mut this.reader {
                    Some(reader) => reader.clone_from(context.waker()),
                    none => *none = Some(context.waker().clone()),
                }
                return Poll::Pending;
            };
            let mut ready = ready?;
            // SAFETY: nothing in it is made uninitialised: it is only given to a read.
            let unfilled = unsafe { buffer.unfilled_mut() };
            let room = unfilled.len();
            match rustix::io::read(ready.get_inner(), unfilled) {
                Ok((came, _)) => {
                    let bytes = came.len();
                    // Less than there is room for is all that there was.
                    if 0 < bytes && bytes < room {
                        ready.clear_ready();
                    }
                    // SAFETY: the read has initialised these bytes of `unfilled`.
                    unsafe { buffer.assume_init(bytes) };
                    buffer.advance(bytes);
                    return Poll::Ready(Ok(()));
                }
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_written(context, bytes.len(), |mut stream| stream.write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = parts.iter().map(|part| part.len()).sum();
        self.get_mut().poll_written(context, length, |mut stream| stream.write_vectored(parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.io()?.get_ref().shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    use std::task::Wake;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn pair() -> (Socket, Socket) {
        let (a, b) = UnixStream::pair().unwrap();
        (Socket::new(a).unwrap(), Socket::new(b).unwrap())
    }

    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The runtime has looked at its descriptors.
    async fn look() {
        for _ in 0..3 {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    #[tokio::test]
    async fn more_than_fits_arrives_in_both_directions_at_once() {
        let (mut a, mut b) = pair();
        let bytes: Vec<u8> = (0..4_000_000_u32).map(|n| n as u8).collect();
        let (sent, back) = (bytes.clone(), bytes.clone());
        let other = tokio::spawn(async move {
            let (mut reading, mut writing) = tokio::io::split(&mut b);
            let mut came = vec![0; back.len()];
            let (read, wrote) =
                tokio::join!(reading.read_exact(&mut came), writing.write_all(&back));
            assert!(read.is_ok() && wrote.is_ok() && came == back);
        });
        let (mut reading, mut writing) = tokio::io::split(&mut a);
        let mut came = vec![0; sent.len()];
        let (read, wrote) = tokio::join!(reading.read_exact(&mut came), writing.write_all(&sent));
        assert!(read.is_ok() && wrote.is_ok() && came == bytes);
        other.await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_bytes_is_not_woken_by_a_reading_peer_also_after_a_wait_for_room() {
        let (mut a, mut b) = pair();
        for large in [0, 2_000_000] {
            let (sent, mut rest) = (vec![0; large], vec![0; large]);
            let (wrote, read) = tokio::join!(a.write_all(&sent), async {
                look().await;
                b.read_exact(&mut rest).await
            });
            assert!(wrote.is_ok() && read.is_ok());
            a.write_all(b"question").await.unwrap();
            assert!(!a.for_room);
            let wakes = Arc::new(Wakes::default());
            let waker = Waker::from(wakes.clone());
            let mut space = [0; 16];
            let mut buffer = ReadBuf::new(&mut space);
            let polled = Pin::new(&mut a).poll_read(&mut Context::from_waker(&waker), &mut buffer);
            assert!(polled.is_pending());
            let mut question = [0; 8];
            b.read_exact(&mut question).await.unwrap();
            look().await;
            assert_eq!(wakes.0.load(Ordering::Relaxed), 0, "after {large}");
            b.write_all(b"answer").await.unwrap();
            look().await;
            assert_eq!(wakes.0.load(Ordering::Relaxed), 1, "after {large}");
            let mut answer = [0; 6];
            a.read_exact(&mut answer).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_end_is_read_as_one_and_a_peer_that_is_gone_is_told() {
        let (mut a, mut b) = pair();
        a.write_all(b"last").await.unwrap();
        a.shutdown().await.unwrap();
        let mut all = Vec::new();
        b.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"last");
        drop(b);
        assert_eq!(a.write_all(b"x").await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        // A write that waits for room.
        let (mut a, b) = pair();
        let writing = tokio::spawn(async move { a.write_all(&vec![0; 4_000_000]).await });
        look().await;
        drop(b);
        assert!(writing.await.unwrap().is_err());
    }
}
