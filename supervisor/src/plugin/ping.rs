//! Is the process alive, and can it serve? Pings of two kinds.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    mailbox::{Internal, Sink},
    session::Session,
};

/// Runs until the session is closed. While a slot is free the ping is answered
/// from where tools run; while all are busy only the reader is asked (a busy
/// plugin is judged by the time-outs of its calls).
pub(super) async fn run(session: Arc<Session>, events: Sink) {
    let timeouts = session.manifest.timeouts;
    let mut missed = 0;
    let mut id = 0;
    loop {
        let asleep = Instant::now();
        tokio::select! {
            () = tokio::time::sleep(timeouts.ping) => {}
            () = session.over() => return,
        }
        id += 1;
        let serving = session.free_slots() > 0;
        let asked = Instant::now();
        session.send_ping(id, serving);
        let answered = tokio::select! {
            () = session.pong(id) => true,
            () = tokio::time::sleep(timeouts.ping) => false,
            () = session.over() => return,
        };
        // A supervisor that was itself suspended judges nothing.
        let late = asleep.elapsed() > timeouts.ping * 2 + Duration::from_secs(1)
            || asked.elapsed() > timeouts.ping + Duration::from_secs(1);
        let busy = serving && session.free_slots() == 0;
        if answered || late || busy {
            missed = 0;
            continue;
        }
        missed += 1;
        if missed >= timeouts.ping_misses {
            let silent = timeouts.ping * 2 * missed;
            events.tell(Internal::Silent(session.generation(), silent, serving));
            return;
        }
    }
}
