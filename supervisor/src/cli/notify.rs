//! Tells systemd from a thread of its own: if it does not read, nobody else waits. What
//! came to nothing in the meantime is not said any more.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use sd_notify::NotifyState;

/// Where the daemon is, and what the status line says of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Ready(String),
    Reloading,
    Stopping,
}

/// What has not been said yet.
#[derive(Debug, Default)]
struct Unsaid {
    phases: VecDeque<Phase>,
    status: Option<String>,
    watchdog: bool,
    /// Nothing is said after that it stops.
    stopping: bool,
}

#[derive(Debug)]
enum Message {
    Phase(Phase),
    Status(String),
    Watchdog,
}

impl Unsaid {
    fn enter(&mut self, phase: Phase) {
        if self.stopping {
            return;
        }
        match phase {
            Phase::Ready(_) if matches!(self.phases.back(), Some(Phase::Ready(_))) => {
                self.phases.pop_back();
            }
            Phase::Ready(_) => {}
            // Whatever was before is over.
            Phase::Reloading | Phase::Stopping => self.phases.clear(),
        }
        self.stopping = phase == Phase::Stopping;
        self.status = None;
        self.phases.push_back(phase);
    }

    fn next(&mut self) -> Option<Message> {
        if std::mem::take(&mut self.watchdog) {
            return Some(Message::Watchdog);
        }
        let phase = self.phases.pop_front().map(Message::Phase);
        phase.or_else(|| self.status.take().map(Message::Status))
    }
}

#[derive(Debug, Default)]
struct Shared {
    unsaid: Mutex<Unsaid>,
    filled: Condvar,
}

impl Shared {
    fn unsaid(&self) -> MutexGuard<'_, Unsaid> {
        self.unsaid.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self) {
        let mut unsaid = self.unsaid();
        loop {
            let Some(message) = unsaid.next() else {
                unsaid = self.filled.wait(unsaid).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(unsaid);
            say(&message);
            unsaid = self.unsaid();
        }
    }
}

fn say(message: &Message) {
    use NotifyState::{Ready, Reloading, Status, Stopping, Watchdog};
    let _ = match message {
        Message::Phase(Phase::Ready(status)) => sd_notify::notify(&[Ready, Status(status)]),
        Message::Phase(Phase::Reloading) => sd_notify::notify(&[Reloading, Status("reloading")]),
        Message::Phase(Phase::Stopping) => {
            sd_notify::notify(&[Stopping, Status("stopping every plugin")])
        }
        Message::Status(status) => sd_notify::notify(&[Status(status)]),
        Message::Watchdog => sd_notify::notify(&[Watchdog]),
    };
}

/// Handle of the thread, which goes with the process. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Notifier(Arc<Shared>);

impl Notifier {
    /// Without systemd there is no thread, and nothing is said.
    pub(super) fn start() -> Self {
        let shared: Arc<Shared> = Arc::default();
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            let telling = shared.clone();
            let thread = std::thread::Builder::new().name("notify".into());
            if let Err(error) = thread.spawn(move || telling.tell()) {
                tracing::error!("systemd is told nothing: {error}");
            }
        }
        Notifier(shared)
    }

    fn note(&self, note: impl FnOnce(&mut Unsaid)) {
        note(&mut self.0.unsaid());
        self.0.filled.notify_one();
    }

    pub(super) fn enter(&self, phase: Phase) {
        self.note(|unsaid| unsaid.enter(phase));
    }

    pub(super) fn status(&self, status: String) {
        self.note(|unsaid| unsaid.status = Some(status).filter(|_| !unsaid.stopping));
    }

    pub(super) fn watchdog(&self) {
        self.note(|unsaid| unsaid.watchdog = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(unsaid: &mut Unsaid) -> Vec<String> {
        std::iter::from_fn(|| unsaid.next()).map(|message| format!("{message:?}")).collect()
    }

    #[test]
    fn what_waits_is_bounded_and_only_what_still_holds_is_said() {
        let mut unsaid = Unsaid::default();
        for n in 0..1000 {
            unsaid.enter(Phase::Reloading);
            unsaid.enter(Phase::Ready(n.to_string()));
            unsaid.status = Some(format!("status {n}"));
            unsaid.watchdog = true;
        }
        let all =
            ["Watchdog", "Phase(Reloading)", "Phase(Ready(\"999\"))", "Status(\"status 999\")"];
        assert_eq!(said(&mut unsaid), all);
        unsaid.enter(Phase::Reloading);
        unsaid.enter(Phase::Stopping);
        unsaid.enter(Phase::Ready("late".into()));
        assert_eq!(said(&mut unsaid), ["Phase(Stopping)"]);
    }
}
