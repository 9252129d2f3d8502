//! On the way down: kills, notices, deaths, and what follows them.

use std::time::Duration;

use super::{
    cause::{Cause, CauseCode, Class},
    machine::{Effect, Effects, Machine, Slot},
    policy::{Verdict, Wanted},
    state::{Phase, Unavailability},
};

impl Machine {
    /// The intent is recorded before the signal is sent.
    pub(super) fn kill(&mut self, cause: Cause, now: Duration, out: &mut Effects) {
        self.release_token(out);
        out.push(Effect::Close(self.generation, cause.clone()));
        self.cause = Some(cause.clone());
        self.intent = Some(cause);
        self.enter(Phase::Killing, Some(now + self.policy.kill), out);
        out.push(Effect::KillTree(self.generation));
    }

    pub(super) fn notice(
        &mut self,
        generation: u64,
        cause: Cause,
        large: bool,
        now: Duration,
        dice: f64,
        out: &mut Effects,
    ) {
        let serving = matches!(self.phase, Phase::Serving | Phase::Draining);
        if !self.current(generation) || !(serving || self.starting()) {
            return;
        }
        self.release_token(out);
        out.push(Effect::Close(generation, cause.clone()));
        self.cause = Some(cause.clone());
        self.enter(Phase::Dying, Some(now + self.policy.notice), out);
        let overlaps = large && self.policy.overlap && self.wanted == Wanted::Run;
        if !overlaps || !serving || self.predecessor.is_some() {
            return;
        }
        // Certain to die (or be killed in a second): judged now, so that the
        // successor need not wait for the kernel.
        out.push(Effect::Announce(cause));
        match self.judge(now, dice) {
            Verdict::Restart(Duration::ZERO) => {
                self.verdict = None;
                self.restarts += 1;
                self.predecessor = Some(generation);
                self.alive = false;
                self.arm(Slot::Predecessor, Some(now + self.policy.notice), out);
                self.check(out);
            }
            verdict => self.verdict = Some(verdict),
        }
    }

    pub(super) fn judge(&mut self, now: Duration, dice: f64) -> Verdict {
        let served = self.serving_since.map(|since| now.saturating_sub(since));
        self.budget.death(&self.policy, now, served, dice)
    }

    pub(super) fn died(
        &mut self,
        generation: u64,
        cause: Cause,
        now: Duration,
        dice: f64,
        out: &mut Effects,
    ) {
        if !self.current(generation) {
            return;
        }
        let announced = self.verdict.is_some();
        let cause = self.settled.clone().unwrap_or(cause);
        self.release_token(out);
        out.push(Effect::Close(generation, cause.clone()));
        let wanted_down = matches!(self.phase, Phase::Draining | Phase::Stopping)
            && (self.wanted != Wanted::Run || self.restarting);
        match cause.class() {
            Class::Failed if wanted_down => {}
            Class::Failed if !announced => {
                out.push(Effect::Announce(cause.clone()));
                if self.wanted == Wanted::Run {
                    let verdict = self.judge(now, dice);
                    self.verdict = Some(verdict);
                }
            }
            Class::Failed | Class::Unavailable | Class::Wanted => {}
        }
        self.cause = Some(cause);
        // Whatever outlived it is being killed by the launcher.
        self.enter(Phase::Killing, Some(now + self.policy.kill), out);
    }

    pub(super) fn tree_gone(&mut self, generation: u64, now: Duration, out: &mut Effects) {
        if self.predecessor == Some(generation) {
            self.predecessor = None;
            self.arm(Slot::Predecessor, None, out);
            // A successor that failed meanwhile, or a stop, waited for this.
            if !self.alive && matches!(self.phase, Phase::Killing | Phase::Unkillable) {
                self.next(now, out);
            }
            return;
        }
        if !self.current(generation) || !matches!(self.phase, Phase::Killing | Phase::Unkillable) {
            return;
        }
        self.alive = false;
        self.intent = None;
        if self.predecessor.is_none() {
            self.next(now, out);
        }
    }

