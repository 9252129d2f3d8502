//! One rogue among good plugins, from the start to a clean end.

use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use stockade_proto::v1::PluginHealth;
use stockade_tests::{Daemon, Options, Outcome, eventually, open_files};

/// A daemon with the plugins `good` and `rogue`, and a bystander.
pub struct Scene {
    pub daemon: Daemon,
    descriptors: usize,
    /// Deaths of earlier processes are no news.
    generation: AtomicU64,
}

/// Short time-outs, and restarts that do not run out.
pub const QUICK: &str = "
[timeouts]
call = \"60s\"
cancel_grace = \"200ms\"
stop = \"1s\"
[restart]
backoff_min = \"10ms\"
backoff_max = \"50ms\"
max_deaths = 1000
";

impl Scene {
    /// `more` goes behind `[run]` of the rogue's manifest; it must serve.
    pub async fn new(more: &str) -> Self {
        let scene = Self::unready(more).await;
        scene.daemon.serving("rogue").await;
        Scene { descriptors: open_files(scene.daemon.pid()), ..scene }
    }

    /// The same, whether the rogue serves or not.
    pub async fn unready(more: &str) -> Self {
        let daemon = Options::new().bystander().rogue("rogue", more).start().await;
        Scene { daemon, descriptors: usize::MAX, generation: AtomicU64::new(0) }
    }

    pub async fn call(&self, tool: &str, args: Value) -> Outcome {
        self.daemon.call("rogue", tool, args).await
    }

    /// The rogue's death is told with this cause, and it serves again. Returns
    /// the reason.
    pub async fn recovers_from(&self, cause: &str) -> String {
        let known = self.generation.load(Ordering::Relaxed);
        let told = |health: &PluginHealth| {
            health.generation > known.max(1)
                && health.last_exit.as_ref().is_some_and(|exit| exit.cause == cause)
        };
        let health = self.daemon.until("rogue", told).await;
        let reason = health.last_exit.expect("last exit").reason;
        let generation = self.daemon.serving("rogue").await.generation;
        self.generation.store(generation, Ordering::Relaxed);
        let pid = self.call("pid", serde_json::json!({})).await.unwrap();
        assert!(pid.is_u64(), "it serves again");
        reason
    }

    /// The bystander noticed nothing, no descriptor leaked, and after a SIGTERM
    /// no process is left.
    pub async fn end(self) {
        let (pid, before) = (self.daemon.pid(), self.descriptors);
        eventually("the descriptors are back", || async {
            (open_files(pid) <= before.saturating_add(2)).then_some(())
        })
        .await;
        self.daemon.stop().await;
    }
}
