//! Reads the frames of one process into its session.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stockade_proto::worker::FromPlugin;
use tonic::{Code, Streaming};

use super::{
    mailbox::{Internal, Sink},
    session::Session,
};
use crate::capacity::limits;

/// Frames that answer nothing (progress, pongs, strays), per second.
const IDLE_TALK: u32 = limits::IDLE_FRAMES as u32;
/// Frames between two yields, so that one plugin's flood is no one else's.
const TURN: u32 = 64;

/// Runs until the stream ends or the session is closed.
pub(super) async fn run(mut frames: Streaming<FromPlugin>, session: Arc<Session>, events: Sink) {
    let generation = session.generation();
    let mut talk = Talk { since: Instant::now(), count: 0 };
    let mut turn = 0;
    let mut over = std::pin::pin!(session.over());
    loop {
        let received = tokio::select! {
            biased;
            received = frames.message() => received,
            () = over.as_mut() => return,
        };
        if session.closed().is_some() {
            return;
        }
        let breach = match received {
            Ok(Some(FromPlugin { frame: Some(frame) })) => match session.take(frame) {
                Ok(true) => None,
                Ok(false) => talk.judge(),
                Err(what) => Some(what),
            },
            // A frame of a kind that we do not know is ignored.
            Ok(Some(FromPlugin { frame: None })) => talk.judge(),
            Ok(None) => {
                events.tell(Internal::Hangup(generation, "closed its calls channel".to_owned()));
                return;
            }
            // What did not pass the gate, or is larger than any message.
            Err(status) if matches!(status.code(), Code::InvalidArgument | Code::OutOfRange) => {
                let what = status.message();
                let what = what.strip_prefix("Error, ").unwrap_or(what);
                Some(limits::cut(what, limits::ERROR_TEXT / 4))
            }
            // Never a cause by itself: the evidence of a death may follow.
            Err(status) => {
                let what = limits::cut(status.message(), limits::ERROR_TEXT / 4);
                let what = format!("its calls channel broke: {what}");
                events.tell(Internal::Hangup(generation, what));
                return;
            }
        };
        if let Some(what) = breach {
            events.tell(Internal::Breach(generation, what));
            return;
        }
        turn += 1;
        if turn == TURN {
            turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Counts what answers nothing.
struct Talk {
    since: Instant,
    count: u32,
}

impl Talk {
    fn judge(&mut self) -> Option<String> {
        self.count += 1;
        if self.count < IDLE_TALK {
            return None;
        }
        let took = self.since.elapsed();
        *self = Talk { since: Instant::now(), count: 0 };
        (took < Duration::from_secs(1))
            .then(|| format!("message flood: {IDLE_TALK} frames in {} ms", took.as_millis()))
    }
}
