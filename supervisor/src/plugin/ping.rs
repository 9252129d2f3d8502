//! Is the process alive, and can it serve? Pings of two kinds.

use std::{
    sync::{Arc, LazyLock},
    time::{Duration, Instant},
};

use crate::manifest::Run;

use super::{
    mailbox::{Internal, Sink},
    session::Session,
};

/// About `pause` from now, on a grid that all plugins share: three hundred
/// idle plugins wake us a few times a second, not sixty.
fn on_the_grid(pause: Duration) -> tokio::time::Instant {
    static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);
    let step = pause.min(Duration::from_secs(1)).max(Duration::from_millis(1)).as_nanos();
    let steps = (EPOCH.elapsed() + pause).as_nanos() / step;
    let at = Duration::from_nanos((steps * step).min(u128::from(u64::MAX)) as u64);
    (*EPOCH + at).into()
}

/// Runs until the session is closed. While a slot is free the ping is answered
/// from where tools run; while all are busy only the reader is asked (a busy
/// plugin is judged by the time-outs of its calls). Python is busy with its first
/// call: that one may keep the interpreter's lock.
pub(super) async fn run(session: Arc<Session>, events: Sink) {
    let timeouts = session.manifest.timeouts;
    let python = matches!(session.manifest.run, Run::Python { .. });
    let idle = || match python {
        true => session.in_flight() == 0,
        false => session.free_slots() > 0,
    };
    let mut missed = 0;
    let mut id = 0;
    loop {
        let asleep = Instant::now();
        tokio::select! {
            () = tokio::time::sleep_until(on_the_grid(timeouts.ping)) => {}
            () = session.over() => return,
        }
        id += 1;
        let serving = idle();
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
        let busy = serving && !idle();
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
