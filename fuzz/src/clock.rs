//! Asks for health and calls a plugin all the time, on a thread of its own.

use std::{
    io::{self, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Between two questions.
const TICK: Duration = Duration::from_millis(10);
/// Health may take so long: the fuzzer keeps the same two processors busy.
const HEALTH: Duration = Duration::from_millis(300);
/// Another plugin's call.
const CALL: Duration = Duration::from_millis(500);
/// Then it has no answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// What was seen since it was last asked.
#[derive(Clone, Copy, Default)]
struct Seen {
    health: Duration,
    call: Duration,
    late: Duration,
}

/// The worst of it.
pub struct Clock {
    seen: Mutex<Seen>,
}

impl Clock {
    /// Asks this socket for ever; `plugin` has a tool `ping` with a text.
    pub fn start(socket: PathBuf, plugin: &'static str) -> &'static Self {
        let clock: &'static Clock = Box::leak(Box::new(Clock { seen: Mutex::default() }));
        thread::spawn(move || {
            let call =
                post(&format!("/v1/plugins/{plugin}/tools/ping/run"), r#"{"args":{"text":"x"}}"#);
            loop {
                let begin = Instant::now();
                thread::sleep(TICK);
                let late = begin.elapsed().saturating_sub(TICK);
                let health = asked(
                    &socket,
                    "GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
                );
                let call = asked(&socket, &call);
                let mut seen = clock.seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.health = seen.health.max(health);
                seen.call = seen.call.max(call);
                seen.late = seen.late.max(late);
            }
        });
        clock
    }

    /// # Panics
    /// Somebody had to wait longer than they may, whatever the machine itself was late.
    pub fn check(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let Seen { health, call, late } = std::mem::take(&mut *seen);
        assert!(
            health <= HEALTH + 4 * late,
            "health took {health:?}; the machine was {late:?} late"
        );
        assert!(call <= CALL + 4 * late, "a call took {call:?}; the machine was {late:?} late");
    }
}

fn post(path: &str, body: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// How long the answer took. Without one, and with another than 200, the target ends:
/// on this thread a panic would be heard by nobody.
fn asked(socket: &PathBuf, request: &str) -> Duration {
    let begin = Instant::now();
    match ask(socket, request) {
        Ok(answer) if answer.starts_with("HTTP/1.1 200") => begin.elapsed(),
        wrong => {
            eprintln!("{} was answered by {wrong:?}", request.lines().next().unwrap_or_default());
            std::process::abort();
        }
    }
}

fn ask(socket: &PathBuf, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
