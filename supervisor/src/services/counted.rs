//! What the requests of one process hold, and what it is answered, charged to its plugin.

use std::{
    mem::take,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tonic::Status;
use tower::Service;

use crate::capacity::{Account, Charge, Place, is_little};

/// A service whose requests are charged until they have been read, and whose answers until
/// they have been taken.
#[derive(Clone)]
pub(super) struct Counted<S> {
    pub(super) service: S,
    pub(super) account: Account,
}

type BoxFuture<T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send>>;

impl<S> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<tonic::body::Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<S::Response, S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let account = self.account.clone();
        let payer = account.clone();
        let request = request.map(|inner| {
            tonic::body::Body::new(Charged {
                inner,
                account,
                charge: None,
                bytes: 0,
                place: Place::default(),
            })
        });
        let answered = self.service.call(request);
        Box::pin(async move {
            let answer = answered.await?;
            Ok(answer.map(|inner| {
                tonic::body::Body::new(Answer { inner, payer, part: None, over: false })
            }))
        })
    }
}

/// An answer's body, of which each part is paid for until the next one is asked for: there
/// is room in the process's window then.
struct Answer {
    inner: tonic::body::Body,
    payer: Account,
    part: Option<Charge>,
    over: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        self.part = None;
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = polled else { return polled };
        let Some(bytes) = frame.data_ref().map(Bytes::len) else {
            return Poll::Ready(Some(Ok(frame)));
        };
        match self.payer.charge(bytes) {
            Ok(part) => {
                self.part = Some(part);
                Poll::Ready(Some(Ok(frame)))
            }
            Err(why) => {
                self.over = true;
                let status = Status::resource_exhausted(format!("the answer was not sent: {why}"));
                let mut trailers = http::HeaderMap::new();
                let added = status.add_header(&mut trailers);
                Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // It may end before.
        SizeHint::default()
    }
}

/// A body that is paid for as it comes. Its charge is as short-lived as the body itself:
/// what is kept of a request is bounded by quotas, or charged by who keeps it.
struct Charged {
    inner: Incoming,
    account: Account,
    charge: Option<Charge>,
    /// So many came and have not been in line.
    bytes: usize,
    place: Place,
}

impl Body for Charged {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        ready!(self.place.poll_called(context));
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        // The request is answered once its end is known: many that end together are
        // answered one after the other.
        if matches!(polled, Poll::Ready(None)) && !is_little(take(&mut self.bytes)) {
            self.place.join(context, true);
            ready!(self.place.poll_called(context));
        }
        let Poll::Ready(Some(Ok(frame))) = polled else {
            return polled.map_err(|error| Status::cancelled(error.to_string()));
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let this = &mut *self;
        this.bytes += bytes;
        let paid = match &mut this.charge {
            Some(charge) => charge.grow(bytes),
            None => this.account.charge(bytes).map(|charge| this.charge = Some(charge)),
        };
        Poll::Ready(Some(match paid {
            Ok(()) => Ok(frame),
            Err(why) => Err(Status::resource_exhausted(format!("the request was not read: {why}"))),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
