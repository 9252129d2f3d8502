//! On the way up: checks, token, handshake, ready.

use std::time::Duration;

use super::{
    cause::{Cause, Class},
    machine::{Effect, Effects, Machine},
    state::{Phase, Unavailability},
};

impl Machine {
    pub(super) fn passed(&mut self, out: &mut Effects) {
        if matches!(self.phase, Phase::Checking | Phase::Unavailable { checking: true, .. }) {
            self.enter(Phase::Queued, None, out);
            out.push(Effect::RequestToken);
        }
    }

    pub(super) fn refused(&mut self, cause: Cause, now: Duration, dice: f64, out: &mut Effects) {
        match self.phase {
            Phase::Checking => {
                if cause.class() == Class::Unavailable {
                    self.unavailable(Unavailability::Preflight, cause, now, dice, out);
                } else {
                    // No process, no death: tried again like a slow probe.
                    let wait = self.next_probe(dice);
                    out.push(Effect::Announce(cause.clone()));
                    self.cause = Some(cause);
                    let until = now + wait;
                    self.enter(Phase::Backoff { until }, Some(until), out);
                }
            }
            Phase::Unavailable { kind, checking: true } => {
                if self.cause.as_ref() != Some(&cause) {
                    out.push(Effect::Announce(cause.clone()));
                    self.cause = Some(cause);
                }
                let at = now + self.next_probe(dice);
                self.enter(Phase::Unavailable { kind, checking: false }, Some(at), out);
            }
            _ => {}
        }
    }

    pub(super) fn unavailable(
        &mut self,
        kind: Unavailability,
        cause: Cause,
        now: Duration,
        dice: f64,
        out: &mut Effects,
    ) {
        if self.lacks.as_ref() != Some(&cause) {
            out.push(Effect::Announce(cause.clone()));
            self.lacks = Some(cause.clone());
        }
        self.cause = Some(cause);
        let at = now + self.next_probe(dice);
        self.enter(Phase::Unavailable { kind, checking: false }, Some(at), out);
    }

    /// Doubles from the first to the longest, a tenth of jitter.
    pub(super) fn next_probe(&mut self, dice: f64) -> Duration {
        let (first, longest) = self.policy.reprobe;
        self.reprobe = (self.reprobe * 2).clamp(first, longest);
        self.reprobe.mul_f64(0.9 + 0.1 * dice.clamp(0.0, 1.0))
    }

    pub(super) fn token(&mut self, now: Duration, out: &mut Effects) {
        if self.phase != Phase::Queued {
            out.push(Effect::ReleaseToken);
            return;
        }
        self.holds_token = true;
        self.generation += 1;
        self.alive = true;
        self.intent = None;
        self.settled = None;
        self.verdict = None;
        self.serving_since = None;
        self.enter(Phase::Handshake, Some(now + self.policy.handshake), out);
        out.push(Effect::Spawn(self.generation));
    }

    pub(super) fn ready(&mut self, generation: u64, now: Duration, out: &mut Effects) {
        if !self.current(generation) || self.phase != Phase::Initializing {
            return;
        }
        self.cause = None;
        self.lacks = None;
        self.reprobe = Duration::ZERO;
        self.degraded = false;
        self.serving_since = Some(now);
        self.enter(Phase::Serving, None, out);
        out.push(Effect::Open(generation));
    }
}
