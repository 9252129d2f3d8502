//! What operators want of an instance: start, stop, restart.

use std::time::Duration;

use super::{
    cause::{Cause, CauseCode},
    machine::{Effect, Effects, Machine},
    policy::Wanted,
    state::Phase,
};

impl Machine {
    pub(super) fn want_run(&mut self, _now: Duration, out: &mut Effects) {
        self.wanted = Wanted::Run;
        match self.phase {
            Phase::Stopped | Phase::Disabled => self.begin(out),
            Phase::OnDemand | Phase::Backoff { .. } | Phase::Exhausted { .. } => self.check(out),
            Phase::Unavailable { .. } => self.heal(out),
            // Going down: up again once it is down.
            Phase::Draining | Phase::Stopping => self.restarting = true,
            Phase::Checking
            | Phase::Queued
            | Phase::Handshake
            | Phase::Initializing
            | Phase::Serving
            | Phase::Dying
            | Phase::Killing
            | Phase::Unkillable
            | Phase::Gone => {}
        }
    }

    /// From nothing: on demand, or at once.
    pub(super) fn begin(&mut self, out: &mut Effects) {
        if self.policy.on_demand {
            self.cause = None;
            self.enter(Phase::OnDemand, None, out);
        } else {
            self.check(out);
        }
    }

    pub(super) fn check(&mut self, out: &mut Effects) {
        self.enter(Phase::Checking, None, out);
        out.push(Effect::Check);
    }

    pub(super) fn heal(&mut self, out: &mut Effects) {
        if let Phase::Unavailable { kind, checking: false } = self.phase {
            self.enter(Phase::Unavailable { kind, checking: true }, None, out);
            out.push(Effect::Check);
        }
    }

    pub(super) fn restart(&mut self, who: String, now: Duration, out: &mut Effects) {
        if matches!(self.wanted, Wanted::Disabled | Wanted::Removed) {
            return;
        }
        self.wanted = Wanted::Run;
        match self.phase {
            Phase::Serving | Phase::Handshake | Phase::Initializing => {
                self.restarting = true;
                self.go_down(who, now, out);
            }
            _ => self.want_run(now, out),
        }
    }

    pub(super) fn stop(&mut self, wanted: Wanted, who: String, now: Duration, out: &mut Effects) {
        // Disabled is stronger than stopped, removed than both.
        let stronger = match self.wanted {
            Wanted::Removed => true,
            Wanted::Disabled => wanted == Wanted::Stopped,
            Wanted::Run | Wanted::Stopped => false,
        };
        if stronger {
            return;
        }
        self.wanted = wanted;
        self.restarting = false;
        match self.phase {
            Phase::Serving | Phase::Handshake | Phase::Initializing => {
                self.go_down(who, now, out);
            }
            Phase::Queued => {
                self.release_token_request(out);
                self.rest(out);
            }
            Phase::Stopped
            | Phase::Disabled
            | Phase::OnDemand
            | Phase::Checking
            | Phase::Backoff { .. }
            | Phase::Exhausted { .. }
            | Phase::Unavailable { .. } => self.rest(out),
            // On the way down already, or waiting for the tree to go.
            Phase::Draining
            | Phase::Stopping
            | Phase::Dying
            | Phase::Killing
            | Phase::Unkillable
            | Phase::Gone => {}
        }
    }

    pub(super) fn enable(&mut self, run: bool, now: Duration, out: &mut Effects) {
        if self.wanted != Wanted::Disabled {
            return;
        }
        if run {
            self.budget.reset();
            self.want_run(now, out);
        } else {
            self.wanted = Wanted::Stopped;
            if self.phase == Phase::Disabled {
                self.rest(out);
            }
        }
    }

    pub(super) fn changed(&mut self, what: String, now: Duration, out: &mut Effects) {
        // Deaths of the old one are not the new one's.
        self.budget.reset();
        if self.wanted != Wanted::Run {
            return;
        }
        match self.phase {
            Phase::Queued => {
                self.release_token_request(out);
                self.check(out);
            }
            Phase::Checking | Phase::Backoff { .. } | Phase::Exhausted { .. } => self.check(out),
            Phase::Unavailable { kind, .. } => {
                self.phase = Phase::Unavailable { kind, checking: false };
                self.heal(out);
            }
            Phase::Handshake | Phase::Initializing | Phase::Serving => {
                self.restart(what, now, out);
            }
            Phase::Draining | Phase::Stopping => self.restarting = true,
            Phase::Stopped
            | Phase::Disabled
            | Phase::OnDemand
            | Phase::Dying
            | Phase::Killing
            | Phase::Unkillable
            | Phase::Gone => {}
        }
    }

    pub(super) fn release_token_request(&mut self, out: &mut Effects) {
        self.holds_token = false;
        out.push(Effect::ReleaseToken);
    }

    /// No process: where to stay.
    pub(super) fn rest(&mut self, out: &mut Effects) {
        if self.predecessor.is_some() {
            // The predecessor's tree must go first.
            self.enter(Phase::Killing, None, out);
            return;
        }
        self.cause = None;
        match self.wanted {
            Wanted::Disabled => self.enter(Phase::Disabled, None, out),
            Wanted::Removed => {
                self.enter(Phase::Gone, None, out);
                out.push(Effect::Finished);
            }
            Wanted::Stopped => self.enter(Phase::Stopped, None, out),
            Wanted::Run => self.begin(out),
        }
    }

    pub(super) fn go_down(&mut self, who: String, now: Duration, out: &mut Effects) {
        self.release_token(out);
        let reason = format!("Stopped by {who}.");
        self.intent = Some(Cause::new(CauseCode::OperatorStop, reason));
        if self.phase == Phase::Serving {
            self.enter(Phase::Draining, Some(now + self.policy.stop), out);
            out.push(Effect::Drain(self.generation));
        } else {
            self.terminate(now, out);
        }
    }

    pub(super) fn terminate(&mut self, now: Duration, out: &mut Effects) {
        if let Some(cause) = self.intent.clone() {
            out.push(Effect::Close(self.generation, cause));
        }
        self.enter(Phase::Stopping, Some(now + self.policy.stop), out);
        out.push(Effect::Terminate(self.generation));
    }
}
