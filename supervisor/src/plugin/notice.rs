//! The frame that a plugin's fatal-signal handler writes before it dies.

use stockade_proto::notice::{BYTES, MAX_FRAMES, WORDS};
use tokio::{io::AsyncReadExt as _, net::unix::pipe};

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

/// Waits for the frame; None when the process ended without one.
pub(super) async fn read(pipe: &mut pipe::Receiver) -> Option<Notice> {
    let mut bytes = [0; BYTES];
    pipe.read_exact(&mut bytes).await.ok()?;
    Some(decode(&bytes))
}

fn decode(bytes: &[u8; BYTES]) -> Notice {
    let mut words = [0u64; WORDS];
    for (word, chunk) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut raw = [0; 8];
        raw.copy_from_slice(chunk);
        *word = u64::from_ne_bytes(raw);
    }
    let [signal, code, address, syscall, call, frames, ..] = words;
    const SIGSYS: i32 = 31;
    let signal = signal as i32;
    let fault = code as i64 > 0;
    let frames = (frames as usize).min(MAX_FRAMES);
    Notice {
        signal,
        address: (fault && signal != SIGSYS).then_some(address),
        syscall: (signal == SIGSYS).then_some(syscall),
        call_id: (call != 0).then_some(call),
        backtrace: words[6..6 + frames].iter().map(|frame| format!("{frame:#x}")).collect(),
    }
}