    /// Nothing is left of any process: what now?
    pub(super) fn next(&mut self, now: Duration, out: &mut Effects) {
        self.serving_since = None;
        let restarting = std::mem::take(&mut self.restarting);
        if self.wanted != Wanted::Run {
            self.verdict = None;
            self.rest(out);
            return;
        }
        let cause = self.cause.clone();
        match (cause, self.verdict.take()) {
            (Some(cause), _) if cause.class() == Class::Unavailable => {
                let kind = match cause.code {
                    CauseCode::ExecFailed | CauseCode::Sandbox => Unavailability::Preflight,
                    _ => Unavailability::Rejected,
                };
                self.unavailable(kind, cause, now, 0.5, out);
            }
            (Some(cause), Some(_))
                if cause.code == CauseCode::ToolErrors && self.policy.hold_on_error =>
            {
                self.enter(Phase::Exhausted { retry_at: None }, None, out);
            }
            (_, Some(Verdict::Restart(Duration::ZERO))) => {
                self.restarts += 1;
                self.check(out);
            }
            (_, Some(Verdict::Restart(delay))) => {
                let until = now + delay;
                self.enter(Phase::Backoff { until }, Some(until), out);
            }
            (cause, Some(Verdict::Exhausted(deaths))) => self.exhausted(cause, deaths, now, out),
            (_, None) if restarting => self.check(out),
            (_, None) => self.begin(out),
        }
    }

    pub(super) fn exhausted(
        &mut self,
        last: Option<Cause>,
        deaths: u32,
        now: Duration,
        out: &mut Effects,
    ) {
        let last = last.map_or_else(String::new, |cause| {
            format!(" Last: {}.", cause.reason.trim_end_matches('.'))
        });
        let word = if deaths == 1 { "death" } else { "deaths" };
        let window = humantime::format_duration(self.policy.window);
        let next = match self.policy.slow_retry {
            Some(after) => format!("now tried only every {}", humantime::format_duration(after)),
            None => "not restarted any more".to_owned(),
        };
        let reason = format!(
            "{deaths} {word} in {window}; {next}.{last} Fix it, then `stockade reset {}`.",
            self.plugin
        );
        let cause = Cause::new(CauseCode::Exhausted, reason);
        out.push(Effect::Announce(cause.clone()));
        self.cause = Some(cause);
        let retry_at = self.policy.slow_retry.map(|after| now + after);
        self.enter(Phase::Exhausted { retry_at }, retry_at, out);
    }

    pub(super) fn unkillable(&mut self, out: &mut Effects) {
        self.enter(Phase::Unkillable, None, out);
    }

    pub(super) fn timer(&mut self, slot: Slot, id: u64, now: Duration, out: &mut Effects) {
        if self.timers[slot as usize] != id {
            return;
        }
        if slot == Slot::Predecessor {
            if let Some(generation) = self.predecessor {
                out.push(Effect::KillTree(generation));
            }
            return;
        }
        let seconds = |duration: Duration| humantime::format_duration(duration);
        match self.phase {
            Phase::Handshake => {
                let reason = format!(
                    "No handshake in {}; last phase spawned. \
                     The program must serve gRPC on descriptor 3: link the plugin SDK.",
                    seconds(self.policy.handshake)
                );
                self.kill(Cause::new(CauseCode::StartupTimeout, reason), now, out);
            }
            Phase::Initializing => {
                let reason = format!(
                    "No handshake in {}; last phase init. \
                     Raise timeouts.init if it is loading a model, or report progress.",
                    seconds(self.policy.init)
                );
                self.kill(Cause::new(CauseCode::StartupTimeout, reason), now, out);
            }
            Phase::Draining => self.terminate(now, out),
            Phase::Stopping => {
                let reason = format!("Ignored SIGTERM for {}; killed.", seconds(self.policy.stop));
                self.kill(Cause::new(CauseCode::StopTimeout, reason), now, out);
            }
            Phase::Dying => {
                let reason = format!(
                    "Broke the protocol in dying: announced a fatal signal and was still there {} \
                     later; killed.",
                    seconds(self.policy.notice)
                );
                self.kill(Cause::new(CauseCode::ProtocolError, reason), now, out);
            }
            Phase::Killing => self.unkillable(out),
            Phase::Backoff { .. } => {
                self.restarts += 1;
                self.check(out);
            }
            Phase::Exhausted { .. } => {
                self.restarts += 1;
                self.check(out);
            }
            Phase::Unavailable { .. } => self.heal(out),
            Phase::Stopped
            | Phase::Disabled
            | Phase::OnDemand
            | Phase::Checking
            | Phase::Queued
            | Phase::Serving
            | Phase::Unkillable
            | Phase::Gone => {}
        }
    }
}
