//! What the requests of one process hold, charged to its plugin.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tonic::Status;
use tower::Service;

use crate::capacity::{Account, Charge};

/// A service whose requests are charged until they have been answered.
#[derive(Clone)]
pub(super) struct Counted<S> {
    pub(super) service: S,
    pub(super) account: Account,
}

impl<S, R> Service<Request<Incoming>> for Counted<S>
where
    S: Service<Request<tonic::body::Body>, Response = Response<R>>,
    S::Future: Send + 'static,
    S::Response: Send,
    S::Error: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(context)
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let account = self.account.clone();
        let request =
            request.map(|inner| tonic::body::Body::new(Charged { inner, account, charge: None }));
        self.service.call(request)
    }
}

/// A body that is paid for as it comes. Its charge is as short-lived as the body itself:
/// what is kept of a request is bounded by quotas, or charged by who keeps it.
struct Charged {
    inner: Incoming,
    account: Account,
    charge: Option<Charge>,
}

impl Body for Charged {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(context);
        let Poll::Ready(Some(Ok(frame))) = polled else {
            return polled.map_err(|error| Status::cancelled(error.to_string()));
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        let this = &mut *self;
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
