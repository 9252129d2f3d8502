//! Somebody who calls a good plugin all the time and asks for health: neither
//! may ever fail, whatever another plugin does.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use serde_json::json;

use crate::Daemon;

/// Runs until [`Bystander::check`].
pub struct Bystander {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Result<(), String>>,
}

impl Bystander {
    /// Starts calling the plugin `good`.
    pub fn start(daemon: &Daemon) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let calls = Arc::new(AtomicU64::new(0));
        let (daemon, stopped, counted) = (daemon.client(), stop.clone(), calls.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                let outcome = daemon.call("good", "ping", json!({"text": "x"})).await;
                if !outcome.ok || outcome.result != "x" {
                    return Err(format!("a bystander's call failed: {outcome:?}"));
                }
                let list = daemon.list().await;
                if list.total == 0 || list.plugins.len() as u32 != list.total {
                    return Err(format!("health is wrong: {list:?}"));
                }
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(std::time::Duration::from_millis(3)).await;
            }
            Ok(())
        });
        Bystander { stop, calls, task }
    }

    /// Ends it.
    ///
    /// # Panics
    /// A call or a question failed, or none was made.
    pub async fn check(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.expect("bystander").unwrap_or_else(|what| panic!("{what}"));
        assert!(self.calls.load(Ordering::Relaxed) > 0, "the bystander never called");
    }
}
