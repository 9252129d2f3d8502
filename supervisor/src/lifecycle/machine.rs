//! The machine of one instance: `step(event, now) → effects`.

use std::time::Duration;

use super::{
    cause::Cause,
    policy::{Budget, Policy, Verdict, Wanted},
    state::{Phase, State, Substate},
};

/// What happened. Events of a process carry its generation.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// An operator (or the daemon's start) wants it to serve.
    Start,
    /// An operator wants it stopped.
    Stop(String),
    /// An operator wants a new process.
    Restart(String),
    /// An operator forgives all deaths and wants it to serve.
    Reset,
    /// An operator wants it never to run.
    Disable(String),
    /// It may run again; true: and shall, false: stays stopped.
    Enable(bool),
    /// Its directory or configuration has changed: a process of the old one is
    /// replaced, a start that is under way begins anew.
    Changed(String),
    /// The plugin is no longer wanted at all.
    Remove(String),
    /// A call waits for a plugin that starts on demand.
    Needed,
    /// The thing that was missing may have appeared.
    Heal,
    /// The checks before a launch passed.
    Passed,
    /// They did not.
    Refused(Cause),
    /// A start token is ours.
    Token,
    /// The process answered Hello.
    Greeted(u64),
    /// It reported progress while loading.
    Progress(u64),
    /// It is ready for calls.
    Ready(u64),
    /// It could not be started or refused to.
    StartFailed(u64, Cause),
    /// Its fatal-signal handler spoke. `large`: the kernel will need long.
    Notice(u64, Cause, bool),
    /// Its main process ended.
    Died(u64, Cause),
    /// Nothing of its tree is left.
    TreeGone(u64),
    /// Some of its tree survived SIGKILL.
    TreeStuck(u64),
    /// It must be killed, for this cause.
    Kill(u64, Cause),
    /// It has no call in flight any more.
    Drained(u64),
    /// A timer ran out.
    Timer(Slot, u64),
}

/// The two timers of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Slot {
    /// Of the present phase.
    Phase,
    /// Of the dying predecessor.
    Predecessor,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Run the checks before a launch.
    Check,
    /// Ask for a start token.
    RequestToken,
    /// Give the token (or the request for one) back.
    ReleaseToken,
    /// Launch a process of this generation and shake hands.
    Spawn(u64),
    /// Open the session of this generation for calls.
    Open(u64),
    /// No new calls; tell when the last one is over.
    Drain(u64),
    /// Fail the calls in flight with the cause.
    Close(u64, Cause),
    /// Run the shutdown hook, then SIGTERM.
    Terminate(u64),
    /// SIGKILL for the whole tree. The intent is recorded by now.
    KillTree(u64),
    /// Set the timer of a slot.
    Arm(Slot, u64, Duration),
    /// The plugin failed or cannot run: count it, say it.
    Announce(Cause),
    /// All is over for good.
    Finished,
}

/// One instance.
#[derive(Clone, Debug)]
pub struct Machine {
    pub(super) plugin: String,
    pub(super) policy: Policy,
    pub(super) phase: Phase,
    pub(super) wanted: Wanted,
    pub(super) generation: u64,
    /// A process of `generation` may exist.
    pub(super) alive: bool,
    pub(super) predecessor: Option<u64>,
    pub(super) holds_token: bool,
    pub(super) intent: Option<Cause>,
    /// The start failed for this; how the process then ended does not matter.
    pub(super) settled: Option<Cause>,
    pub(super) cause: Option<Cause>,
    /// What the death of the present process led to, once judged.
    pub(super) verdict: Option<Verdict>,
    pub(super) restarting: bool,
    pub(super) serving_since: Option<Duration>,
    pub(super) init_limit: Duration,
    pub(super) budget: Budget,
    pub(super) reprobe: Duration,
    /// Said already; saying it again tells nobody anything.
    pub(super) lacks: Option<Cause>,
    pub(super) timers: [u64; 2],
    pub(super) armed: u64,
    pub(super) degraded: bool,
    pub(super) restarts: u64,
}

pub(super) type Effects = Vec<Effect>;

impl Machine {
    /// An instance that is not running. Generations go on from `generation`.
    pub fn new(plugin: &str, policy: Policy, wanted: Wanted, generation: u64) -> Self {
        Machine {
            plugin: plugin.to_owned(),
            policy,
            phase: match wanted {
                Wanted::Disabled => Phase::Disabled,
                Wanted::Run | Wanted::Stopped | Wanted::Removed => Phase::Stopped,
            },
            wanted,
            generation,
            alive: false,
            predecessor: None,
            holds_token: false,
            intent: None,
            settled: None,
            cause: None,
            verdict: None,
            restarting: false,
            serving_since: None,
            init_limit: Duration::ZERO,
            budget: Budget::default(),
            reprobe: Duration::ZERO,
            lacks: None,
            timers: [0; 2],
            armed: 0,
            degraded: false,
            restarts: 0,
        }
    }

    /// Where it is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// What users see of it.
    pub fn visible(&self) -> (State, Substate) {
        self.phase.visible(self.cause.as_ref().map(|cause| cause.code), self.degraded)
    }

    /// The present (or last) process.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the operator wants.
    pub fn wanted(&self) -> Wanted {
        self.wanted
    }

    /// Starts that followed an unrequested death.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Why it failed or cannot run; None while all is well.
    pub fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// Why we are killing the process of this generation, if we are.
    pub fn intent(&self, generation: u64) -> Option<&Cause> {
        self.intent.as_ref().filter(|_| generation == self.generation)
    }

