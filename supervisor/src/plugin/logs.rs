//! A plugin's output: always drained, kept in a bounded ring, drops counted.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use tokio::{
    net::unix::pipe,
    runtime::Handle as Runtime,
    sync::{mpsc, oneshot, watch},
};

use super::{
    feed::{Feed, some_of},
    rate::Rate,
};
use crate::capacity::limits;

/// Longest line that is kept; the rest of it is cut.
const MAX_LINE: usize = limits::LOG_LINE;
/// Read at once.
const CHUNK: usize = limits::STEP;
/// A plugin that prints faster than is kept waits this long for each read.
const HELD_BACK: Duration = Duration::from_millis(5);

/// Which descriptor a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error; SDK log lines come here.
    Stderr,
    /// What the plugin logged through the host.
    Log,
    /// The supervisor's own remarks.
    Supervisor,
}

impl Stream {
    /// `stdout`, `stderr`, `log`, `supervisor`
    pub fn as_str(self) -> &'static str {
        match self {
            Stream::Stdout => "stdout",
            Stream::Stderr => "stderr",
            Stream::Log => "log",
            Stream::Supervisor => "supervisor",
        }
    }
}

/// One line.
#[derive(Clone, Debug, PartialEq)]
pub struct LogLine {
    /// When it was read.
    pub time: Timestamp,
    /// Which process wrote it.
    pub generation: u64,
    /// Where.
    pub stream: Stream,
    /// `debug` … `error`, None for plain output.
    pub level: Option<&'static str>,
    /// Without control characters.
    pub text: Arc<str>,
    /// Lines lost before this one.
    pub dropped: u64,
}

/// The ring of one plugin, through all its processes.
#[derive(Debug)]
pub struct Logs {
    capacity: usize,
    ring: Mutex<Ring>,
    news: watch::Sender<()>,
    rate: Rate,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<LogLine>,
    bytes: usize,
    /// The number of the next line.
    next: u64,
    /// Lines that came too fast to be kept, since the last one that was.
    lost: u64,
}

impl Logs {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Logs {
            capacity,
            ring: Mutex::default(),
            news: watch::Sender::new(()),
            rate: Rate::of(Some(limits::LOG_RATE as f64)),
        })
    }

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of what a process wrote to standard error, `bytes` at most.
    pub(super) fn stderr_tail(&self, generation: u64, bytes: usize) -> String {
        let ring = self.ring();
        let mut lines: Vec<&str> = Vec::new();
        let mut left = bytes;
        let own = |line: &&LogLine| line.generation == generation && line.stream == Stream::Stderr;
        for line in ring.lines.iter().rev().filter(own) {
            if line.text.len() + 1 > left {
                break;
            }
            left -= line.text.len() + 1;
            lines.push(&line.text);
        }
        lines.reverse();
        lines.join("\n")
    }

    /// Adds a line; one that is too long is cut.
    pub fn push(&self, generation: u64, stream: Stream, level: Option<&'static str>, text: &str) {
        let mut line = LogLine {
            time: Timestamp::now(),
            generation,
            stream,
            level,
            text: match text.len() > 2 * MAX_LINE {
                true => limits::cut(text, MAX_LINE).into(),
                false => text.into(),
            },
            dropped: 0,
        };
        let mut ring = self.ring();
        ring.bytes += line.text.len();
        while ring.lines.len() >= self.capacity || ring.bytes > limits::LOG_BYTES {
            let Some(oldest) = ring.lines.pop_front() else { break };
            ring.bytes -= oldest.text.len();
        }
        line.dropped = std::mem::take(&mut ring.lost);
        ring.lines.push_back(line);
        ring.next += 1;
        drop(ring);
        self.news.send_replace(());
    }
}

impl Feed for Logs {
    type Item = LogLine;

    fn span(&self) -> (u64, u64) {
        let ring = self.ring();
        (ring.next - ring.lines.len() as u64, ring.next)
    }

    fn since(&self, from: u64, bytes: usize) -> (Vec<LogLine>, u64) {
        let ring = self.ring();
        let first = from.max(ring.next - ring.lines.len() as u64);
        let skip = ring.lines.len().saturating_sub(ring.next.saturating_sub(first) as usize);
        let mut lines = some_of(ring.lines.range(skip..), bytes, |line| line.text.len());
        if let Some(line) = lines.first_mut() {
            // They fell out of the ring before they were asked for.
            line.dropped += first - from;
        }
        let next = first + lines.len() as u64;
        (lines, next)
    }

    fn news(&self) -> watch::Receiver<()> {
        self.news.subscribe()
    }
}

/// Asks a pump to read what is in the pipe now, and to say when it has.
pub(super) type Drain = mpsc::UnboundedSender<oneshot::Sender<()>>;

