//! What the clocks have shown, against what they may.

use std::{fmt, time::Duration};

use crate::clock::Readings;

/// How long each may take.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of a hundred questions for health, all but one.
    pub health_p99: Duration,
    /// Each question for health.
    pub health: Duration,
    /// Each question for the daemon's own state.
    pub admin: Duration,
    /// Another plugin's call.
    pub call: Duration,
    /// Another plugin's restart.
    pub restart: Duration,
    /// A command of the command line, its own start included.
    pub command: Duration,
    /// From SIGHUP until the daemon reloads.
    pub hang_up: Duration,
    /// From SIGHUP until the daemon has reloaded.
    pub reload: Duration,
}

/// What a [`crate::Clock`] has seen.
#[derive(Clone, Debug)]
pub struct Report {
    pub health_p99: Duration,
    pub health_worst: Duration,
    pub admin_worst: Duration,
    pub call_worst: Duration,
    pub call_p99: Duration,
    /// None = nobody was restarted.
    pub restart_worst: Option<Duration>,
    /// None = no command was run.
    pub command_worst: Option<Duration>,
    /// None = no SIGHUP was sent.
    pub hang_up_worst: Option<Duration>,
    /// The same, until it had reloaded.
    pub reload_worst: Option<Duration>,
    /// By how many bytes the daemon's resident memory grew at most.
    pub growth: u64,
    /// How many questions for health were answered.
    pub samples: usize,
    /// How much later than due a thread woke that only sleeps: p99 and worst.
    late: (Duration, Duration),
    suspended: Duration,
}

impl Report {
    pub(crate) fn of(readings: Readings) -> Self {
        let worst = |all: &[Duration]| all.iter().max().copied().unwrap_or_default();
        Report {
            health_p99: p99(&readings.health),
            health_worst: worst(&readings.health),
            admin_worst: worst(&readings.admin),
            call_worst: worst(&readings.calls),
            call_p99: p99(&readings.calls),
            restart_worst: readings.restarts.iter().max().copied(),
            command_worst: readings.commands.iter().max().copied(),
            hang_up_worst: readings.hang_ups.iter().max().copied(),
            reload_worst: readings.reloads.iter().max().copied(),
            growth: readings.memory.1.saturating_sub(readings.memory.0),
            samples: readings.health.len(),
            late: (p99(&readings.late), worst(&readings.late)),
            suspended: readings.suspended,
        }
    }

    /// Every clock kept its bound. What the machine itself was late, and the time
    /// for which somebody had suspended the daemon, is nobody's fault.
    ///
    /// # Errors
    /// Which did not, and what all have shown.
    pub fn check(&self, bounds: &Bounds) -> Result<(), String> {
        let (usual, worst) = (self.late.0 + self.suspended, self.late.1 + self.suspended);
        let rows = [
            ("health (p99)", self.health_p99, bounds.health_p99 + usual),
            ("health", self.health_worst, bounds.health + worst),
            ("the daemon's state", self.admin_worst, bounds.admin + worst),
            ("another plugin's call", self.call_worst, bounds.call + worst),
            (
                "another plugin's restart",
                self.restart_worst.unwrap_or_default(),
                bounds.restart + worst,
            ),
            ("a command", self.command_worst.unwrap_or_default(), bounds.command + worst),
            ("SIGHUP", self.hang_up_worst.unwrap_or_default(), bounds.hang_up + worst),
            ("a reload", self.reload_worst.unwrap_or_default(), bounds.reload + worst),
        ];
        match rows.iter().find(|(_, took, bound)| took > bound) {
            None => Ok(()),
            Some((what, took, bound)) => {
                Err(format!("{what} took {took:?}, at most {bound:?} are allowed: {self}"))
            }
        }
    }
}

impl Bounds {
    /// For the fault and abuse suites, which run several at a time on two cores
    /// and under `nice`.
    pub const LENIENT: Bounds = Bounds {
        health_p99: Duration::from_secs(2),
        health: Duration::from_secs(2),
        admin: Duration::from_secs(2),
        call: Duration::from_secs(5),
        restart: Duration::from_secs(10),
        command: Duration::from_secs(5),
        hang_up: Duration::from_secs(5),
        reload: Duration::from_secs(5),
    };

    /// Whatever anybody does to the daemon. The bar of 20 ms is one of a release build
    /// (`make bench` has its row): without optimisation a request costs several times as
    /// much, and so do those that are before it.
    pub const STRICT: Bounds = Bounds {
        health_p99: Duration::from_millis(if cfg!(debug_assertions) { 40 } else { 20 }),
        health: Duration::from_millis(100),
        admin: Duration::from_millis(100),
        call: Duration::from_millis(150),
        restart: Duration::from_secs(1),
        command: Duration::from_millis(100),
        hang_up: Duration::from_millis(100),
        reload: Duration::from_millis(500),
    };

    /// On this machine as it is now: four times what the control has shown, if
    /// that is more.
    #[must_use]
    pub fn scaled(&self, control: &Report) -> Bounds {
        Bounds {
            health_p99: self.health_p99.max(4 * control.health_p99),
            health: self.health.max(4 * control.health_worst),
            admin: self.admin.max(4 * control.admin_worst),
            call: self.call.max(4 * control.call_worst),
            restart: self.restart.max(4 * control.restart_worst.unwrap_or_default()),
            command: self.command.max(4 * control.command_worst.unwrap_or_default()),
            hang_up: self.hang_up.max(4 * control.hang_up_worst.unwrap_or_default()),
            reload: self.reload.max(4 * control.reload_worst.unwrap_or_default()),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { health_p99, health_worst, admin_worst, call_worst, samples, .. } = self;
        write!(
            to,
            "health p99 {health_p99:.1?}, worst {health_worst:.1?} of {samples}; the daemon's \
             state {admin_worst:.1?}; call {call_worst:.1?}; restart {:.1?}; command {:.1?}; \
             SIGHUP {:.1?}, reload {:.1?}; grew by {} MiB; the machine was {:.1?} late",
            self.restart_worst.unwrap_or_default(),
            self.command_worst.unwrap_or_default(),
            self.hang_up_worst.unwrap_or_default(),
            self.reload_worst.unwrap_or_default(),
            self.growth >> 20,
            self.late.1
        )
    }
}

fn p99(all: &[Duration]) -> Duration {
    let mut sorted = all.to_vec();
    sorted.sort_unstable();
    // The largest of fewer than a hundred.
    sorted
        .get((sorted.len() * 99 / 100).min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}
