//! The body of a request as handlers get it, and what they leave of it.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::{runtime::Handle, sync::Notify};

use super::connection::Connection;
use crate::capacity::limits;

/// What nobody reads of a request. It is read and thrown away until the answer has been
/// sent, and for a while after that: clients that are still sending see their stream
/// reset or their connection closed otherwise, and never why.
#[derive(Clone, Default)]
pub(super) struct Rest(Arc<Notify>);

impl Rest {
    /// The answer's end of it.
    pub(super) fn unread(self) -> Unread {
        Unread(self)
    }

    async fn read(self, mut unread: Counting) {
        let sent = async {
            self.0.notified().await;
            tokio::time::sleep(limits::UNWANTED).await;
        };
        let read = async {
            loop {
                match poll_fn(|context| Pin::new(&mut unread).poll_frame(context)).await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) => break unread.connection.hung_up(),
                    None => break,
                }
            }
        };
        tokio::select! {
            () = read => {}
            () = sent => {}
        }
    }
}

/// See [`Rest`].
pub(super) struct Unread(Rest);

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.0.notify_one();
    }
}

/// Tells the connection how much of what it read was a body.
struct Counting {
    inner: Incoming,
    connection: Arc<Connection>,
}

/// The handlers' end of a body.
pub(super) struct Lent {
    body: Option<Counting>,
    rest: Rest,
}

impl Lent {
    pub(super) fn new(inner: Incoming, connection: Arc<Connection>, rest: Rest) -> Self {
        Lent { body: Some(Counting { inner, connection }), rest }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(mut unread) = self.body.take().filter(|body| !body.is_end_stream()) else {
            return;
        };
        // Of most nothing is left but the end, which has come already.
        match Pin::new(&mut unread).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(None) => {}
            Poll::Ready(Some(Ok(_))) if unread.is_end_stream() => {}
            Poll::Ready(Some(Err(_))) => unread.connection.hung_up(),
            _ => {
                if let Ok(runtime) = Handle::try_current() {
                    runtime.spawn(std::mem::take(&mut self.rest).read(unread));
                }
            }
        }
    }
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl HttpBody for Counting {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.connection.body(frame.data_ref().map_or(0, Bytes::len));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
