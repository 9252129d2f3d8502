//! Many calls on one stream (`Tools/Calls`): read as they come, begun in turns, and
//! refused where there are more than may be.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, OnceLock},
    task::{Context, Poll},
};

use futures_util::FutureExt as _;
use stockade_proto::{
    frames::{Frames, Pieces, Source},
    v1::{CallOutcome, CallRequest, CallsRequest, CallsResponse, calls_request},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{JoinHandle, coop::unconstrained},
};
use tonic::{Status, Streaming};

use super::{
    super::status,
    wire::{held_by, to_call, to_outcome},
};
use crate::{
    calls::{CallError, Calls, Outcome},
    capacity::{Charge, Held, Place, is_free, limits, took},
    gateway::{
        body::Reservation,
        connection::{Behind, Connection},
    },
};

/// What a stream may do before it is others' turn.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Turn {
    /// Messages it reads.
    reads: usize,
    /// Calls it begins.
    begins: usize,
}

/// For one that has stood in line.
const TURN: Turn = Turn { reads: 64, begins: 16 };
/// For one that has had nothing to do.
const FREE: Turn = Turn { reads: 16, begins: 4 };
/// What a turn of one that has had nothing to do is like: so many bytes of requests.
const SMALL: usize = 256;

type Answer = (CallsResponse, Held);

/// Answers the calls of a stream.
pub(super) fn answer(
    calls: Calls,
    incoming: Streaming<CallsRequest>,
    reservation: Reservation,
    connection: Arc<Connection>,
) -> Frames<Answers, Held> {
    let (sender, receiver) = mpsc::channel(limits::ANSWERS);
    let end: Arc<OnceLock<Status>> = Arc::default();
    let stream = Stream {
        calls,
        sender,
        room: Arc::new(Semaphore::new(limits::CALLS)),
        waiting: VecDeque::new(),
        ids: HashMap::new(),
        left: FREE,
        line: Place::default(),
        connection,
        behind: None,
    };
    let incoming = Messages { incoming, reservation };
    tokio::spawn(stream.serve(incoming, end.clone()));
    Frames::answers(Answers { answers: receiver, end })
}

/// Outcomes of the calls of one stream.
pub(super) struct Answers {
    answers: mpsc::Receiver<Answer>,
    /// Why no further calls were read, if that is not the client's wish.
    end: Arc<OnceLock<Status>>,
}

impl Source<Held> for Answers {
    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<(Pieces, Held)>> {
        let answer = std::task::ready!(self.answers.poll_recv(context));
        Poll::Ready(answer.map(|(answer, held)| (Pieces::of(&answer), held)))
    }

    fn status(&mut self) -> Status {
        self.end.get().cloned().unwrap_or_else(|| Status::ok(""))
    }
}

struct Stream {
    calls: Calls,
    sender: mpsc::Sender<Answer>,
    /// For calls that are under way.
    room: Arc<Semaphore>,
    /// Calls that have been read and not begun.
    waiting: VecDeque<(Asked, CallRequest)>,
    ids: HashMap<u64, Phase>,
    /// Of its turn.
    left: Turn,
    line: Place,
    connection: Arc<Connection>,
    /// There is more than was looked at.
    behind: Option<Behind>,
}

/// Where a call is.
enum Phase {
    Waiting,
    /// It waits, and its client does not want it any more.
    TakenBack,
    Running(JoinHandle<()>),
}

impl Phase {
    fn is_over(&self) -> bool {
        matches!(self, Phase::Running(task) if task.is_finished())
    }
}

/// What a client sends.
struct Messages {
    incoming: Streaming<CallsRequest>,
    reservation: Reservation,
}

type Message = Result<Option<CallsRequest>, Status>;

impl Messages {
    /// The next one, if it is there.
    fn now(&mut self) -> Option<Message> {
        unconstrained(self.incoming.message()).now_or_never()
    }

    fn paid(&self) -> Option<Charge> {
        self.reservation.next_message()
    }
}

