//! gRPC over an inherited descriptor: one HTTP/2 connection, no address, no
//! reconnect. When the connection is over, so is the channel.

use std::task::{Context, Poll};

use http::{
    Request, Response, Uri,
    uri::{Authority, Scheme},
};
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::body::Body;
use tower::{Service, ServiceExt as _};

/// Flow-control window, so that a 1080p frame is one flight.
pub const WINDOW: u32 = 16 * 1024 * 1024;
/// Largest HTTP/2 frame: fewer reads for large messages.
pub const MAX_FRAME: u32 = 256 * 1024;
/// Largest gRPC message in either direction.
pub const MAX_MESSAGE: usize = 256 * 1024 * 1024;

/// The client's end. Cheap to clone; every clone is the same connection.
#[derive(Clone, Debug)]
pub struct Channel {
    requests: SendRequest<Body>,
    /// What requests say of where they go.
    origin: (Scheme, Authority),
}

impl Channel {
    /// Starts HTTP/2 on `io`. The second value drives the connection: spawn it;
    /// it ends when the peer hangs up or every clone of the channel is dropped.
    ///
    /// # Errors
    /// The connection preface could not be written.
    pub async fn connect<I>(
        io: I,
    ) -> Result<(Self, impl Future<Output = Result<(), hyper::Error>>), hyper::Error>
    where
        TokioIo<I>: Read + Write + Unpin + Send + 'static,
    {
        // The authority is only a label here.
        Self::connect_to(io, Scheme::HTTP, Authority::from_static("inherited")).await
    }

    /// The same on a connection to somewhere.
    ///
    /// # Errors
    /// The connection preface could not be written.
    pub async fn connect_to<I>(
        io: I,
        scheme: Scheme,
        authority: Authority,
    ) -> Result<(Self, impl Future<Output = Result<(), hyper::Error>>), hyper::Error>
    where
        TokioIo<I>: Read + Write + Unpin + Send + 'static,
    {
        let (requests, connection) = Builder::new(TokioExecutor::new())
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_send_buf_size(1024 * 1024)
            .handshake(TokioIo::new(io))
            .await?;
        Ok((Channel { requests, origin: (scheme, authority) }, connection))
    }
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Incoming>;
    type Error = hyper::Error;
    type Future =
        std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.requests.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // HTTP/2 wants an absolute URI.
        let (path, (scheme, authority)) = (request.uri().path(), self.origin.clone());
        if let Ok(uri) =
            Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()
        {
            *request.uri_mut() = uri;
        }
        Box::pin(self.requests.send_request(request))
    }
}

/// Requests at once of a peer that is trusted.
const STREAMS: u32 = 1024;

/// Serves `service` on `io` until the peer hangs up.
///
/// # Errors
/// The peer broke HTTP/2, or the connection broke in the middle of a stream.
pub async fn serve<I, S>(io: I, service: S) -> Result<(), hyper::Error>
where
    TokioIo<I>: Read + Write + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    serve_some(io, service, STREAMS).await
}

/// The same with a bound on requests at once.
///
/// # Errors
/// As [`serve`].
pub async fn serve_some<I, S>(io: I, service: S, streams: u32) -> Result<(), hyper::Error>
where
    TokioIo<I>: Read + Write + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<Body>, Error = std::convert::Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    let service = hyper::service::service_fn(move |request| service.clone().oneshot(request));
    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_send_buf_size(1024 * 1024)
        .max_concurrent_streams(streams)
        .serve_connection(TokioIo::new(io), service)
        .await
}
