//! The line in which those stand who move much, and those for whom there is too much at
//! once: one of them goes on at a time, when everybody else has been served.

use std::{
    cell::Cell,
    collections::{HashMap, VecDeque},
    future::{Future as _, poll_fn},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Handle, Id, RuntimeFlavor},
    task::yield_now,
};

/// The line of each runtime; each one that is here is led by a task.
static LINES: LazyLock<Mutex<HashMap<Id, Line>>> = LazyLock::new(Mutex::default);

/// Who stands there.
#[derive(Debug, Default)]
struct Line {
    /// Who had nothing before, and wants little: they are called before the others, as
    /// long as those are called, too.
    brief: VecDeque<Arc<Ticket>>,
    others: VecDeque<Arc<Ticket>>,
    /// Of `brief`, called since the last of the others.
    before: usize,
}

/// So many who want little are called for each who wants more.
const BEFORE: usize = 4;

impl Line {
    fn join(&mut self, ticket: Arc<Ticket>, brief: bool) {
        match brief {
            true => self.brief.push_back(ticket),
            false => self.others.push_back(ticket),
        }
    }

    /// Who has gone meanwhile costs nobody a turn.
    fn next(&mut self) -> Option<Arc<Ticket>> {
        let left = |queue: &mut VecDeque<Arc<Ticket>>| {
            std::iter::from_fn(|| queue.pop_front()).find(|ticket| Arc::strong_count(ticket) > 1)
        };
        let brief_is_next = self.before < BEFORE || self.others.is_empty();
        if brief_is_next && let Some(ticket) = left(&mut self.brief) {
            self.before += 1;
            return Some(ticket);
        }
        self.before = 0;
        left(&mut self.others).or_else(|| left(&mut self.brief))
    }
}

/// As long as [`FREE`] lasts.
const ROUND: Duration = Duration::from_millis(1);
/// Bytes of requests that are taken by a thread in a round from who does not stand in line.
const FREE: usize = 4096;

thread_local! {
    /// When the round began, and what has been taken in it.
    static TAKEN: Cell<Option<(Instant, usize)>> = const { Cell::new(None) };
}

/// True when so little is being asked that nobody has to stand in line for it. Thousands
/// may ask at the same moment, each of them for little.
pub fn is_free() -> bool {
    let now = Instant::now();
    let taken = TAKEN.get().filter(|(since, _)| now - *since < ROUND);
    TAKEN.set(taken.or(Some((now, 0))));
    taken.is_none_or(|(_, taken)| taken < FREE)
}

/// So many bytes are read or answered without standing in line.
pub fn is_little(bytes: usize) -> bool {
    bytes <= FREE
}

/// Goes through the line, as brief, for work on so many bytes: as many of those as there
/// may be at once, everybody else is served between two of them.
pub async fn turn_for(bytes: usize) {
    if !is_little(bytes) {
        Place::default().pass(true).await;
    }
}

/// So many bytes of requests were taken.
pub fn took(bytes: usize) {
    if let Some((since, taken)) = TAKEN.get() {
        TAKEN.set(Some((since, taken + bytes)));
    }
}

fn lines() -> MutexGuard<'static, HashMap<Id, Line>> {
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
    /// Goes to the end of the line; `brief`: of those who want little.
    pub fn join(&mut self, context: &mut Context<'_>, brief: bool) {
        let waker = Mutex::new(context.waker().clone());
        let ticket = Arc::new(Ticket { called: AtomicBool::new(false), waker });
        match Handle::try_current() {
            Ok(runtime) if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread => {
                stand(&runtime, ticket.clone(), brief);
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

    /// Somebody stands there, or is called and has not come.
    pub fn stands(&self) -> bool {
        self.0.is_some()
    }

    /// Goes through the line. Who gives it up goes on from the same place.
    pub async fn pass(&mut self, brief: bool) {
        let mut stands = self.0.is_some();
        poll_fn(|context| {
            if !std::mem::replace(&mut stands, true) {
                self.join(context, brief);
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

fn stand(runtime: &Handle, ticket: Arc<Ticket>, brief: bool) {
    let mut lines = lines();
    let is_led = lines.contains_key(&runtime.id());
    lines.entry(runtime.id()).or_default().join(ticket, brief);
    drop(lines);
    if is_led {
        return;
    }
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
        let next = lines.get_mut(&self.of)?.next();
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
        let left = left.into_iter().flat_map(|line| line.brief.into_iter().chain(line.others));
        left.for_each(|ticket| ticket.call());
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
        let stands = here.spawn(async { Place::default().pass(false).await });
        here.block_on(yield_now());
        between.block_on(Place::default().pass(false));
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
            place.join(context, false);
            Poll::Ready(())
        }));
        drop(gone);
        let mut context = Context::from_waker(Waker::noop());
        assert!(place.poll_called(&mut context).is_ready());
    }

    #[test]
    fn who_wants_little_is_called_first_and_nobody_is_forgotten() {
        let ticket = || {
            let waker = Mutex::new(Waker::noop().clone());
            Arc::new(Ticket { called: AtomicBool::new(false), waker })
        };
        let (brief, others): (Vec<_>, Vec<_>) = (0..10).map(|_| (ticket(), ticket())).unzip();
        let mut line = Line::default();
        others.iter().for_each(|one| line.join(one.clone(), false));
        brief.iter().for_each(|one| line.join(one.clone(), true));
        let is_brief = |one: Arc<Ticket>| brief.iter().any(|other| Arc::ptr_eq(&one, other));
        let called: Vec<bool> = std::iter::from_fn(|| line.next().map(is_brief)).collect();
        assert_eq!(called.len(), 20);
        assert_eq!(called[..6], [true, true, true, true, false, true]);
    }
}
