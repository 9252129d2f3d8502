//! An answer on its way: what it takes of the budget, and whether its client takes it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum::http::{HeaderMap, Response, StatusCode};
use bytes::Bytes;
use futures_util::FutureExt as _;
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::watch;
use tonic::body::Body;

use super::{
    connection::{Active, Taken},
    house::{Guest, House},
    questions::Turn,
    refusal::refuse,
    status,
    unread::Unread,
    whole::Unencoded,
};
use crate::capacity::Charge;

/// What an answer is, as its request says it.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) is_grpc: bool,
    /// Charged already.
    pub(super) is_call: bool,
    /// Sent without room, too, to who reads.
    pub(super) is_health: bool,
    /// Sent without its body.
    pub(super) is_head: bool,
}

/// Whose answer it is.
pub(super) struct Owner {
    pub(super) house: Arc<House>,
    pub(super) guest: Arc<Guest>,
    pub(super) active: Active,
    pub(super) _unread: Unread,
    pub(super) is_question: bool,
    pub(super) _turn: Turn,
    /// What the request itself takes.
    pub(super) _head: Option<Charge>,
}

/// An answer's body. The request is over when it has been written.
pub(super) struct Answer {
    inner: Body,
    /// Of `inner`, to know its size.
    first: Option<Frame<Bytes>>,
    taken: Taken,
    is_grpc: bool,
    /// Of one that has had to wait: resolves when there is nothing more to wait for.
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    over: bool,
    /// Of one whose size is known; it goes with its bytes. Else each part has its own.
    charge: Option<Charge>,
    in_parts: bool,
    owner: Owner,
}

impl Answer {
    /// Charges what is known of its size.
    pub(super) async fn of(answer: Response<Body>, owner: Owner, kind: Kind) -> Response<Body> {
        let Kind { is_grpc, is_call, is_health, is_head } = kind;
        let (mut head, mut inner) = answer.into_parts();
        if is_head {
            inner = Body::empty();
        }
        let mut first = None;
        if is_grpc && owner.is_question {
            let paid = head.extensions.remove::<Unencoded>();
            if let Some(paid) = &paid {
                // By who has made it: it may be large.
                let encoded = owner.house.crew.run(paid.lane.clone(), move || {
                    let frame = inner.frame().now_or_never().flatten();
                    (inner, frame)
                });
                match encoded.await {
                    Ok((rest, frame)) => (inner, first) = (rest, frame.and_then(Result::ok)),
                    Err(why) => {
                        return refuse(true, StatusCode::SERVICE_UNAVAILABLE, &why.to_string());
                    }
                }
            }
            if first.is_none() {
                // The one message of it, encoded.
                first = inner.frame().await.and_then(Result::ok);
            }
        }
        let encoded = first.as_ref().and_then(Frame::data_ref).map(Bytes::len);
        let size = encoded.or_else(|| inner.size_hint().exact().map(|size| size as usize));
        let charge = match size.filter(|_| !is_call).map(|size| owner.guest.account.charge(size)) {
            None => None,
            Some(Ok(charge)) => Some(charge),
            Some(Err(_)) if is_health && owner.active.connection().is_read() => None,
            Some(Err(why)) => {
                let why = format!("the answer was not sent: {why}");
                return refuse(is_grpc, StatusCode::SERVICE_UNAVAILABLE, &why);
            }
        };
        let taken = owner.active.connection().answer();
        let in_parts = !is_call && !is_health && size.is_none();
        let (end, over) = (None, false);
        let answer = Answer { inner, first, taken, is_grpc, end, over, charge, in_parts, owner };
        Response::from_parts(head, Body::new(answer))
    }
}

/// The bytes, which hold the charge until they have been sent.
fn held_by(bytes: Bytes, charge: Charge) -> Bytes {
    struct Paid(Bytes, #[expect(dead_code, reason = "given back with the bytes")] Charge);
    impl AsRef<[u8]> for Paid {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }
    Bytes::from_owner(Paid(bytes, charge))
}

type Part = Option<Result<Frame<Bytes>, tonic::Status>>;

impl Answer {
    /// The part with its charge, if there is room for it.
    fn paid(&mut self, part: Part) -> Part {
        let charge = match (&part, self.in_parts) {
            (Some(Ok(frame)), true) if frame.is_data() => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                match self.owner.guest.account.charge(bytes) {
                    Ok(charge) => charge,
                    Err(why) => {
                        let text = format!("the stream was ended: {why}");
                        let why = status::of_room(text, why);
                        // HTTP has no other way to say that this is not all.
                        return self.ends(&why).or(Some(Err(why)));
                    }
                }
            }
            (Some(Ok(frame)), false) if frame.is_data() && self.charge.is_some() => {
                self.charge.take()?
            }
            _ => return part,
        };
        part.map(|part| part.map(|frame| frame.map_data(|bytes| held_by(bytes, charge))))
    }

    /// A stream of gRPC that is cut off looks like a broken connection.
    fn ends(&mut self, why: &tonic::Status) -> Part {
        self.over = true;
        self.is_grpc.then(|| {
            let mut trailers = HeaderMap::new();
            why.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
        })
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = tonic::Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, tonic::Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let polled = match self.first.take() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None => Pin::new(&mut self.inner).poll_frame(context),
        };
        if let Poll::Ready(frame) = polled {
            self.taken.took();
            return Poll::Ready(self.paid(frame));
        }
        self.taken.waits();
        let this = &mut *self;
        let end = this.end.get_or_insert_with(|| Box::pin(ended(this.owner.house.ending.clone())));
        ready!(end.as_mut().poll(context));
        Poll::Ready(self.ends(&tonic::Status::unavailable("the daemon has ended")))
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.first.is_none() && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.first {
            None => self.inner.size_hint(),
            Some(_) => SizeHint::default(),
        }
    }
}

async fn ended(mut ending: watch::Receiver<bool>) {
    // Whoever could have said it is gone otherwise.
    let _ = ending.wait_for(|ending| *ending).await;
}