impl Stream {
    async fn serve(mut self, mut messages: Messages, end: Arc<OnceLock<Status>>) {
        let why = self.read(&mut messages).await;
        if let Err(why) = why {
            let _ = end.set(why);
        }
        // What comes after is thrown away.
        drop(messages);
        self.behind = None;
        let closed = self.sender.clone();
        let begun = async {
            loop {
                self.begin();
                match self.waiting.is_empty() {
                    true => break,
                    false if self.may_begin() => self.pass(TURN).await,
                    false => drop(self.room.acquire().await),
                }
            }
        };
        tokio::select! {
            () = begun => {}
            () = closed.closed() => {}
        }
        let running = self.ids.into_values().filter_map(|phase| match phase {
            Phase::Running(task) => Some(task),
            Phase::Waiting | Phase::TakenBack => None,
        });
        let mut left: Vec<JoinHandle<()>> = running.collect();
        tokio::select! {
            _ = futures_util::future::join_all(&mut left) => {}
            // The client is gone: what it asked for is wanted by nobody.
            () = self.sender.closed() => left.iter().for_each(JoinHandle::abort),
        }
    }

    /// Reads until there are no more calls, or nobody takes answers; or says why nothing
    /// more is read. What was read is still answered.
    async fn read(&mut self, messages: &mut Messages) -> Result<(), Status> {
        loop {
            while self.left.reads > 0 {
                let Some(message) = messages.now() else {
                    self.behind = None;
                    break;
                };
                if !self.accept(message, messages)? {
                    return Ok(());
                }
            }
            self.begin();
            if self.left.reads == 0 || self.may_begin() {
                self.leave();
                self.pass(TURN).await;
                continue;
            }
            if self.waiting.is_empty() {
                self.left = FREE;
            }
            let message = tokio::select! {
                message = messages.incoming.message() => message,
                _ = self.room.acquire(), if !self.waiting.is_empty() => continue,
            };
            if !self.accept(message, messages)? {
                return Ok(());
            }
            // Thousands of streams may have a little to do at the same moment.
            match is_free() {
                true => took(SMALL),
                false => {
                    self.leave();
                    self.pass(FREE).await;
                }
            }
        }
    }

    /// False when no further one is wanted.
    fn accept(&mut self, message: Message, messages: &Messages) -> Result<bool, Status> {
        self.left.reads = self.left.reads.saturating_sub(1);
        // Nothing behind a broken message can be read.
        let Some(request) = message? else { return Ok(false) };
        match self.sender.clone().try_reserve_owned() {
            Ok(place) => self.take(request, Answering { place, paid: messages.paid() }),
            Err(mpsc::error::TrySendError::Full(_)) => {
                return Err(status::overloaded(format!(
                    "{} answers of this stream wait to be taken, as many as may. Read them \
                     while you send calls.",
                    limits::ANSWERS
                )));
            }
            Err(mpsc::error::TrySendError::Closed(_)) => return Ok(false),
        }
        Ok(true)
    }

    /// There is a call to be begun, and room for it.
    fn may_begin(&self) -> bool {
        !self.waiting.is_empty() && self.room.available_permits() > 0
    }

    /// There may be more to be read, and nothing else is read from the connection until
    /// that has been: HTTP/2 ends one with too many small frames that nobody has read.
    fn leave(&mut self) {
        if self.behind.is_none() {
            self.behind = Some(self.connection.behind());
        }
    }

    /// Lets others have their turn; the next one is such.
    async fn pass(&mut self, next: Turn) {
        let _one = self.connection.may_stand().await;
        self.line.pass(next == FREE).await;
        self.left = next;
    }