/// Reads the pipe to its end into the ring, on the runtime for output. The task ends
/// with the pipe, or when the handle is dropped (a grandchild may hold the pipe for
/// ever).
pub(super) fn pump(
    runtime: &Runtime,
    pipe: OwnedFd,
    stream: Stream,
    generation: u64,
    logs: Arc<Logs>,
    name: Arc<str>,
) -> Drain {
    let (drain, mut requests) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
    runtime.spawn(async move {
        let Ok(pipe) = pipe::Receiver::from_owned_fd(pipe) else { return };
        let mut lines = Lines::new(stream, generation, logs, name);
        loop {
            tokio::select! {
                ready = pipe.readable() => {
                    if ready.is_err() || lines.read_some(&pipe) == Read::End {
                        break;
                    }
                    match std::mem::take(&mut lines.too_many) {
                        true => tokio::time::sleep(HELD_BACK).await,
                        false => tokio::task::yield_now().await,
                    }
                }
                request = requests.recv() => {
                    let mut last = Read::Some;
                    // 16 × 64 KiB: more than a pipe holds.
                    for _ in 0..16 {
                        last = lines.read_some(&pipe);
                        if last != Read::Some {
                            break;
                        }
                    }
                    lines.finish();
                    let Some(done) = request else { break };
                    let _ = done.send(());
                    if last == Read::End {
                        break;
                    }
                }
            }
        }
        lines.finish();
        // Late requests are answered by the closed channel.
    });
    drain
}

/// What a read found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Read {
    Some,
    Nothing,
    End,
}

/// Cuts bytes into lines.
pub(super) struct Lines {
    stream: Stream,
    generation: u64,
    logs: Arc<Logs>,
    name: Arc<str>,
    partial: Vec<u8>,
    cut: bool,
    buffer: Vec<u8>,
    /// More came than is kept.
    too_many: bool,
}

impl Lines {
    pub(super) fn new(stream: Stream, generation: u64, logs: Arc<Logs>, name: Arc<str>) -> Self {
        Lines {
            stream,
            generation,
            logs,
            name,
            partial: Vec::new(),
            cut: false,
            buffer: Vec::new(),
            too_many: false,
        }
    }

    /// One read.
    fn read_some(&mut self, pipe: &pipe::Receiver) -> Read {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(CHUNK, 0);
        match pipe.try_read(&mut buffer) {
            Ok(0) => Read::End,
            Ok(n) => {
                self.take(&buffer[..n]);
                // An idle plugin holds no buffer.
                self.buffer = if n == CHUNK { buffer } else { Vec::new() };
                Read::Some
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Read::Nothing,
                _ => Read::End,
            },
        }
    }

    pub(super) fn take(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.add(&bytes[..end]);
            self.finish();
            bytes = &bytes[end + 1..];
        }
        self.add(bytes);
    }

    fn add(&mut self, bytes: &[u8]) {
        if self.cut {
            return;
        }
        let room = MAX_LINE - self.partial.len();
        self.partial.extend_from_slice(&bytes[..bytes.len().min(room)]);
        if bytes.len() > room {
            // Said at once: the line may never end.
            self.cut = true;
            let text = std::mem::take(&mut self.partial);
            self.emit(&text, " … (cut)");
        }
    }

    pub(super) fn finish(&mut self) {
        if !std::mem::take(&mut self.cut) && !self.partial.is_empty() {
            let text = std::mem::take(&mut self.partial);
            self.emit(&text, "");
        }
    }

    fn emit(&mut self, bytes: &[u8], suffix: &str) {
        if !self.logs.rate.take() {
            self.too_many = true;
            self.logs.ring().lost += 1;
            return;
        }
        let (level, bytes) = priority(bytes);
        let text = String::from_utf8_lossy(bytes);
        let mut clean: String =
            text.chars().map(|c| if c.is_control() && c != '\t' { '·' } else { c }).collect();
        clean.push_str(suffix);
        let clean = clean.trim_end();
        self.logs.push(self.generation, self.stream, level, clean);
        tracing::debug!(plugin = %self.name, generation = self.generation, "{clean}");
    }
}

/// `<6>text` → info.
fn priority(bytes: &[u8]) -> (Option<&'static str>, &[u8]) {
    match bytes {
        [b'<', digit @ b'0'..=b'7', b'>', rest @ ..] => {
            let level = match digit - b'0' {
                0..=3 => "error",
                4 => "warn",
                5 | 6 => "info",
                _ => "debug",
            };
            (Some(level), rest)
        }
        _ => (None, bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_cleaned_and_counted() {
        let logs = Logs::new(3);
        let mut lines = Lines::new(Stream::Stderr, 7, logs.clone(), "p".into());
        lines.take(b"<4>warned\npart");
        lines.take(b"ial\n\x1b[31mred\0\xff\n");
        lines.take(&vec![b'x'; 20_000]);
        lines.take(b"tail\nlast");
        lines.finish();
        let (kept, next) = logs.since(0, usize::MAX);
        assert_eq!((logs.span(), next), ((2, 5), 5));
        assert_eq!(logs.since(4, 1).0, kept[2..]);
        assert_eq!(logs.since(5, 1), (Vec::new(), 5));
        let texts: Vec<&str> = kept.iter().map(|line| &*line.text).collect();
        assert_eq!(texts.len(), 3);
        assert_eq!(texts[0], "·[31mred·\u{fffd}");
        assert!(texts[1].starts_with("xxx") && texts[1].ends_with("… (cut)"));
        assert_eq!(texts[2], "last");
        // Two had fallen out of the ring; who had read them has lost nothing.
        assert_eq!((kept[0].dropped, logs.since(2, 1).0[0].dropped), (2, 0));
        assert_eq!(logs.stderr_tail(7, 4), "");
        assert_eq!(logs.stderr_tail(7, 5), "last");
        assert_eq!(logs.stderr_tail(8, 99), "");
        assert_eq!(priority(b"<3>x").0, Some("error"));
    }
}
