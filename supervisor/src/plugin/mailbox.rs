//! What an actor is told: commands of operators (bounded) and what its own
//! tasks report (each with its generation).

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stockade_proto::launch::launch_report::Report;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc, oneshot, watch};

use super::{
    handshake::StartFailure,
    launch::Launched,
    logs::Logs,
    metrics::Metrics,
    notice::Notice,
    session::Session,
    snapshot::{Recent, Snapshot},
};
use crate::{
    lifecycle::{Cause, Slot},
    manifest::{Found, Manifest},
    preflight::{LaunchPlan, Refusal},
    store::{Counters, CrashRecord},
};

/// An operator's wish. The text says who, for the log.
#[derive(Clone, Debug)]
pub enum Command {
    /// Serve.
    Start(String),
    /// Stop, and stay stopped through restarts of the daemon.
    Stop(String),
    /// A new process.
    Restart(String),
    /// Forget all deaths and serve.
    Reset(String),
    /// May run again.
    Enable(String),
    /// Never run, until enabled.
    Disable(String),
    /// The configuration lets it run, or not. Not remembered.
    Allow(bool),
    /// Go away; the directory was removed or the daemon ends.
    Remove(String),
    /// The directory has changed.
    Replace(Box<Found>),
}

impl Command {
    /// It is to be known after a restart of the daemon, too.
    pub fn is_kept(&self) -> bool {
        use Command::{Disable, Enable, Reset, Start, Stop};
        matches!(self, Start(_) | Stop(_) | Reset(_) | Enable(_) | Disable(_))
    }
}

/// A command, and who wants to know that it has been taken.
pub(super) type Order = (Command, Option<oneshot::Sender<()>>);

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MailboxError {
    /// Too many wait.
    #[error("the plugin has too many commands waiting; try again")]
    Busy,
    /// The plugin is gone.
    #[error("the plugin is gone: it was removed, or the daemon is ending")]
    Gone,
}

/// What the actor's own tasks report.
pub(super) enum Internal {
    Checked(u64, Result<Box<LaunchPlan>, Refusal>),
    Token(u64, OwnedSemaphorePermit),
    Launched(u64, Box<Launched>),
    /// The launcher could not be started.
    NotSpawned(u64, std::io::Error),
    /// The launcher reports, or has hung up.
    Report(u64, Option<Report>),
    Pid(u64, u32, std::os::fd::OwnedFd),
    Greeted(u64),
    Progress(u64, String),
    Ready(u64, Arc<Session>),
    StartFailed(u64, StartFailure),
    Notice(u64, Notice),
    /// What the process said before it has been read; bytes that it held, and where
    /// cores go.
    NoticeHeard(u64, u64, String),
    /// Why it died, found out.
    Examined(u64, Box<(Cause, CrashRecord, String)>),
    /// What a launcher that was killed left behind is gone.
    Reaped(u64),
    /// Where a process hangs that survives SIGKILL.
    Explained(u64, Cause),
    /// The calls channel ended; death may follow.
    Hangup(u64, String),
    /// Some time later it has not died.
    StillThere(u64, String),
    /// The plugin did what the protocol does not allow.
    Breach(u64, String),
    Silent(u64, Duration, bool),
    CallOverran(u64, Arc<str>),
    ToolErrors(u64, u32, Option<String>, String),
    /// A tool raised: its name and where, and how many more have since the last one
    /// that was told.
    Raised(u64, Arc<str>, String, u64),
    /// The guard wants it killed.
    Over(u64, Cause),
    /// The guard names it; it goes on.
    Warned(u64, String),
    Drained(u64),
    Timer(Slot, u64),
    Healed(u64),
    /// A call waits for a plugin that starts on demand.
    Needed,
}

/// What is done with a report when one of its kind waits already.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Merge {
    /// The first one tells it all.
    First,
    /// The latest one counts.
    Latest,
}

impl Internal {
    /// What a plugin, a client or another thread can cause again and again: of each
    /// kind one waits for each process. All else comes a few times in a process's life.
    fn merges(&self) -> Option<(u8, u64, Merge)> {
        use Merge::{First, Latest};
        Some(match self {
            Internal::Progress(generation, _) => (0, *generation, Latest),
            Internal::Raised(generation, ..) => (1, *generation, Latest),
            Internal::Warned(generation, _) => (2, *generation, Latest),
            Internal::Hangup(generation, _) => (3, *generation, First),
            Internal::StillThere(generation, _) => (4, *generation, First),
            Internal::Breach(generation, _) => (5, *generation, First),
            Internal::Silent(generation, ..) => (6, *generation, First),
            Internal::CallOverran(generation, _) => (7, *generation, First),
            Internal::ToolErrors(generation, ..) => (8, *generation, First),
            Internal::Over(generation, _) => (9, *generation, First),
            Internal::Drained(generation) => (10, *generation, First),
            Internal::Healed(number) => (11, *number, First),
            Internal::Needed => (12, 0, First),
            _ => return None,
        })
    }
}

