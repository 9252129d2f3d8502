//! The line in which those stand who move much: one of them goes on at a time, when
//! everybody who moves little has been served.

use std::{
    collections::{HashMap, VecDeque},
    future::{Future as _, poll_fn},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tokio::{
    runtime::{Handle, Id, RuntimeFlavor},
    task::yield_now,
};

/// Who stands in the line of which runtime; each line that is here is led by a task.
static LINES: LazyLock<Mutex<HashMap<Id, VecDeque<Arc<Ticket>>>>> = LazyLock::new(Mutex::default);

fn lines() -> MutexGuard<'static, HashMap<Id, VecDeque<Arc<Ticket>>>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Somebody's place in the line of its runtime; at first nobody stands there.
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

    /// Goes through the line. Who gives it up goes on from the same place.
    pub async fn pass(&mut self) {
        let mut stands = self.0.is_some();
        poll_fn(|context| {
            if !std::mem::replace(&mut stands, true) {
                self.join(context);
            }
            self.poll_called(context)
        })
        .await;
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
    let mut lines = lines();
    if let Some(line) = lines.get_mut(&runtime.id()) {
        line.push_back(ticket);
        return;
    }
    lines.insert(runtime.id(), VecDeque::from([ticket]));
    drop(lines);
    runtime.spawn(Leader { of: runtime.id(), leads: true }.lead());
}

/// Leads a line. When its runtime ends before it, those who stand there may go.
struct Leader {
    of: Id,
    leads: bool,
}

impl Leader {
    /// Calls one after the other. Between two of them the runtime runs all that is ready
    /// and looks at its sockets.
    async fn lead(mut self) {
        loop {
            yield_now().await;
            let Some(ticket) = self.next() else { return };
            ticket.call();
        }
    }

    /// None ends the line.
    fn next(&mut self) -> Option<Arc<Ticket>> {
        let mut lines = lines();
        let line = lines.get_mut(&self.of)?;
        // Who has gone meanwhile costs nobody a turn.
        let next =
            std::iter::from_fn(|| line.pop_front()).find(|ticket| Arc::strong_count(ticket) > 1);
        if next.is_none() {
            lines.remove(&self.of);
            self.leads = false;
        }
        next
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let left = if self.leads { lines().remove(&self.of) } else { None };
        left.into_iter().flatten().for_each(|ticket| ticket.call());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap()
    }

    #[test]
    fn a_line_goes_on_when_its_runtime_is_driven_by_another_thread() {
        let (here, between) = (runtime(), runtime());
        let stands = here.spawn(async { Place::default().pass().await });
        here.block_on(yield_now());
        between.block_on(Place::default().pass());
        let there = std::thread::spawn(move || {
            let patient = async { tokio::time::timeout(Duration::from_secs(30), stands).await };
            here.block_on(patient).is_ok()
        });
        assert!(there.join().unwrap(), "it stood there for ever");
    }

    #[test]
    fn who_stands_in_the_line_of_a_runtime_that_ends_may_go() {
        let gone = runtime();
        let mut place = Place::default();
        gone.block_on(poll_fn(|context| {
            place.join(context);
            Poll::Ready(())
        }));
        drop(gone);
        let mut context = Context::from_waker(Waker::noop());
        assert!(place.poll_called(&mut context).is_ready());
    }
}
