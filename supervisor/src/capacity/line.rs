//! The line in which those stand who move much: one of them goes on at a time, when
//! everybody who moves little has been served.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{
    runtime::{Handle, Id, RuntimeFlavor},
    task::yield_now,
};

thread_local! {
    /// Of the runtime that runs on this thread.
    static LINE: RefCell<Option<Line>> = const { RefCell::new(None) };
}

#[derive(Debug)]
struct Line {
    of: Id,
    waiting: VecDeque<Arc<Ticket>>,
    /// A task calls them one by one.
    led: bool,
}

#[derive(Debug)]
struct Ticket {
    called: AtomicBool,
    waker: Mutex<Waker>,
}

impl Ticket {
    fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.waker.lock().unwrap_or_else(PoisonError::into_inner).wake_by_ref();
    }
}

/// Somebody's place in the line of its thread's runtime; at first nobody stands there.
#[derive(Debug, Default)]
pub struct Place(Option<Arc<Ticket>>);

impl Place {
    /// Goes to the end of the line.
    pub fn join(&mut self, context: &mut Context<'_>) {
        let waker = Mutex::new(context.waker().clone());
        let ticket = Arc::new(Ticket { called: AtomicBool::new(false), waker });
        match Handle::try_current() {
            Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread => {
                stand(&runtime, ticket.clone());
            }
            // Others run on other threads meanwhile.
            _ => {
                ticket.called.store(true, Ordering::Release);
                let mut yielding = std::pin::pin!(yield_now());
                if yielding.as_mut().poll(context).is_ready() {
                    context.waker().wake_by_ref();
                }
            }
        }
        self.0 = Some(ticket);
    }

    /// Ready when it was called, or does not stand there.
    pub fn poll_called(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(ticket) = &self.0 else { return Poll::Ready(()) };
        {
            let mut waker = ticket.waker.lock().unwrap_or_else(PoisonError::into_inner);
            waker.clone_from(context.waker());
        }
        if !ticket.called.load(Ordering::Acquire) {
            return Poll::Pending;
        }
        self.0 = None;
        Poll::Ready(())
    }
}

fn stand(runtime: &Handle, ticket: Arc<Ticket>) {
    LINE.with_borrow_mut(|line| {
        let of = runtime.id();
        // One that ended here before has left nobody who still waits.
        if line.as_ref().is_none_or(|line| line.of != of) {
            *line = Some(Line { of, waiting: VecDeque::new(), led: false });
        }
        if let Some(line) = line {
            line.waiting.push_back(ticket);
            if !std::mem::replace(&mut line.led, true) {
                runtime.spawn(lead(of));
            }
        }
    });
}

/// Calls one after the other. Between two of them the runtime runs all that is ready
/// and looks at its sockets.
async fn lead(of: Id) {
    let next = || {
        LINE.with_borrow_mut(|line| {
            let line = line.as_mut().filter(|line| line.of == of)?;
            let next = line.waiting.pop_front();
            line.led = next.is_some();
            next
        })
    };
    loop {
        yield_now().await;
        // Who has gone meanwhile costs nobody a turn.
        let Some(ticket) = std::iter::from_fn(next).find(|ticket| Arc::strong_count(ticket) > 1)
        else {
            return;
        };
        ticket.call();
    }
}
