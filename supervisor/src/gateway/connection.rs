//! One connection: what it has read and written, how long it may be silent, and who
//! has to go when there are too many.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Context,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::capacity::{frames::Open, limits};

/// Of so many bytes that were written one may come back to say that they were taken.
const TAKEN: i64 = 16;

/// Milliseconds, some late: several are read for each request, and times of connections
/// are seconds.
fn ticks() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    started: Instant,
    /// The same on the clock that costs little ([`ticks`]).
    since: u64,
    /// Milliseconds since the start of the last byte in, plus one; 0 = none came.
    pub(super) last_in: AtomicU64,
    /// Since when a write has been waiting, likewise.
    pub(super) blocked: AtomicU64,
    /// When the last answer was finished, likewise.
    last_end: AtomicU64,
    /// When the head that is coming began, likewise; 0 = none is.
    pub(super) head: AtomicU64,
    /// The same of an HTTP/2 client's frame, and of a frame that is a part of a body.
    open_head: AtomicU64,
    open_body: AtomicU64,
    pub(super) read: AtomicU64,
    pub(super) written: AtomicU64,
    bodies: AtomicU64,
    /// Of bodies: in so many parts they came.
    pub(super) parts: AtomicU64,
    pub(super) requests: AtomicU64,
    /// What their heads take.
    heads: AtomicU64,
    pub(super) active: AtomicU32,
    pub(super) http2: AtomicBool,
    /// Answers of which there is more than their client has taken.
    unread: AtomicU32,
    /// When a part of an answer was last taken, likewise.
    last_out: AtomicU64,
    /// It has to make room.
    leave: Notify,
    /// Streams that have more than they have looked at, and who waits for them.
    behind: AtomicU32,
    reader: AtomicWaker,
    /// For the one of its streams that stands in line.
    line: Semaphore,
}

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Look again then.
    Later(Instant),
    /// It has had nothing to say for too long.
    Idle,
    /// It does not go on with what it has begun.
    Stuck,
}

