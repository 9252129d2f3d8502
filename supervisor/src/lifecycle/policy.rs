//! The restart policy: how long to wait, when to give up.

use std::{collections::VecDeque, time::Duration};

/// What the operator wants of the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// To serve.
    Run,
    /// To be stopped until started.
    Stopped,
    /// To stay down, whatever happens, until enabled.
    Disabled,
    /// To be gone: its directory was removed or the daemon ends.
    Removed,
}

/// Numbers of one plugin's lifecycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// From spawn to the answer to Hello.
    pub handshake: Duration,
    /// From Hello to ready; progress extends it.
    pub init: Duration,
    /// However much progress is reported.
    pub init_max: Duration,
    /// Of draining, and again from the request to stop to the kill.
    pub stop: Duration,
    /// From SIGKILL to UNKILLABLE.
    pub kill: Duration,
    /// From a notice of death to the kill.
    pub notice: Duration,
    /// The second restart waits about this long.
    pub backoff_min: Duration,
    /// No restart waits longer.
    pub backoff_max: Duration,
    /// Deaths within `window` that are still restarted.
    pub max_deaths: u32,
    /// Sliding.
    pub window: Duration,
    /// After exhaustion; None = hold.
    pub slow_retry: Option<Duration>,
    /// Serving this long (or twice the last delay) is a stable run.
    pub stable: Duration,
    /// First and longest time between checks of an UNAVAILABLE plugin.
    pub reprobe: (Duration, Duration),
    /// Starts at the first call instead of with the daemon.
    pub on_demand: bool,
    /// A successor may start while a large dying process is torn down.
    pub overlap: bool,
    /// The first raised error holds the plugin FAILED.
    pub hold_on_error: bool,
}

impl Default for Policy {
    fn default() -> Self {
        let s = Duration::from_secs;
        Policy {
            handshake: s(10),
            init: s(60),
            init_max: s(1800),
            stop: s(10),
            kill: s(10),
            notice: s(1),
            backoff_min: s(1),
            backoff_max: s(60),
            max_deaths: 5,
            window: s(600),
            slow_retry: Some(s(900)),
            stable: s(60),
            reprobe: (s(60), s(900)),
            on_demand: false,
            overlap: true,
            hold_on_error: false,
        }
    }
}

/// The restart budget of one instance.
#[derive(Clone, Debug, Default)]
pub(super) struct Budget {
    deaths: VecDeque<Duration>,
    /// Deaths since the last stable run.
    streak: u32,
    last_delay: Duration,
}

/// What a death leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Another start after this long.
    Restart(Duration),
    /// No more budget; that many deaths in the window.
    Exhausted(u32),
}

impl Budget {
    /// Counts an unrequested death. `served` = how long it was serving, `dice`
    /// in 0..1 places the delay between d/2 and d.
    pub(super) fn death(
        &mut self,
        policy: &Policy,
        now: Duration,
        served: Option<Duration>,
        dice: f64,
    ) -> Verdict {
        if served.is_some_and(|served| served >= policy.stable.max(self.last_delay * 2)) {
            self.streak = 0;
        }
        self.deaths.push_back(now);
        while self.deaths.front().is_some_and(|death| now.saturating_sub(*death) > policy.window) {
            self.deaths.pop_front();
        }
        if self.deaths.len() > policy.max_deaths as usize {
            return Verdict::Exhausted(self.deaths.len() as u32);
        }
        let delay = match self.streak {
            0 => Duration::ZERO,
            n => {
                let doubled = policy.backoff_min.saturating_mul(1 << (n - 1).min(20));
                let full = doubled.min(policy.backoff_max);
                full / 2 + full.mul_f64(dice.clamp(0.0, 1.0) / 2.0)
            }
        };
        self.streak = self.streak.saturating_add(1);
        self.last_delay = delay;
        Verdict::Restart(delay)
    }

    /// An operator said: start afresh.
    pub(super) fn reset(&mut self) {
        *self = Budget::default();
    }
}
