//! Signals on a thread of their own: whatever the rest of the daemon does, SIGTERM ends
//! it in time, and a second one at once.

use std::{io, path::PathBuf, time::Duration};

use nix::sys::signal::{SigSet, Signal};
use tokio::sync::watch;

use super::stderr::Stderr;

/// What was asked by a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// SIGTERM or SIGINT.
    End(&'static str),
    /// SIGHUP.
    Reload,
}

/// What is asked and not yet obeyed: however often it was, it is asked once.
#[derive(Clone, Copy, Default)]
struct Open {
    end: Option<&'static str>,
    reload: bool,
}

/// What has been asked.
pub(super) struct Signals(watch::Sender<Open>);

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
        let asked = watch::Sender::new(Open::default());
        let open = asked.clone();
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            let mut ending = false;
            loop {
                let name = match set().wait() {
                    Ok(Signal::SIGHUP) => {
                        open.send_modify(|open| open.reload = true);
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
                open.send_modify(|open| open.end = Some(name));
                let (socket, log) = (socket.clone(), log.clone());
                let guard = std::thread::Builder::new().name("deadline".into());
                let _ = guard.spawn(move || {
                    std::thread::sleep(timeout);
                    tracing::error!("not ended in order within shutdown_timeout: killing all");
                    leave(&socket, &log, 1);
                });
            }
        })?;
        Ok(Signals(asked))
    }

    /// What is to be done next; an end before all else.
    pub(super) async fn next(&mut self) -> Asked {
        let mut asked = self.0.subscribe();
        loop {
            let open = *asked.borrow_and_update();
            if let Some(name) = open.end {
                return Asked::End(name);
            }
            if open.reload {
                self.0.send_modify(|open| open.reload = false);
                return Asked::Reload;
            }
            // It cannot be closed: this one holds it.
            let _ = asked.changed().await;
        }
    }
}

/// Ends the process as it is. What is left is killed by its launchers, which see it go.
fn leave(socket: &std::path::Path, log: &Stderr, code: i32) -> ! {
    log.flush(Duration::from_millis(200));
    let _ = std::fs::remove_file(socket);
    std::process::exit(code)
}
