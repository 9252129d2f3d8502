//! `stockade.v1.Tools`: one call, one call with updates, many on one stream.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::http::{HeaderMap, HeaderValue, Request, Response, header};
use bytes::Bytes;
use hyper::body::Body as HttpBody;
use prost::Message;
use stockade_proto::{
    frames::{Frames, Pieces, Source},
    gate::{Gated, GatedDecoder},
    v1::{CallRequest, CallUpdate},
};
use tokio::sync::mpsc;
use tonic::{Status, Streaming, body::Body};

use super::{
    multiplexed,
    wire::{held_by, to_call, to_response, to_update},
};
use crate::{
    Supervisor,
    calls::{CallEvent, Calls},
    capacity::Held,
    gateway::{body::Reservation, connection::Connection, status},
    plugin::Update,
};

/// `stockade.v1.Tools`, written out: results go to the client as they are, and what they
/// take of the budget is kept until they have been sent.
#[derive(Clone)]
pub(crate) struct ToolsService {
    calls: Calls,
    most: usize,
}

impl ToolsService {
    pub(super) fn new(supervisor: &Supervisor, most: usize) -> Self {
        ToolsService { calls: supervisor.calls().clone(), most }
    }

    /// Answers a request for one of the methods.
    pub(in crate::gateway) async fn answer<B>(
        &self,
        request: Request<B>,
        reservation: Reservation,
        connection: &Arc<Connection>,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let (head, body) = request.into_parts();
        let method = head.uri.path().strip_prefix("/stockade.v1.Tools/").unwrap_or_default();
        let timeout = header_timeout(&head.headers);
        let answered = match method {
            "Call" => self.call(body, timeout, reservation).await,
            "CallStream" => self.call_stream(body, timeout, reservation).await,
            "Calls" => Ok(self.calls(body, reservation, connection.clone())),
            _ => Err(Status::unimplemented("stockade.v1.Tools has no such method")),
        };
        answered.unwrap_or_else(Status::into_http)
    }

    fn read<M, B>(&self, body: B) -> Streaming<M>
    where
        M: Message + Default + Gated + Send + 'static,
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let decoder = GatedDecoder::<M>::default();
        Streaming::new_request(decoder, body, None, Some(self.most))
    }

    async fn only<M, B>(&self, body: B) -> Result<M, Status>
    where
        M: Message + Default + Gated + Send + 'static,
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let message = self.read::<M, B>(body).message().await?;
        message.ok_or_else(|| Status::invalid_argument("the request has no message"))
    }

    async fn call<B>(
        &self,
        body: B,
        timeout: Option<Duration>,
        reservation: Reservation,
    ) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let request = self.only::<CallRequest, B>(body).await?;
        let (held, payer) = (reservation.take_all(), reservation.account());
        let outcome = self.calls.run(to_call(request, timeout, held, Some(payer))).await;
        if let Err(error) = &outcome.result {
            return Err(status::grpc(&outcome, error));
        }
        let held = held_by(&outcome);
        let pieces = Pieces::of(&to_response(outcome));
        Ok(respond(Frames::answers(Some((pieces, held)))))
    }

    async fn call_stream<B>(
        &self,
        body: B,
        timeout: Option<Duration>,
        reservation: Reservation,
    ) -> Result<Response<Body>, Status>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let request = self.only::<CallRequest, B>(body).await?;
        let (held, payer) = (reservation.take_all(), reservation.account());
        let events = self.calls.stream(to_call(request, timeout, held, Some(payer)));
        Ok(respond(Frames::answers(Updates(events))))
    }

    fn calls<B>(
        &self,
        body: B,
        reservation: Reservation,
        connection: Arc<Connection>,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes, Error = Status> + Send + 'static,
    {
        let incoming = self.read(body);
        respond(multiplexed::answer(self.calls.clone(), incoming, reservation, connection))
    }
}

fn respond<S>(frames: Frames<S, Held>) -> Response<Body>
where
    S: Source<Held> + Unpin + Send + 'static,
{
    let mut response = Response::new(Body::new(frames));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    response
}

/// What a streamed call tells.
struct Updates(mpsc::Receiver<CallEvent>);

impl Source<Held> for Updates {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(Pieces, Held)>> {
        let event = std::task::ready!(self.0.poll_recv(context));
        Poll::Ready(event.map(|event| {
            let held = match &event {
                CallEvent::Update(Update::Item(.., held)) => held.clone(),
                CallEvent::Update(Update::Progress(..)) => Held::default(),
                CallEvent::Outcome(outcome) => held_by(outcome),
            };
            (Pieces::of(&CallUpdate { update: Some(to_update(event)) }), held)
        }))
    }
}

/// The `grpc-timeout` header: a number and a unit.
fn header_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    // Eight digits at most, says the protocol.
    let number: u64 = Some(number).filter(|number| number.len() <= 8)?.parse().ok()?;
    match unit {
        "H" => number.checked_mul(3600).map(Duration::from_secs),
        "M" => number.checked_mul(60).map(Duration::from_secs),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}