    fn take(&mut self, request: CallsRequest, answering: Answering) {
        let asked = Asked { id: request.id, answering };
        let phase = self.ids.get_mut(&asked.id).filter(|phase| !phase.is_over());
        match (request.frame, phase) {
            (Some(calls_request::Frame::Call(call)), Some(_)) => {
                let why = format!("the id {} of this stream is under way; use another", asked.id);
                asked.refuse(&call, CallError::InvalidArguments(why));
            }
            (Some(calls_request::Frame::Call(call)), None) => {
                if self.waiting.len() >= limits::CALLS_WAITING {
                    let why = format!(
                        "{} calls of this stream wait, as many as may. Send more when answers come.",
                        limits::CALLS_WAITING
                    );
                    return asked.refuse(&call, CallError::QueueFull(why));
                }
                self.ids.insert(asked.id, Phase::Waiting);
                self.waiting.push_back((asked, call));
            }
            (Some(calls_request::Frame::Cancel(_)), Some(phase)) => match phase {
                Phase::Running(task) => {
                    task.abort();
                    self.ids.remove(&asked.id);
                    asked.cancelled(true);
                }
                Phase::Waiting => *phase = Phase::TakenBack,
                Phase::TakenBack => {}
            },
            // It is over.
            (Some(calls_request::Frame::Cancel(_)), None) => {}
            (None, _) => {
                let why = "the message has neither a call nor a cancellation".to_owned();
                asked.refuse(&CallRequest::default(), CallError::InvalidArguments(why));
            }
        }
    }

    /// Begins some of the calls that wait.
    fn begin(&mut self) {
        if self.ids.len() >= self.waiting.len() + 2 * limits::CALLS {
            self.ids.retain(|_, phase| !phase.is_over());
        }
        while self.left.begins > 0 {
            let Ok(one) = self.room.clone().try_acquire_owned() else { break };
            let Some((asked, call)) = self.waiting.pop_front() else { break };
            self.left.begins -= 1;
            let id = asked.id;
            if let Some(Phase::TakenBack) = self.ids.remove(&id) {
                asked.cancelled(false);
            } else if let Some(task) = asked.run(self.calls.clone(), call, one) {
                self.ids.insert(id, Phase::Running(task));
            }
        }
    }
}

/// A place for an answer, and what the message takes of the budget until it is taken.
struct Answering {
    place: mpsc::OwnedPermit<Answer>,
    paid: Option<Charge>,
}

/// A call.
struct Asked {
    id: u64,
    answering: Answering,
}

impl Asked {
    /// Its outcome alone is told. None when there is no room for it.
    fn run(
        mut self,
        calls: Calls,
        call: CallRequest,
        one: OwnedSemaphorePermit,
    ) -> Option<JoinHandle<()>> {
        let (mut held, mut payer) = (Held::default(), None);
        if let Some(paid) = &mut self.answering.paid {
            if let Err(why) = paid.grow(limits::CALL) {
                self.refuse(&call, CallError::Overloaded(format!("Not now: {why}.")));
                return None;
            }
            // Back when it is over; what a message costs stays for the answer.
            payer = Some(paid.account().clone());
            held = Held::new(paid.split(paid.bytes().saturating_sub(limits::MESSAGE)));
        }
        let call = to_call(call, None, held, payer);
        // Boxed: tokio moves a task's future several times, and this one is large.
        Some(tokio::spawn(Box::pin(async move {
            let outcome = calls.run(call).await;
            drop(one);
            let held = held_by(&outcome);
            self.answer(to_outcome(outcome), held);
        })))
    }

    fn refuse(self, call: &CallRequest, why: CallError) {
        self.answer(to_outcome(Outcome::refused(&call.plugin, &call.tool, why)), Held::default());
    }

    /// Its client took it back; the plugin has heard of it, or not.
    fn cancelled(self, delivered: bool) {
        let error = CallError::Cancelled;
        let outcome = CallOutcome {
            error: error.to_string(),
            error_type: error.error_type().to_owned(),
            delivered,
            ..CallOutcome::default()
        };
        self.answer(outcome, Held::default());
    }

    fn answer(self, outcome: CallOutcome, held: Held) {
        let held = match self.answering.paid {
            Some(paid) => held.and(paid),
            None => held,
        };
        let answer = CallsResponse { id: self.id, outcome: Some(outcome) };
        self.answering.place.send((answer, held));
    }
}
