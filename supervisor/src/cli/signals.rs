//! Signals on a thread of their own: whatever the rest of the daemon does, SIGTERM ends
//! it in time, and a second one at once.

use std::{io, path::PathBuf, time::Duration};

use nix::sys::signal::{SigSet, Signal};
use stockade::capacity::limits;
use tokio::sync::mpsc;

use super::stderr::Stderr;

/// What was asked by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM or SIGINT.
    End(&'static str),
    /// SIGHUP.
    Reload,
}

/// What has been asked, in order.
pub(super) struct Signals(mpsc::UnboundedReceiver<Asked>);

fn set() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set
}

/// Takes the signals away from all threads that will be started.
pub(super) fn block() -> io::Result<()> {
    Ok(set().thread_block()?)
}

impl Signals {
    /// Starts the thread. `timeout` is for an orderly end; `socket` is removed by an end
    /// that is none.
    pub(super) fn start(timeout: Duration, socket: PathBuf, log: Stderr) -> io::Result<Self> {
        let (sender, receiver) = mpsc::unbounded_channel();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut ending = false;
            loop {
                let name = match set().wait() {
                    Ok(Signal::SIGHUP) => {
                        // One that waits stands for this one, too.
                        if sender.is_closed() {
                            return;
                        } else {
                            let _ = sender.send(Asked::Reload);
                        }
                        continue;
                    }
                    Ok(Signal::SIGINT) => "SIGINT",
                    Ok(_) => "SIGTERM",
                    Err(_) => continue,
                };
                if ending {
                    tracing::warn!("{name} again: killing what is left");
                    leave(&socket, &log, 0);
                }
                ending = true;
                let _ = sender.send(Asked::End(name));
                let (socket, log) = (socket.clone(), log.clone());
                let guard = std::thread::Builder::new().name("deadline".into());
                let _ = guard.spawn(move || {
                    std::thread::sleep(timeout + limits::FLUSH);
                    tracing::error!("not ended in order within shutdown_timeout: killing all");
                    leave(&socket, &log, 1);
                });
            }
        })?;
        Ok(Signals(receiver))
    }

    /// What is asked next.
    pub(super) async fn next(&mut self) -> Asked {
        match self.0.recv().await {
            Some(asked) => asked,
            None => std::future::pending().await,
        }
    }
}

/// Ends the process as it is. What is left is killed by its launchers, which see it go.
fn leave(socket: &std::path::Path, log: &Stderr, code: i32) -> ! {
    log.flush(Duration::from_millis(200));
    let _ = std::fs::remove_file(socket);
    std::process::exit(code)
}
