//! What systemd is told: ready, status, watchdog. Without systemd, nothing.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use stockade::{
    Supervisor,
    gateway::{Doors, Within, report::health},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Notify,
    task::JoinHandle,
};
use tracing::{info, warn};

use super::notify::{Notifier, Phase};

/// Between looks at the status text.
const STATUS: Duration = Duration::from_secs(1);

/// Standard error goes to the journal.
pub(super) fn journal() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some()
}

/// The daemon as a unit.
pub(super) struct Service {
    tasks: Vec<JoinHandle<()>>,
    reload: Arc<Wish>,
    notifier: Notifier,
}

/// To reload: one that waits stands for all that come meanwhile.
#[derive(Default)]
struct Wish {
    waits: Mutex<bool>,
    made: Notify,
}

impl Wish {
    fn waits(&self) -> MutexGuard<'_, bool> {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Service {
    /// Says READY and keeps status and watchdog going.
    pub(super) fn start(supervisor: &Supervisor, doors: &Doors) -> Self {
        let (reload, notifier): (Arc<Wish>, _) = (Arc::default(), Notifier::start());
        notifier.enter(Phase::Ready(status(supervisor)));
        let reloading = reloads(supervisor.clone(), reload.clone(), notifier.clone());
        let mut tasks = vec![tokio::spawn(reloading)];
        if std::env::var_os("NOTIFY_SOCKET").is_some() {
            tasks.push(tokio::spawn(report_status(supervisor.clone(), notifier.clone())));
        }
        if let Some(period) = sd_notify::watchdog_enabled() {
            let feeding = feed_watchdog(period / 2, doors.within(), notifier.clone());
            tasks.push(tokio::spawn(feeding));
        }
        Service { tasks, reload, notifier }
    }

    /// Reloads, one after the other, while signals are listened to. That it will is said at
    /// once, also while it does so for an earlier signal.
    pub(super) fn reload(&self) {
        let mut waits = self.reload.waits();
        *waits = true;
        self.notifier.enter(Phase::Reloading);
        self.reload.made.notify_one();
    }

    pub(super) fn stopping(&self) {
        self.notifier.enter(Phase::Stopping);
    }
}

async fn reloads(supervisor: Supervisor, wish: Arc<Wish>, notifier: Notifier) {
    loop {
        wish.made.notified().await;
        *wish.waits() = false;
        info!("SIGHUP: reloading");
        let reloaded = supervisor.reload_all().await;
        for problem in &reloaded.problems {
            warn!("{problem}");
        }
        let now = status(&supervisor);
        // Ready for the last signal is ready for all.
        let waits = wish.waits();
        if !*waits {
            notifier.enter(Phase::Ready(now));
        }
    }
}

/// The counts and the worst reason.
fn status(supervisor: &Supervisor) -> String {
    let list = health::list(&supervisor.registry().snapshot());
    let mut text = format!(
        "{} plugins: {} available, {} failed, {} unavailable",
        list.total, list.available, list.failed, list.unavailable
    );
    let worst = ["FAILED", "UNAVAILABLE"]
        .into_iter()
        .find_map(|state| list.plugins.iter().find(|plugin| plugin.state == state));
    if let Some(plugin) = worst {
        let reason = plugin.reason.as_deref().unwrap_or(&plugin.substate);
        text += &format!("; {}: {}", plugin.name, reason.lines().next().unwrap_or_default());
    }
    text
}

async fn report_status(supervisor: Supervisor, notifier: Notifier) {
    let mut last = String::new();
    loop {
        let now = status(&supervisor);
        if now != last {
            notifier.status(now.clone());
            last = now;
        }
        tokio::time::sleep(STATUS).await;
    }
}

/// Fed only when a request has been answered: by the same runtime and the same routes as
/// everybody's, but in nobody's queue.
async fn feed_watchdog(period: Duration, within: Within, notifier: Notifier) {
    loop {
        let asked = tokio::time::timeout(period, ask(&within)).await;
        if matches!(asked, Ok(Ok(true))) {
            notifier.watchdog();
        }
        tokio::time::sleep(period).await;
    }
}

async fn ask(within: &Within) -> std::io::Result<bool> {
    let mut stream = within.connect()?;
    stream
        .write_all(b"GET /v1/plugins HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(&head == b"HTTP/1.1 200")
}
