//! Bodies of requests as they come: each byte is counted before it is kept, and a
//! body that stops coming is given up.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::http::Response;
use bytes::{Bytes, BytesMut};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::{
    sync::watch,
    time::{Instant, Sleep},
};
use tonic::Status;

use super::status;
use crate::capacity::{Account, Charge, Exhausted, Held, limits};

/// What a request's body takes of the budget; an extension of the request. Whoever
/// keeps the body takes it over.
#[derive(Clone, Debug)]
pub(super) struct Reservation(Arc<Mutex<Paid>>);

#[derive(Debug)]
struct Paid {
    /// For what comes.
    charge: Charge,
    /// For each message that has come ([`Form::Messages`]).
    messages: VecDeque<Charge>,
}

impl Reservation {
    fn paid(&self) -> MutexGuard<'_, Paid> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Pays for more than has come.
    pub(super) fn pay_more(&self, bytes: usize) -> Result<(), Exhausted> {
        self.paid().charge.grow(bytes)
    }

    /// Takes over all that is there.
    pub(super) fn take_all(&self) -> Held {
        Held::new(self.paid().charge.split(usize::MAX))
    }

    /// Whose it is.
    pub(super) fn account(&self) -> Account {
        self.paid().charge.account().clone()
    }

    /// Takes over what the next message costs; to be asked once for each.
    pub(super) fn next_message(&self) -> Option<Charge> {
        self.paid().messages.pop_front()
    }
}

/// How a body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// HTTP: from its first byte to its last.
    Plain,
    /// gRPC with one message.
    Message,
    /// gRPC with messages that come when they come.
    Messages,
}

/// How long it may be (each message, with gRPC).
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    pub(super) bytes: usize,
    /// An operator can change it.
    pub(super) is_call: bool,
}

/// A body that is counted and bounded in size and time. Its errors are statuses.
pub(super) struct Counted<B = Incoming> {
    inner: B,
    reservation: Reservation,
    form: Form,
    most: Most,
    read: usize,
    /// Of the message that is coming.
    message: Message,
    begun: bool,
    /// The longest wait for more of it ([`limits::BODY_PAUSE`]), and its end.
    pause: Duration,
    patience: Option<Pin<Box<Sleep>>>,
    /// When its first byte came, and how many have come.
    since: Option<Instant>,
    came: u64,
    over: bool,
    /// True when the daemon has nothing more to say; waited for by a body that has to wait.
    ending: watch::Receiver<bool>,
    end: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

/// Where in a gRPC message the body is.
#[derive(Debug, Default)]
struct Message {
    head: [u8; 5],
    head_read: usize,
    left: usize,
}

impl<B: Body<Data = Bytes>> Counted<B> {
    /// A body of `most` bytes.
    ///
    /// # Errors
    /// It says that it is longer, or there is no room for it.
    pub(super) fn new(
        inner: B,
        account: &Account,
        form: Form,
        most: Most,
        ending: &watch::Receiver<bool>,
    ) -> Result<(Self, Reservation), Status> {
        let length = inner.size_hint().exact().map(|length| length as usize);
        let said = length.filter(|_| form == Form::Plain).unwrap_or(0);
        if said > most.bytes {
            return Err(too_long(form, said, most));
        }
        // Refused before it is read; paid for as it comes, for many say much and send little.
        drop(account.charge(said).map_err(|why| refuse(form, why))?);
        let charge = account.charge(0).map_err(|why| refuse(form, why))?;
        let paid = Paid { charge, messages: VecDeque::new() };
        let reservation = Reservation(Arc::new(Mutex::new(paid)));
        let body = Counted {
            inner,
            reservation: reservation.clone(),
            form,
            most,
            read: 0,
            message: Message::default(),
            begun: false,
            pause: limits::BODY_PAUSE,
            patience: None,
            since: None,
            came: 0,
            over: false,
            ending: ending.clone(),
            end: None,
        };
        Ok((body, reservation))
    }