    /// Why the start of this generation failed, if it did.
    pub fn settled(&self, generation: u64) -> Option<&Cause> {
        self.settled.as_ref().filter(|_| generation == self.generation)
    }

    /// A process of this instance exists, or is being launched.
    pub fn has_process(&self) -> bool {
        self.alive || self.predecessor.is_some()
    }

    /// Says more exactly why it is where it is.
    pub fn explain(&mut self, cause: Cause) {
        self.cause = Some(cause);
    }

    /// When this generation became INITIALIZED.
    pub fn serving_since(&self) -> Option<Duration> {
        self.serving_since
    }

    /// When the next start is due.
    pub fn retry_at(&self) -> Option<Duration> {
        match self.phase {
            Phase::Backoff { until } => Some(until),
            Phase::Exhausted { retry_at } => retry_at,
            _ => None,
        }
    }

    /// The number of the phase's timer.
    #[cfg(test)]
    pub(super) fn timers_for_test(&self) -> u64 {
        self.timers[Slot::Phase as usize]
    }

    /// Shown while serving: something is not as it should be.
    pub fn set_degraded(&mut self, degraded: bool) {
        self.degraded = degraded;
    }

    /// Other numbers from now on (a changed manifest).
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Takes one event. `dice` in 0..1 is the jitter.
    pub fn step(&mut self, event: Event, now: Duration, dice: f64) -> Effects {
        let mut effects = Vec::new();
        self.take(event, now, dice, &mut effects);
        effects
    }

    pub(super) fn take(&mut self, event: Event, now: Duration, dice: f64, out: &mut Effects) {
        match event {
            Event::Start => {
                if self.wanted != Wanted::Disabled && self.wanted != Wanted::Removed {
                    self.want_run(now, out);
                }
            }
            Event::Reset => {
                self.budget.reset();
                if self.wanted != Wanted::Disabled && self.wanted != Wanted::Removed {
                    self.want_run(now, out);
                }
            }
            Event::Enable(run) => self.enable(run, now, out),
            Event::Changed(what) => self.changed(what, now, out),
            Event::Restart(who) => self.restart(who, now, out),
            Event::Stop(who) => self.stop(Wanted::Stopped, who, now, out),
            Event::Disable(who) => self.stop(Wanted::Disabled, who, now, out),
            Event::Remove(who) => self.stop(Wanted::Removed, who, now, out),
            Event::Needed => {
                if self.phase == Phase::OnDemand {
                    self.check(out);
                }
            }
            Event::Heal => self.heal(out),
            Event::Passed => self.passed(out),
            Event::Refused(cause) => self.refused(cause, now, dice, out),
            Event::Token => self.token(now, out),
            Event::Timer(slot, id) => self.timer(slot, id, now, out),
            Event::Greeted(generation) => {
                if self.current(generation) && self.phase == Phase::Handshake {
                    self.release_token(out);
                    self.init_limit = now + self.policy.init_max;
                    self.enter(Phase::Initializing, Some(now + self.policy.init), out);
                }
            }
            Event::Progress(generation) => {
                if self.current(generation) && self.phase == Phase::Initializing {
                    let at = (now + self.policy.init).min(self.init_limit);
                    self.arm(Slot::Phase, Some(at), out);
                }
            }
            Event::Ready(generation) => self.ready(generation, now, out),
            Event::StartFailed(generation, cause) => {
                if self.current(generation) && self.starting() {
                    self.settled = Some(cause.clone());
                    self.kill(cause, now, out);
                }
            }
            Event::Notice(generation, cause, large) => {
                self.notice(generation, cause, large, now, dice, out);
            }
            Event::Kill(generation, cause) => {
                if self.current(generation)
                    && (self.starting()
                        || matches!(self.phase, Phase::Serving | Phase::Draining | Phase::Stopping))
                {
                    self.kill(cause, now, out);
                }
            }
            Event::Drained(generation) => {
                if self.current(generation) && self.phase == Phase::Draining {
                    self.terminate(now, out);
                }
            }
            Event::Died(generation, cause) => self.died(generation, cause, now, dice, out),
            Event::TreeGone(generation) => self.tree_gone(generation, now, out),
            Event::TreeStuck(generation) => {
                if self.current(generation) && self.phase == Phase::Killing {
                    self.unkillable(out);
                }
            }
        }
    }

    pub(super) fn current(&self, generation: u64) -> bool {
        self.alive && generation == self.generation
    }

    pub(super) fn starting(&self) -> bool {
        matches!(self.phase, Phase::Handshake | Phase::Initializing)
    }

    /// Changes the phase; its timer is set or void.
    pub(super) fn enter(&mut self, phase: Phase, at: Option<Duration>, out: &mut Effects) {
        self.phase = phase;
        self.arm(Slot::Phase, at, out);
    }

    /// A timer of an older number is stale.
    pub(super) fn arm(&mut self, slot: Slot, at: Option<Duration>, out: &mut Effects) {
        self.armed += 1;
        self.timers[slot as usize] = self.armed;
        if let Some(at) = at {
            out.push(Effect::Arm(slot, self.armed, at));
        }
    }

    pub(super) fn release_token(&mut self, out: &mut Effects) {
        if std::mem::take(&mut self.holds_token) {
            out.push(Effect::ReleaseToken);
        }
    }
}