impl Connection {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Connection {
            started: Instant::now(),
            since: ticks(),
            last_in: AtomicU64::new(0),
            blocked: AtomicU64::new(0),
            last_end: AtomicU64::new(0),
            head: AtomicU64::new(0),
            open_head: AtomicU64::new(0),
            open_body: AtomicU64::new(0),
            read: AtomicU64::new(0),
            written: AtomicU64::new(0),
            bodies: AtomicU64::new(0),
            parts: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            heads: AtomicU64::new(0),
            active: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            unread: AtomicU32::new(0),
            last_out: AtomicU64::new(0),
            leave: Notify::new(),
            behind: AtomicU32::new(0),
            reader: AtomicWaker::new(),
            line: Semaphore::new(1),
        })
    }

    pub(super) fn now(&self) -> u64 {
        ticks() - self.since + 1
    }

    fn at(&self, stamp: u64) -> Instant {
        self.started + Duration::from_millis(stamp.saturating_sub(1))
    }

    /// A request has come, with a head of so many bytes; it is over when the value is
    /// dropped.
    pub(super) fn request(self: &Arc<Self>, head: usize) -> Active {
        self.head.store(0, Ordering::Relaxed);
        self.heads.fetch_add(head as u64, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.active.fetch_add(1, Ordering::Relaxed);
        Active(self.clone())
    }

    /// Its HTTP/2 client has to send the rest of this; nobody can know of it before.
    pub(super) fn awaited(&self, open: Option<Open>) {
        let since = |stamp: &AtomicU64, is_open: bool| {
            let begun = stamp.load(Ordering::Relaxed) > 0;
            if is_open != begun {
                stamp.store(if is_open { self.now() } else { 0 }, Ordering::Relaxed);
            }
        };
        since(&self.open_head, open == Some(Open::Head));
        since(&self.open_body, open == Some(Open::Body));
    }

    /// A request of it is being answered.
    pub(super) fn is_answering(&self) -> bool {
        self.active.load(Ordering::Relaxed) > 0
    }

    /// It has more requests at once than who asks for health needs.
    pub(super) fn asks_much(&self) -> bool {
        self.active.load(Ordering::Relaxed) as usize > limits::QUESTIONS
    }

    /// An answer is there to be taken.
    pub(super) fn answer(self: &Arc<Self>) -> Taken {
        let mut taken = Taken { connection: self.clone(), counted: false };
        taken.took();
        taken
    }

    /// Its client takes what it is sent.
    pub(super) fn is_read(&self) -> bool {
        self.unread.load(Ordering::Relaxed) == 0
    }

    /// So much of what was read was a part of a body.
    pub(super) fn body(&self, bytes: usize) {
        self.bodies.fetch_add(bytes as u64, Ordering::Relaxed);
        self.parts.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes that were neither a request, nor a body, nor the news that an answer was
    /// taken; the heads of a body's frames are among them.
    pub(super) fn chatter(&self) -> i64 {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed) as i64;
        let useful = count(&self.bodies) + count(&self.heads) + count(&self.written) / TAKEN;
        count(&self.read) - useful
    }

    /// A stream has more than it has looked at: nothing is read from the connection until
    /// the value is dropped.
    pub(super) fn behind(self: &Arc<Self>) -> Behind {
        self.behind.fetch_add(1, Ordering::Relaxed);
        Behind(self.clone())
    }

    /// Resolves when a stream may stand in line: one of a connection does, however many
    /// it has.
    pub(super) async fn may_stand(&self) -> Option<SemaphorePermit<'_>> {
        self.line.acquire().await.ok()
    }

    /// Its streams have looked at what was read; else the task is woken when they have.
    pub(super) fn has_caught_up(&self, context: &Context<'_>) -> bool {
        let has = || self.behind.load(Ordering::Acquire) == 0;
        if has() {
            return true;
        }
        self.reader.register(context.waker());
        has()
    }

    pub(super) fn is_http2(&self) -> bool {
        self.http2.load(Ordering::Relaxed)
    }

    /// Bytes that its client has taken.
    pub(super) fn taken(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Nothing of it waits to be written, or it is HTTP/2, whose answers have ends.
    pub(super) fn may_be_told(&self) -> bool {
        self.http2.load(Ordering::Relaxed) || self.blocked.load(Ordering::Relaxed) == 0
    }

    /// Its client has gone in the middle of a request. HTTP/1 finds out by itself only when
    /// it writes; of HTTP/2 it was one stream.
    pub(super) fn hung_up(&self) {
        if !self.http2.load(Ordering::Relaxed) {
            self.leave.notify_one();
        }
    }

    /// Resolves when it has to go: it is beyond its times, or has to make room for
    /// another one.
    pub(super) async fn left(&self) -> Verdict {
        loop {
            let due = match self.judge() {
                // What it begins meanwhile may be due before that.
                Verdict::Later(due) => due.min(Instant::now() + limits::HEAD),
                verdict => return verdict,
            };
            tokio::select! {
                () = self.leave.notified() => return Verdict::Idle,
                () = tokio::time::sleep_until(due.into()) => {}
            }
        }
    }

    /// How long it has been doing nothing; None while a request is under way. One that
    /// has never said anything comes before all others.
    fn idle(&self) -> Option<(bool, Duration)> {
        if self.active.load(Ordering::Relaxed) > 0 {
            return None;
        }
        let silent = self.requests.load(Ordering::Relaxed) == 0;
        let last = self.last_end.load(Ordering::Relaxed).max(self.last_in.load(Ordering::Relaxed));
        Some((silent, self.at(last.max(1)).elapsed()))
    }

    /// Is it still within its times?
    pub(super) fn judge(&self) -> Verdict {
        let now = Instant::now();
        let within = |since: u64, patience: Duration, beyond: Verdict| {
            let due = self.at(since) + patience;
            if due > now { Verdict::Later(due) } else { beyond }
        };
        let blocked = self.blocked.load(Ordering::Relaxed);
        if blocked > 0 {
            return within(blocked, limits::WRITE_PAUSE, Verdict::Stuck);
        }
        let last_in = self.last_in.load(Ordering::Relaxed);
        if last_in == 0 {
            return within(1, limits::FIRST_BYTE, Verdict::Stuck);
        }
        if self.unread.load(Ordering::Relaxed) > 0 {
            let last = self.last_out.load(Ordering::Relaxed);
            return within(last, limits::WRITE_PAUSE, Verdict::Stuck);
        }
        let open = self.open_head.load(Ordering::Relaxed);
        if open > 0 {
            return within(open, limits::HEAD, Verdict::Stuck);
        }
        if self.active.load(Ordering::Relaxed) > 0 {
            // Bodies and calls have times of their own.
            return Verdict::Later(now + limits::WRITE_PAUSE);
        }
        // A frame of a body, of which no request knows.
        let open = self.open_body.load(Ordering::Relaxed);
        if open > 0 {
            return within(open, limits::BODY_PAUSE, Verdict::Stuck);
        }
        let requests = self.requests.load(Ordering::Relaxed);
        let http2 = self.http2.load(Ordering::Relaxed);
        // HTTP/2's head is its preface and settings; a request may follow when it likes.
        let head = self.head.load(Ordering::Relaxed);
        if head > 0 && !http2 {
            return within(head, limits::HEAD, Verdict::Stuck);
        }
        if http2 && requests == 0 && self.read.load(Ordering::Relaxed) < 24 {
            return within(1, limits::FIRST_BYTE, Verdict::Stuck);
        }
        let last = self.last_end.load(Ordering::Relaxed).max(1);
        let patience = if http2 { limits::IDLE_HTTP2 } else { limits::IDLE };
        within(last, patience, Verdict::Idle)
    }
}