    fn take(&mut self, data: &Bytes) -> Result<(), Status> {
        self.begun = true;
        if self.form == Form::Plain {
            self.read += data.len();
            if self.read > self.most.bytes {
                return Err(too_long(self.form, self.read, self.most));
            }
            let grown = self.reservation.paid().charge.grow(data.len());
            return grown.map_err(|why| refuse(self.form, why));
        }
        let mut rest = &data[..];
        while !rest.is_empty() {
            let message = &mut self.message;
            if message.left > 0 {
                let here = message.left.min(rest.len());
                message.left -= here;
                let grown = self.reservation.paid().charge.grow(here);
                grown.map_err(|why| refuse(self.form, why))?;
                rest = &rest[here..];
                self.came_whole();
                continue;
            }
            message.head[message.head_read] = rest[0];
            message.head_read += 1;
            rest = &rest[1..];
            if message.head_read == message.head.len() {
                message.head_read = 0;
                let [_, length @ ..] = message.head;
                message.left = u32::from_be_bytes(length) as usize;
                if message.left > self.most.bytes {
                    return Err(too_long(self.form, message.left, self.most));
                }
                // Refused before it is read; paid for as it comes, but for what it costs
                // beside its bytes.
                let cost = if self.form == Form::Messages { limits::MESSAGE } else { 0 };
                let mut paid = self.reservation.paid();
                let grown = paid.charge.grow(message.left + cost);
                grown.map_err(|why| refuse(self.form, why))?;
                drop(paid.charge.split(message.left));
                drop(paid);
                self.came_whole();
            }
        }
        Ok(())
    }

    /// A message of many may be complete.
    fn came_whole(&self) {
        if self.form == Form::Messages && self.message.left == 0 {
            let mut paid = self.reservation.paid();
            let charge = paid.charge.split(usize::MAX);
            paid.messages.push_back(charge);
        }
    }

    /// It comes byte by byte, so that its connection keeps its place for nothing.
    fn crawls(&mut self) -> bool {
        if self.form == Form::Messages {
            return false;
        }
        let Some(since) = self.since else {
            self.since = Some(Instant::now());
            return false;
        };
        let took = since.elapsed();
        if took <= self.pause {
            return false;
        }
        // Each stretch by itself: whoever has sent much may not crawl for hours.
        let due = took.as_secs_f64() * limits::BODY_RATE as f64;
        self.since = Some(Instant::now());
        (std::mem::take(&mut self.came) as f64) < due
    }

    /// Of one whose messages come when they come the answer tells.
    fn has_ended(&mut self, context: &mut Context<'_>) -> bool {
        if self.form == Form::Messages {
            return false;
        }
        let end = self.end.get_or_insert_with(|| {
            let mut ending = self.ending.clone();
            Box::pin(async move {
                let _ = ending.wait_for(|ending| *ending).await;
            })
        });
        end.as_mut().poll(context).is_ready()
    }

