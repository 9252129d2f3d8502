//! The parts of a multipart body, whose heads are bounded: what looks for the end of one
//! looks through all that has come each time that more comes.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{
        FromRequest as _, Multipart, Request,
        multipart::{Field, MultipartError},
    },
    response::Response,
};
use hyper::body::{Frame, SizeHint};

use super::{body_failed, detail};
use crate::capacity::limits;

/// The parts, in order.
pub(super) struct Parts {
    multipart: Multipart,
    progress: Arc<Progress>,
}

/// What the one who reads and the one who gives know of each other.
#[derive(Debug, Default)]
struct Progress {
    /// So often it is said that no more has come, so that what has is looked through: who
    /// has found nothing asks once more before it looks again.
    pauses: AtomicUsize,
    /// A part's head is looked for, and so many bytes have come meanwhile, plus one.
    head: AtomicUsize,
}

impl Parts {
    /// Of this body.
    pub(super) async fn of(request: Request) -> Result<Self, Box<Response>> {
        let progress = Arc::new(Progress::default());
        let shared = progress.clone();
        let bounded = |inner| Bounded { inner, progress: shared, given: 0, ended: false };
        let request = request.map(|inner| Body::new(bounded(inner)));
        let multipart = Multipart::from_request(request, &()).await;
        let multipart = multipart
            .map_err(|refused| Box::new(detail(refused.status(), &refused.body_text())))?;
        Ok(Parts { multipart, progress })
    }

    /// The next one; the one before has been read.
    pub(super) async fn next(&mut self) -> Result<Option<Field<'_>>, Box<Response>> {
        let progress = self.progress.clone();
        progress.head.store(1, Ordering::Relaxed);
        progress.pauses.store(1, Ordering::Relaxed);
        let next = self.multipart.next_field().await.map_err(refused);
        progress.head.store(0, Ordering::Relaxed);
        progress.pauses.store(1, Ordering::Relaxed);
        next
    }
}

/// Why a part could not be read.
pub(super) fn refused(error: MultipartError) -> Box<Response> {
    Box::new(body_failed(&error).unwrap_or_else(|| detail(error.status(), &error.body_text())))
}

/// The body: a step at a time, so that little of it waits to be looked through, and of a
/// part's head no more than may be.
struct Bounded {
    inner: Body,
    progress: Arc<Progress>,
    /// Bytes since what has been given was last looked through.
    given: usize,
    ended: bool,
}

impl HttpBody for Bounded {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Bounded { inner, progress, given, ended } = self.get_mut();
        let pauses = progress.pauses.load(Ordering::Relaxed);
        if pauses > 0 {
            progress.pauses.store(pauses - 1, Ordering::Relaxed);
            *given = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let head = progress.head.load(Ordering::Relaxed);
        if head > limits::PART_HEAD {
            let text = format!(
                "more than {} bytes come before a part of the body: its headers, or what is \
                 before the first boundary",
                limits::PART_HEAD
            );
            return Poll::Ready(Some(Err(axum::Error::new(tonic::Status::invalid_argument(text)))));
        }
        let frame = match *ended {
            true => None,
            false => ready!(Pin::new(inner).poll_frame(context)),
        };
        *ended = frame.is_none();
        // Who hears of the end together with the last bytes does not look through them.
        if *ended && std::mem::take(given) > 0 {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let bytes = match &frame {
            Some(Ok(frame)) => frame.data_ref().map_or(0, Bytes::len),
            _ => 0,
        };
        *given += bytes;
        if head > 0 {
            progress.head.store(head + bytes, Ordering::Relaxed);
        }
        if *given >= limits::STEP || (head > 0 && head + bytes > limits::PART_HEAD) {
            progress.pauses.store(2, Ordering::Relaxed);
        }
        Poll::Ready(frame)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use futures_util::stream;

    use super::*;

    async fn read(chunks: Vec<Vec<u8>>) -> Result<Vec<(String, usize)>, StatusCode> {
        let chunks = chunks.into_iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from(chunk)));
        let request = Request::builder()
            .header("content-type", "multipart/form-data; boundary=b")
            .body(Body::from_stream(stream::iter(chunks)))
            .unwrap();
        let mut parts = Parts::of(request).await.map_err(|refused| refused.status())?;
        let mut found = Vec::new();
        while let Some(part) = parts.next().await.map_err(|refused| refused.status())? {
            let name = part.name().unwrap_or_default().to_owned();
            found.push((name, part.bytes().await.unwrap().len()));
        }
        Ok(found)
    }

    #[tokio::test]
    async fn a_body_that_comes_all_at_once_is_read() {
        let small = [part("a", 3), part("b", 0), b"--b--\r\n".to_vec()].concat();
        let found = vec![("a".to_owned(), 3), ("b".to_owned(), 0)];
        assert_eq!(read(vec![small]).await, Ok(found));
        assert_eq!(read(vec![b"--b--\r\n".to_vec()]).await, Ok(vec![]));
    }

    fn part(name: &str, bytes: usize) -> Vec<u8> {
        let head = format!("--b\r\ncontent-disposition: form-data; name={name}\r\n\r\n");
        [head.as_bytes(), &vec![b'-'; bytes], b"\r\n"].concat()
    }

    #[tokio::test]
    async fn parts_of_every_size_are_read_however_they_come() {
        let large = 3 * limits::PART_HEAD;
        let body = [part("a", large), part("b", 0), part("c", 5), part("d", large)];
        let body = [&body.concat()[..], b"--b--\r\n"].concat();
        for chunk in [7, 5000, limits::PART_HEAD, body.len()] {
            let found = read(body.chunks(chunk).map(<[u8]>::to_vec).collect()).await.unwrap();
            let expected = [("a", large), ("b", 0), ("c", 5), ("d", large)];
            assert_eq!(found, expected.map(|(name, bytes)| (name.to_owned(), bytes)), "{chunk}");
        }
    }

    #[tokio::test]
    async fn heads_without_end_are_refused_early() {
        let more = || (0..1000).map(|_| vec![b'-'; 1000]);
        assert_eq!(read(more().collect()).await, Err(StatusCode::UNPROCESSABLE_ENTITY));
        let head = [b"--b\r\n".to_vec()].into_iter();
        let lines = (0..100_000).map(|_| b"x: y\r\n".to_vec());
        assert_eq!(read(head.chain(lines).collect()).await, Err(StatusCode::UNPROCESSABLE_ENTITY));
        let second = [part("a", 9)].into_iter().chain([b"--b\r\nx: ".to_vec()]);
        assert_eq!(
            read(second.chain(more()).collect()).await,
            Err(StatusCode::UNPROCESSABLE_ENTITY)
        );
    }
}