/// Whether an answer is being taken. Over HTTP/2 the connection's own writes do not tell:
/// nothing is written to a client that opens no window.
#[derive(Debug)]
pub(super) struct Taken {
    connection: Arc<Connection>,
    /// There is more of it.
    counted: bool,
}

impl Taken {
    /// A part has been taken, and there may be more.
    pub(super) fn took(&mut self) {
        let connection = &self.connection;
        connection.last_out.store(connection.now(), Ordering::Relaxed);
        if !std::mem::replace(&mut self.counted, true) {
            connection.unread.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// There is nothing to be taken now.
    pub(super) fn waits(&mut self) {
        if std::mem::replace(&mut self.counted, false) {
            self.connection.unread.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.waits();
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Active(Arc<Connection>);

impl Active {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.0
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.last_end.store(self.0.now(), Ordering::Relaxed);
        self.0.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// See [`Connection::behind`].
#[derive(Debug)]
pub(super) struct Behind(Arc<Connection>);

impl Drop for Behind {
    fn drop(&mut self) {
        if self.0.behind.fetch_sub(1, Ordering::Release) == 1 {
            self.0.reader.wake();
        }
    }
}

/// The connections of one listener. Each has a number of its own.
#[derive(Debug)]
pub(super) struct Places {
    most: usize,
    /// Beyond those: answered health only.
    reserve: usize,
    list: Mutex<Vec<Arc<Connection>>>,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    pub(super) connection: Arc<Connection>,
    /// It is answered health only.
    pub(super) reserve: bool,
}

impl Places {
    pub(super) fn new(most: usize, reserve: usize) -> Arc<Self> {
        Arc::new(Places { most, reserve, list: Mutex::default() })
    }

    /// Room for one more. When all are taken the one that has been idle longest goes;
    /// when none is idle, the newcomer may ask for health.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let mut reserve = false;
        if list.len() >= self.most {
            let idlest = list
                .iter()
                .enumerate()
                .filter_map(|(index, one)| Some((one.idle()?, index)))
                .max()
                .map(|(_, index)| index);
            match idlest {
                Some(index) => {
                    let idlest = list.swap_remove(index);
                    idlest.leave.notify_one();
                }
                None if list.len() < self.most + self.reserve => {}
                None => return None,
            }
            // It may have been one of the reserve that went.
            reserve = list.len() >= self.most;
        }
        let connection = Connection::new();
        list.push(connection.clone());
        Some(Place { places: self.clone(), connection, reserve })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut list = self.places.list.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = list.iter().position(|one| Arc::ptr_eq(one, &self.connection)) {
            list.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_idlest_makes_room_and_the_busy_stay() {
        let places = Places::new(2, 1);
        let silent = places.take().unwrap();
        let busy = places.take().unwrap();
        let request = busy.connection.request(1024);
        let third = places.take().unwrap();
        assert!(!third.reserve);
        assert_eq!(Arc::strong_count(&silent.connection), 1, "it was let go");
        let other = third.connection.request(1024);
        let health = places.take().unwrap();
        assert!(health.reserve);
        let asked = health.connection.request(1024);
        assert!(places.take().is_none());
        drop((request, other, asked));
        // One goes for it, but there are as many as may all the same.
        let fourth = places.take().unwrap();
        assert!(fourth.reserve);
        drop((busy, third, health, fourth));
        assert!(!places.take().unwrap().reserve);
    }

    #[test]
    fn silence_has_an_end() {
        let connection = Connection::new();
        let due = |verdict| match verdict {
            Verdict::Later(due) => due - connection.started,
            other => panic!("{other:?}"),
        };
        assert_eq!(due(connection.judge()), limits::FIRST_BYTE);
        connection.last_in.store(1, Ordering::Relaxed);
        connection.head.store(1, Ordering::Relaxed);
        assert_eq!(due(connection.judge()), limits::HEAD);
        drop(connection.request(1024));
        assert!(due(connection.judge()) >= limits::IDLE);
        connection.blocked.store(1, Ordering::Relaxed);
        assert_eq!(due(connection.judge()), limits::WRITE_PAUSE);
    }
}
