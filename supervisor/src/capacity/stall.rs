//! Work on a thread that may be stuck in the kernel: waited for only so long.

use std::{sync::mpsc, time::Duration};

/// Runs `work` on a thread of its own. None when it takes longer than `patience`:
/// the thread is left behind and ends when the kernel lets it.
pub fn within<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (done, result) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new().name("patient".into()).spawn(move || {
        let _ = done.send(work());
    });
    thread.ok()?;
    result.recv_timeout(patience).ok()
}