    /// More must come soon.
    fn is_awaited(&self) -> bool {
        match self.form {
            Form::Plain => true,
            Form::Message | Form::Messages => {
                let within = self.message.left > 0 || self.message.head_read > 0;
                within || (self.form == Form::Message && !self.begun)
            }
        }
    }
}

/// A request that is not read further.
pub(super) fn refused(is_grpc: bool, status: &Status) -> Response<tonic::body::Body> {
    match is_grpc {
        true => status.clone().into_http(),
        false => super::http::refused_body(status).map(tonic::body::Body::new),
    }
}

/// There is no room even for its head.
pub(super) fn no_room(is_grpc: bool, why: Exhausted) -> Response<tonic::body::Body> {
    let form = if is_grpc { Form::Message } else { Form::Plain };
    refused(is_grpc, &refuse(form, why))
}

/// What an exhausted budget is. What can never fit is no reason to try again (413).
fn refuse(form: Form, why: Exhausted) -> Status {
    let text = format!("the request was not read: {why}");
    match (form, why) {
        (Form::Plain, Exhausted::Never { .. }) => Status::out_of_range(text),
        _ => status::of_room(text, why),
    }
}

fn too_long(form: Form, length: usize, most: Most) -> Status {
    let what = match most.is_call {
        true => ": max_request (stockade.toml) and what its encoding adds. Send less, or raise it",
        false => " of a request that is no call of a tool. Send less",
    };
    let allowed = most.bytes;
    let text = format!("the request has {length} bytes or more; {allowed} are allowed{what}");
    match form {
        Form::Plain => Status::out_of_range(text),
        Form::Message | Form::Messages => status::too_large(text),
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Counted<B>
where
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        let failure = match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.patience = None;
                self.came += frame.data_ref().map_or(0, Bytes::len) as u64;
                if self.crawls() {
                    self.over = true;
                    let why = format!(
                        "the body comes too slowly: {} bytes a second at least",
                        limits::BODY_RATE
                    );
                    return Poll::Ready(Some(Err(Status::deadline_exceeded(why))));
                }
                match frame.data_ref().map_or(Ok(()), |data| self.take(&data.clone())) {
                    Ok(()) => return Poll::Ready(Some(Ok(frame))),
                    Err(refused) => refused,
                }
            }
            Poll::Ready(Some(Err(error))) => {
                Status::cancelled(format!("the body ended too early: {error}"))
            }
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Pending if self.has_ended(context) => {
                Status::unavailable("the daemon has ended; send the request again to the next one")
            }
            Poll::Pending => {
                if !self.is_awaited() {
                    self.patience = None;
                    return Poll::Pending;
                }
                let pause = self.pause;
                let patience =
                    self.patience.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
                ready!(patience.as_mut().poll(context));
                let seconds = pause.as_secs();
                Status::deadline_exceeded(format!("no byte of the body came for {seconds} s"))
            }
        };
        self.over = true;
        Poll::Ready(Some(Err(failure)))
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// Reads a body to its end, copying each part as it comes.
pub(super) async fn read<B>(body: B) -> Result<Bytes, B::Error>
where
    B: Body<Data = Bytes>,
{
    let expected = body.size_hint().exact().unwrap_or(0) as usize;
    let mut body = std::pin::pin!(body);
    let (mut first, mut all) = (None, BytesMut::new());
    while let Some(frame) = std::future::poll_fn(|context| body.as_mut().poll_frame(context)).await
    {
        let Ok(data) = frame?.into_data() else { continue };
        if first.is_none() && all.is_empty() {
            // The only part, most often: nothing is copied then.
            first = Some(data);
            continue;
        }
        if let Some(first) = first.take() {
            all.reserve(expected.max(first.len() + data.len()));
            all.extend_from_slice(&first);
        }
        all.extend_from_slice(&data);
    }
    Ok(first.unwrap_or_else(|| all.freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capacity::Budget;

    /// Parts as they come; then it ends, or stops coming.
    struct Parts(VecDeque<Bytes>, bool);

    impl Body for Parts {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            match self.0.pop_front() {
                Some(part) => Poll::Ready(Some(Ok(Frame::data(part)))),
                None if self.1 => Poll::Pending,
                None => Poll::Ready(None),
            }
        }
    }

    const PAUSE: Duration = Duration::from_millis(100);

    /// Of a daemon that goes on.
    fn ending() -> watch::Receiver<bool> {
        let (sender, receiver) = watch::channel(false);
        std::mem::forget(sender);
        receiver
    }

    fn of_call(bytes: usize) -> Most {
        Most { bytes, is_call: true }
    }

    fn impatient<B>(made: (Counted<B>, Reservation)) -> (Counted<B>, Reservation) {
        (Counted { pause: PAUSE, ..made.0 }, made.1)
    }

    fn parts_of(list: &[&[u8]]) -> Parts {
        parts(list, false)
    }

    fn parts(list: &[&[u8]], stalls: bool) -> Parts {
        Parts(list.iter().map(|part| Bytes::copy_from_slice(part)).collect(), stalls)
    }

    #[tokio::test]
    async fn bodies_are_counted_bounded_and_given_up() {
        let budget = Budget::new(1600);
        let account = budget.of_connection();
        let counted = |list: &[&[u8]], stalls, form, most| {
            impatient(
                Counted::new(parts(list, stalls), &account, form, of_call(most), &ending())
                    .unwrap(),
            )
        };
        let (body, reservation) = counted(&[b"abc", b"def"], false, Form::Plain, 10);
        assert_eq!(read(body).await.unwrap(), "abcdef");
        assert_eq!(budget.used(), 6);
        drop(reservation.take_all());
        assert_eq!(budget.used(), 0);
        let (body, _) = counted(&[b"abcdef", b"ghijkl"], false, Form::Plain, 10);
        assert_eq!(read(body).await.unwrap_err().code(), tonic::Code::OutOfRange);
        let (body, _) = counted(&[b"abc"], true, Form::Plain, 10);
        assert_eq!(read(body).await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
        let (body, _) = counted(&[&[0; 300], &[0; 300]], false, Form::Plain, 1000);
        // Not with nothing else there either.
        assert_eq!(read(body).await.unwrap_err().code(), tonic::Code::OutOfRange);
        // A message is paid for as it comes, also when its head comes in pieces.
        let (body, reservation) = counted(&[&[0, 0, 0], &[0, 100, 7]], true, Form::Message, 1000);
        assert_eq!(read(body).await.unwrap_err().code(), tonic::Code::DeadlineExceeded);
        assert_eq!(reservation.paid().charge.bytes(), 1);
        drop(reservation);
        let (body, _) = counted(&[&[0, 0, 0, 2, 0]], true, Form::Message, 1000);
        assert_eq!(read(body).await.unwrap_err().code(), tonic::Code::ResourceExhausted);
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn each_message_of_many_is_paid_for_until_it_is_taken_over() {
        let budget = Budget::new(1 << 20);
        let list = parts_of(&[&[0, 0, 0, 0, 3, 1, 2], &[3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], &[9]]);
        let (body, reservation) = {
            let account = budget.of_connection();
            Counted::new(list, &account, Form::Messages, of_call(1000), &ending()).unwrap()
        };
        assert_eq!(read(body).await.unwrap().len(), 19);
        assert_eq!(budget.used(), 3 * limits::MESSAGE + 4);
        let message = || reservation.next_message().map(|paid| paid.bytes());
        assert_eq!(message(), Some(limits::MESSAGE + 3));
        assert_eq!((message(), message()), (Some(limits::MESSAGE), Some(limits::MESSAGE + 1)));
        assert_eq!((message(), budget.used()), (None, 0));
    }

    #[tokio::test]
    async fn a_body_that_trickles_is_given_up() {
        let account = Budget::new(1 << 30).of_connection();
        let trickle = |first: usize, parts: usize, bytes: usize| {
            let mut list = vec![vec![0; first]];
            list.extend((0..parts).map(|_| vec![0; bytes]));
            let list: Vec<&[u8]> = list.iter().map(Vec::as_slice).collect();
            let body = {
                let parts = parts_of(&list);
                Counted::new(parts, &account, Form::Plain, of_call(1 << 20), &ending()).unwrap()
            };
            let (body, _) = impatient(body);
            async move {
                let mut body = std::pin::pin!(body);
                loop {
                    tokio::time::sleep(PAUSE / 3).await;
                    let next = std::future::poll_fn(|context| body.as_mut().poll_frame(context));
                    match next.await {
                        Some(Ok(_)) => {}
                        Some(Err(status)) => return Some(status.code()),
                        None => return None,
                    }
                }
            }
        };
        assert_eq!(trickle(1, 9, 1).await, Some(tonic::Code::DeadlineExceeded));
        assert_eq!(trickle(20_000, 9, 20_000).await, None);
        assert_eq!(trickle(500_000, 9, 1).await, Some(tonic::Code::DeadlineExceeded));
    }
}