#[derive(Default)]
struct Queue {
    waiting: Mutex<VecDeque<Internal>>,
    filled: Notify,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Internal>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where an actor's tasks report to. Never full: what can be caused again and again
/// is merged, not queued.
#[derive(Clone)]
pub(super) struct Sink(Arc<Queue>);

/// What has been reported, in order.
pub(super) struct Inbox(Arc<Queue>);

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sink")
    }
}

impl Sink {
    pub(super) fn new() -> (Self, Inbox) {
        let queue = Arc::new(Queue::default());
        (Sink(queue.clone()), Inbox(queue))
    }

    pub(super) fn tell(&self, mut event: Internal) {
        let mut waiting = self.0.lock();
        let own = event.merges();
        let same = own.and_then(|own| waiting.iter_mut().find(|one| one.merges() == Some(own)));
        match (same, own) {
            (Some(same), Some((.., Merge::Latest))) => {
                if let (Internal::Raised(.., more), Internal::Raised(.., before)) =
                    (&mut event, &*same)
                {
                    *more += before + 1;
                }
                *same = event;
            }
            (Some(_), _) => {}
            (None, _) => waiting.push_back(event),
        }
        drop(waiting);
        self.0.filled.notify_one();
    }
}

impl Inbox {
    /// The next report. Cancel-safe.
    pub(super) async fn recv(&mut self) -> Internal {
        loop {
            let filled = self.0.filled.notified();
            if let Some(report) = self.0.lock().pop_front() {
                return report;
            }
            filled.await;
        }
    }
}

/// An actor that is gone wants to hear nothing, and holds nothing.
impl Drop for Inbox {
    fn drop(&mut self) {
        self.0.lock().clear();
    }
}

/// How the rest of the house holds a plugin. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(pub(super) Arc<Ends>);

/// What a handle leads to.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) name: Arc<str>,
    pub(super) commands: mpsc::Sender<Order>,
    pub(super) sink: Sink,
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(super) counters: Arc<Counters>,
    pub(super) logs: Arc<Logs>,
    pub(super) recent: Arc<Recent>,
    pub(super) metrics: Arc<Metrics>,
}

impl Handle {
    /// The plugin's name.
    pub fn name(&self) -> &Arc<str> {
        &self.0.name
    }

    /// How it is now. Never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshots.borrow().clone()
    }

    /// Changes of its state.
    pub fn watch(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.snapshots.clone()
    }

    /// Its counts.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.0.counters
    }

    /// Its output.
    pub fn logs(&self) -> &Arc<Logs> {
        &self.0.logs
    }

    /// How it has fared.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Times of its last calls.
    pub fn recent(&self) -> &Arc<Recent> {
        &self.0.recent
    }

    /// A call waits for it; it may start on demand.
    pub fn needed(&self) {
        self.0.sink.tell(Internal::Needed);
    }

    /// Leaves a command.
    ///
    /// # Errors
    /// Too many wait, or the plugin is gone.
    pub fn command(&self, command: Command) -> Result<(), MailboxError> {
        self.leave((command, None))
    }

    /// Leaves a command and waits until it has been taken; the snapshot is of
    /// after it.
    ///
    /// # Errors
    /// Too many wait, or the plugin is gone.
    pub async fn order(&self, command: Command) -> Result<(), MailboxError> {
        let (taken, wait) = oneshot::channel();
        self.leave((command, Some(taken)))?;
        wait.await.map_err(|_| MailboxError::Gone)
    }

    fn leave(&self, order: Order) -> Result<(), MailboxError> {
        self.0.commands.try_send(order).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => MailboxError::Busy,
            mpsc::error::TrySendError::Closed(_) => MailboxError::Gone,
        })
    }
}

/// The manifest of a found directory, with the operator's overlay.
pub(super) type Usable = Result<Arc<Manifest>, Cause>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_come_again_and_again_waits_once() {
        let (sink, inbox) = Sink::new();
        for n in 0..10_000 {
            sink.tell(Internal::Raised(1, "t".into(), n.to_string(), 0));
            sink.tell(Internal::Needed);
            sink.tell(Internal::Breach(1, n.to_string()));
            sink.tell(Internal::Progress(n % 2, n.to_string()));
        }
        sink.tell(Internal::Greeted(1));
        let waiting = inbox.0.lock();
        assert_eq!(waiting.len(), 6);
        assert!(matches!(&waiting[0], Internal::Raised(1, _, text, 9999) if text == "9999"));
        assert!(matches!(&waiting[2], Internal::Breach(1, first) if first == "0"));
    }
}
