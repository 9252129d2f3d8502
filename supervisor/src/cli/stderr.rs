//! Log lines on their way to standard error. Who reads it may stop reading: then lines
//! are dropped and counted, and nobody who logs waits.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use stockade::capacity::limits;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: u64,
    /// The thread is writing what it has taken.
    writing: bool,
}

#[derive(Default)]
struct Ring {
    state: Mutex<State>,
    filled: Condvar,
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.bytes + line.len() > limits::STDERR {
            state.dropped += 1;
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_owned());
        drop(state);
        self.filled.notify_one();
    }

    fn write_out(&self, out: &mut impl Write) {
        loop {
            let mut state = self.lock();
            while state.lines.is_empty() {
                state.writing = false;
                state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            state.writing = true;
            let lines = std::mem::take(&mut state.lines);
            let dropped = std::mem::take(&mut state.dropped);
            state.bytes = 0;
            drop(state);
            for line in lines {
                let _ = out.write_all(&line);
            }
            if dropped > 0 {
                let text = format!(
                    "{dropped} log lines were dropped: standard error was not read fast enough\n"
                );
                let _ = out.write_all(text.as_bytes());
            }
        }
    }
}

/// Where the log goes. Cheap to clone.
#[derive(Clone)]
pub(super) struct Stderr(Arc<Ring>);

impl Stderr {
    /// Starts the thread that writes.
    pub(super) fn start() -> io::Result<Self> {
        let ring: Arc<Ring> = Arc::default();
        let own = ring.clone();
        std::thread::Builder::new()
            .name("stderr".into())
            .spawn(move || own.write_out(&mut io::stderr()))?;
        Ok(Stderr(ring))
    }

    /// Waits until everything is written, but not for a reader that does not read.
    pub(super) fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let state = self.0.lock();
            if (state.lines.is_empty() && !state.writing) || Instant::now() >= deadline {
                return;
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// One line of the log.
pub(super) struct Line(Arc<Ring>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Stderr {
    type Writer = Line;

    fn make_writer(&'w self) -> Line {
        Line(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_told() {
        let ring: Arc<Ring> = Arc::default();
        let line = vec![b'x'; 1 << 10];
        for _ in 0..3 * 1024 {
            ring.push(&line);
        }
        assert_eq!(ring.lock().dropped, 2 * 1024);
        let (mut reader, writer) = io::pipe().unwrap();
        let own = ring.clone();
        std::thread::spawn(move || own.write_out(&mut { writer }));
        let mut read = vec![0; (1 << 20) + 20];
        io::Read::read_exact(&mut reader, &mut read).unwrap();
        assert!(read.ends_with(b"2048 log lines were "));
    }
}
