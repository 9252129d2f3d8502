//! The way of a call to a process that takes it: waiting for a start that is under
//! way, or saying why there is none.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{CallError, run::Attempt};
use crate::{
    lifecycle::{State, Substate},
    plugin::{LeaseError, Session, Snapshot},
};

/// The smallest deadline there is.
pub(super) const LEAST: Duration = Duration::from_millis(1);

impl Attempt<'_> {
    /// The session to call, waiting for a start that is under way.
    pub(super) async fn session(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Arc<Session>, CallError> {
        let snapshot = self.handle.snapshot();
        let mut snapshots = self.handle.watch();
        let patience = match deadline {
            Some(deadline) => deadline,
            None => {
                let manifest = snapshot.manifest.as_ref();
                self.started + manifest.map_or(LEAST, |manifest| manifest.timeouts.call)
            }
        };
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            if let Some(session) = ready(&snapshot) {
                return Ok(session);
            }
            if !self.on_its_way(&snapshot) {
                return Err(self.unavailable(&snapshot));
            }
            match tokio::time::timeout_at(patience.into(), snapshots.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(self.unavailable(&snapshot)),
                Err(_) => {
                    let message = format!(
                        "The plugin was not ready within the call's deadline ({}).",
                        snapshot.progress.as_deref().unwrap_or(snapshot.substate.as_str())
                    );
                    return Err(CallError::Timeout { message, cause: None });
                }
            }
        }
    }

    /// It will serve (or be said to fail) without anybody doing anything.
    fn on_its_way(&self, snapshot: &Snapshot) -> bool {
        match snapshot.substate {
            Substate::OnDemand => {
                self.handle.needed();
                true
            }
            // Its process has just gone; the next snapshot says so.
            _ if snapshot.session.as_ref().is_some_and(|session| session.closed().is_some()) => {
                true
            }
            Substate::Starting | Substate::Queued | Substate::Dying | Substate::Killing => true,
            _ => false,
        }
    }

    pub(super) fn unavailable(&self, snapshot: &Snapshot) -> CallError {
        let state = snapshot.state();
        let name = &snapshot.name;
        let reason = match (&snapshot.cause, snapshot.substate) {
            (Some(cause), _) => cause.reason.clone(),
            (None, Substate::Stopped) => {
                format!("Stopped by an operator. Run `stockade start {name}`.")
            }
            (None, Substate::Disabled) => format!("Disabled. Run `stockade enable {name}`."),
            (None, Substate::Draining | Substate::Stopping) => "It is being stopped.".to_owned(),
            (None, substate) => format!("{substate}."),
        };
        let retry_after = match (state, snapshot.next_retry_at) {
            (State::Loaded, _) | (State::Initialized | State::Running, _) => None,
            (_, Some(at)) => {
                let wait = at.duration_since(jiff::Timestamp::now());
                Some(Duration::try_from(wait).unwrap_or_default().max(Duration::from_secs(1)))
            }
            (State::Unavailable, None) => Some(Duration::from_secs(60)),
            (State::Failed, None) => None,
        };
        CallError::PluginUnavailable { state, reason, retry_after }
    }

    pub(super) fn not_leased(&self, session: &Session, error: LeaseError) -> CallError {
        let queue = session.manifest.queue;
        let busy = match session.manifest.concurrency {
            1 => "1 call runs".to_owned(),
            many => format!("{many} calls run"),
        };
        match error {
            LeaseError::QueueFull => CallError::QueueFull(format!(
                "{busy} and {} wait, as many as may. Retry, or raise run.concurrency or \
                 run.queue.size.",
                queue.size
            )),
            LeaseError::QueueTimeout => CallError::QueueFull(format!(
                "{busy}, and this one waited {} without its turn. Retry, or raise \
                 run.concurrency or run.queue.timeout.",
                humantime::format_duration(queue.timeout)
            )),
            LeaseError::Closed(_) => self.unavailable(&self.handle.snapshot()),
        }
    }
}

/// The session of a plugin that takes calls.
pub(super) fn ready(snapshot: &Snapshot) -> Option<Arc<Session>> {
    let session = snapshot.session.as_ref().filter(|_| snapshot.ready())?;
    // A session that was closed a moment ago: the next snapshot says why.
    session.closed().is_none().then(|| session.clone())
}
