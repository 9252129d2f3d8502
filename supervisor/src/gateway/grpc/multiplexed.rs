//! Many calls on one stream (`Tools/Calls`): read as they come, begun in turns, and
//! refused where there are more than may be.

use std::{
    collections::{HashMap, HashSet, VecDeque},
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
    task::{JoinHandle, coop::unconstrained, yield_now},
};
use tonic::{Status, Streaming};

use super::wire::{held_by, to_call, to_outcome};
use crate::{
    calls::{CallError, Calls, Outcome},
    capacity::{Charge, Held, limits},
    gateway::body::Reservation,
};

/// Messages that are read at once: more than one step of a connection brings, so that
/// none stays unread. HTTP/2 ends a connection with too many small frames that nobody
/// has read.
const READ: usize = 4096;
/// Calls that are begun at once.
const BEGUN: usize = 32;

type Answer = (CallsResponse, Held);

/// Answers the calls of a stream.
pub(super) fn answer(
    calls: Calls,
    incoming: Streaming<CallsRequest>,
    reservation: Option<Reservation>,
) -> Frames<Answers, Held> {
    let (sender, receiver) = mpsc::channel(limits::ANSWERS);
    let end: Arc<OnceLock<Status>> = Arc::default();
    let stream = Stream {
        calls,
        sender,
        room: Arc::new(Semaphore::new(limits::CALLS)),
        waiting: VecDeque::new(),
        taken_back: HashSet::new(),
        running: HashMap::new(),
    };
    tokio::spawn(stream.serve(incoming, reservation, end.clone()));
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
    /// Of those, which their client does not want any more.
    taken_back: HashSet<u64>,
    running: HashMap<u64, JoinHandle<()>>,
}

type Message = Result<Option<CallsRequest>, Status>;

impl Stream {
    async fn serve(
        mut self,
        mut incoming: Streaming<CallsRequest>,
        reservation: Option<Reservation>,
        end: Arc<OnceLock<Status>>,
    ) {
        let mut read = 0;
        loop {
            let Some(message) = self.next(&mut incoming, read).await else {
                read = 0;
                self.begin().await;
                continue;
            };
            read += 1;
            let request = match message {
                Ok(Some(request)) => request,
                // No more calls; those that were read are still answered.
                Ok(None) => break,
                // Nothing behind a broken message can be read: what came before it is
                // answered, and the stream says why it ends.
                Err(status) => {
                    let _ = end.set(status);
                    break;
                }
            };
            let paid = reservation.as_ref().and_then(Reservation::next_message);
            match self.sender.clone().try_reserve_owned() {
                Ok(place) => self.take(request, Answering { place, paid }),
                Err(mpsc::error::TrySendError::Full(_)) => {
                    let _ = end.set(Status::resource_exhausted(format!(
                        "{} answers of this stream wait to be taken, as many as may. Read them \
                         while you send calls.",
                        limits::ANSWERS
                    )));
                    break;
                }
                Err(mpsc::error::TrySendError::Closed(_)) => break,
            }
        }
        let closed = self.sender.clone();
        while !self.waiting.is_empty() {
            tokio::select! {
                _ = self.room.acquire() => {}
                () = closed.closed() => break,
            }
            self.begin().await;
        }
        let mut left: Vec<JoinHandle<()>> = self.running.into_values().collect();
        tokio::select! {
            _ = futures_util::future::join_all(&mut left) => {}
            // The client is gone: what it asked for is wanted by nobody.
            () = self.sender.closed() => left.iter().for_each(JoinHandle::abort),
        }
    }

    /// What came next; None when it is time to begin calls.
    async fn next(&self, incoming: &mut Streaming<CallsRequest>, read: usize) -> Option<Message> {
        if self.waiting.is_empty() {
            return Some(incoming.message().await);
        }
        if read >= READ {
            return None;
        }
        // What is there is read before anything is begun.
        if let Some(message) = unconstrained(incoming.message()).now_or_never() {
            return Some(message);
        }
        tokio::select! {
            message = incoming.message() => Some(message),
            _ = self.room.acquire() => None,
        }
    }

    fn take(&mut self, request: CallsRequest, answering: Answering) {
        let id = request.id;
        match request.frame {
            Some(calls_request::Frame::Call(call)) => {
                let asked = Asked { id, answering };
                if self.waiting.len() < limits::CALLS_WAITING {
                    return self.waiting.push_back((asked, call));
                }
                let why = format!(
                    "{} calls of this stream wait, as many as may. Send more when answers come.",
                    limits::CALLS_WAITING
                );
                asked.refuse(&call, CallError::QueueFull(why));
            }
            Some(calls_request::Frame::Cancel(_)) => match self.running.remove(&id) {
                Some(task) if !task.is_finished() => {
                    task.abort();
                    Asked { id, answering }.cancelled(true);
                }
                Some(_) => {}
                None if self.taken_back.len() < self.waiting.len() => {
                    self.taken_back.insert(id);
                }
                None => {}
            },
            None => {}
        }
    }

    /// Begins some of the calls that wait; then it is others' turn.
    async fn begin(&mut self) {
        for _ in 0..BEGUN {
            let Ok(one) = self.room.clone().try_acquire_owned() else { break };
            let Some((asked, call)) = self.waiting.pop_front() else { break };
            if self.taken_back.remove(&asked.id) {
                asked.cancelled(false);
                continue;
            }
            if self.running.len() >= 2 * limits::CALLS {
                self.running.retain(|_, task| !task.is_finished());
            }
            if let Some((id, task)) = asked.run(self.calls.clone(), call, one) {
                self.running.insert(id, task);
            }
        }
        if self.waiting.is_empty() {
            self.taken_back.clear();
        }
        yield_now().await;
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
    ) -> Option<(u64, JoinHandle<()>)> {
        let id = self.id;
        let mut held = Held::default();
        if let Some(paid) = &mut self.answering.paid {
            if let Err(why) = paid.grow(limits::CALL) {
                self.refuse(&call, CallError::Overloaded(format!("Not now: {why}.")));
                return None;
            }
            // Back when it is over; what a message costs stays for the answer.
            held = Held::new(paid.split(paid.bytes().saturating_sub(limits::MESSAGE)));
        }
        let call = to_call(call, None, held);
        // Boxed: tokio moves a task's future several times, and this one is large.
        let task = tokio::spawn(Box::pin(async move {
            let outcome = calls.run(call).await;
            drop(one);
            let held = held_by(&outcome);
            self.answer(to_outcome(outcome), held);
        }));
        Some((id, task))
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
