//! Somebody who calls a good plugin all the time and asks for health: neither
//! may ever fail or take long, whatever another plugin does.

use std::time::Duration;

use crate::{Bounds, Client, Clock, Daemon, Report, clock};

/// Runs until [`Bystander::check`].
pub struct Bystander {
    clock: Clock,
    bounds: Bounds,
}

impl Bystander {
    /// Starts calling the plugin `good`.
    pub fn start(daemon: &Daemon) -> Self {
        Bystander { clock: Clock::start(daemon, None), bounds: Bounds::LENIENT }
    }

    /// Its calls may take so long.
    #[must_use]
    pub fn allowing(mut self, call: Duration) -> Self {
        self.bounds.call = call;
        self
    }

    /// Restarts a plugin of this daemon and says how long it took.
    pub async fn restart_other(daemon: &Client, name: &str) -> Duration {
        clock::restart(daemon, name).await
    }

    /// Ends it.
    ///
    /// # Panics
    /// A call or a question failed, took too long, or none was made.
    pub async fn check(self) -> Report {
        let report = self.clock.report().await;
        assert!(report.samples > 0, "the bystander never asked");
        report.check(&self.bounds).unwrap_or_else(|what| panic!("{what}"));
        report
    }
}
