//! What an actor is told: commands of operators (bounded) and what its own
//! tasks report (each with its generation).

use std::{sync::Arc, time::Duration};

use stockade_proto::launch::launch_report::Report;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};

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
    store::Counters,
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
    /// A call waits for a plugin that starts on demand.
    Needed,
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
    #[error("the plugin was removed")]
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
    /// The calls channel ended; death may follow.
    Hangup(u64, String),
    /// Some time later it has not died.
    StillThere(u64, String),
    /// The plugin did what the protocol does not allow.
    Breach(u64, String),
    Silent(u64, Duration, bool),
    CallOverran(u64, Arc<str>),
    ToolErrors(u64, u32, Option<String>, String),
    /// A tool raised: its name and where.
    Raised(u64, Arc<str>, String),
    /// The guard wants it killed.
    Over(u64, Cause),
    /// The guard names it; it goes on.
    Warned(u64, String),
    Drained(u64),
    Timer(Slot, u64),
    Healed(u64),
}

/// Where an actor's tasks report to.
#[derive(Clone, Debug)]
pub(super) struct Sink(mpsc::UnboundedSender<Internal>);

impl Sink {
    pub(super) fn new() -> (Self, mpsc::UnboundedReceiver<Internal>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Sink(sender), receiver)
    }

    /// An actor that is gone wants to hear nothing.
    pub(super) fn tell(&self, event: Internal) {
        let _ = self.0.send(event);
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
