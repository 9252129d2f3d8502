//! What a process says over the notice pipe before it dies: the frame of its
//! fatal-signal handler, and the stacks that a language's own handler prints.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use stockade_proto::notice::{BYTES, MAGIC, MAX_FRAMES, WORDS};
use tokio::{net::unix::pipe, sync::mpsc};

use super::logs::Drain;

/// Text that is kept.
const MAX_TEXT: usize = 16 * 1024;

/// What the handler said. It is a hint: the death itself is the kernel's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) signal: i32,
    /// Meaningful for faults only.
    pub(super) address: Option<u64>,
    /// Number of the blocked system call, for SIGSYS.
    pub(super) syscall: Option<u64>,
    /// The call whose tool ran on the thread.
    pub(super) call_id: Option<u64>,
    /// Return addresses, innermost first.
    pub(super) backtrace: Vec<String>,
}

/// The stacks that came through the pipe.
#[derive(Clone, Debug, Default)]
pub(super) struct Stacks(Arc<Mutex<String>>);

impl Stacks {
    /// The last of the text, from the death on when it tells of one; control
    /// characters made visible.
    pub(super) fn text(&self) -> String {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = text.len().saturating_sub(MAX_TEXT);
        let last = &text[text.ceil_char_boundary(start)..];
        last[last.rfind("Fatal Python error").unwrap_or(0)..].to_owned()
    }

    /// What was told so far was no death.
    pub(super) fn forget(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn add(&self, bytes: &[u8]) {
        let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        text.extend(
            String::from_utf8_lossy(bytes)
                .chars()
                .map(|c| if c.is_control() && !"\n\t".contains(c) { '·' } else { c }),
        );
        // The end tells most.
        if text.len() > 2 * MAX_TEXT {
            let cut = text.ceil_char_boundary(text.len() - MAX_TEXT);
            text.drain(..cut);
        }
    }
}

/// Reads the pipe to its end. `noticed` hears of the first frame.
pub(super) fn listen(
    pipe: pipe::Receiver,
    noticed: impl Fn(Notice) + Send + 'static,
) -> (Stacks, Drain) {
    let stacks = Stacks::default();
    let (drain, mut requests) = mpsc::unbounded_channel::<tokio::sync::oneshot::Sender<()>>();
    let mut incoming = Incoming { stacks: stacks.clone(), frame: Vec::new(), noticed: false };
    tokio::spawn(async move {
        loop {
            let request = tokio::select! {
                ready = pipe.readable() => if ready.is_err() { break } else { None },
                request = requests.recv() => match request {
                    Some(request) => Some(request),
                    None => break,
                },
            };
            // 16 × 4 KiB: as much as a pipe holds.
            let mut ended = false;
            for _ in 0..16 {
                let mut buffer = [0; 4096];
                match pipe.try_read(&mut buffer) {
                    Ok(0) => ended = true,
                    Ok(n) => {
                        if let Some(notice) = incoming.take(&buffer[..n]) {
                            noticed(notice);
                        }
                        continue;
                    }
                    Err(error) => ended = error.kind() != io::ErrorKind::WouldBlock,
                }
                break;
            }
            if let Some(request) = request {
                let _ = request.send(());
            }
            if ended {
                break;
            }
            tokio::task::yield_now().await;
        }
    });
    (stacks, drain)
}

/// Separates text and frame: the frame begins with the first NUL byte.
#[derive(Default)]
pub(super) struct Incoming {
    stacks: Stacks,
    frame: Vec<u8>,
    noticed: bool,
}

impl Incoming {
    pub(super) fn take(&mut self, mut bytes: &[u8]) -> Option<Notice> {
        if self.frame.is_empty() && !self.noticed {
            let start = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
            self.stacks.add(&bytes[..start]);
            bytes = &bytes[start..];
        }
        if self.noticed {
            self.stacks.add(bytes);
            return None;
        }
        let wanted = (BYTES - self.frame.len()).min(bytes.len());
        self.frame.extend_from_slice(&bytes[..wanted]);
        if self.frame.len() < BYTES {
            return None;
        }
        self.noticed = true;
        self.stacks.add(&bytes[wanted..]);
        decode(&self.frame)
    }
}

fn decode(bytes: &[u8]) -> Option<Notice> {
    let mut words = [0u64; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut raw = [0; 8];
        raw.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(raw);
    }
    let [magic, signal, code, address, syscall, call, frames, ..] = words;
    if magic != MAGIC {
        return None;
    }
    const SIGSYS: i32 = 31;
    let signal = signal as i32;
    let fault = code as i64 > 0;
    let frames = (frames as usize).min(MAX_FRAMES);
    Some(Notice {
        signal,
        address: (fault && signal != SIGSYS).then_some(address),
        syscall: (signal == SIGSYS).then_some(syscall),
        call_id: (call != 0).then_some(call),
        backtrace: words[7..7 + frames].iter().map(|frame| format!("{frame:#x}")).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_frame_are_told_apart_however_they_are_cut() {
        let mut words = [0u64; WORDS];
        (words[0], words[1], words[5]) = (MAGIC, 11, 7);
        let frame: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let bytes = [b"before\n", frame.as_slice(), b"after\n"].concat();
        for size in [1, 5, 9, bytes.len()] {
            let stacks = Stacks::default();
            let mut incoming =
                Incoming { stacks: stacks.clone(), frame: Vec::new(), noticed: false };
            let notices: Vec<_> =
                bytes.chunks(size).filter_map(|chunk| incoming.take(chunk)).collect();
            assert_eq!(notices.len(), 1, "cut at {size}");
            assert_eq!((notices[0].signal, notices[0].call_id), (11, Some(7)));
            assert_eq!(stacks.text(), "before\nafter\n");
        }
    }
}
