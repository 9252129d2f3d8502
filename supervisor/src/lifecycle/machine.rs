//! The machine of one instance: `step(event, now) → effects`.

use std::time::Duration;

use super::{
    cause::{Cause, CauseCode, Class},
    policy::{Budget, Policy, Verdict, Wanted},
    state::{Phase, State, Substate, Unavailability},
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
    plugin: String,
    policy: Policy,
    phase: Phase,
    wanted: Wanted,
    generation: u64,
    /// A process of `generation` may exist.
    alive: bool,
    predecessor: Option<u64>,
    holds_token: bool,
    intent: Option<Cause>,
    /// The start failed for this; how the process then ended does not matter.
    settled: Option<Cause>,
    cause: Option<Cause>,
    /// What the death of the present process led to, once judged.
    verdict: Option<Verdict>,
    restarting: bool,
    serving_since: Option<Duration>,
    init_limit: Duration,
    budget: Budget,
    reprobe: Duration,
    timers: [u64; 2],
    armed: u64,
    degraded: bool,
    restarts: u64,
}

type Effects = Vec<Effect>;

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

    fn take(&mut self, event: Event, now: Duration, dice: f64, out: &mut Effects) {
        match event {
            Event::Start => {
                if self.wanted != Wanted::Disabled && self.wanted != Wanted::Removed {
                    self.want_run(now, out);
                }
            }
            Event::Reset => {
                self.budget.reset();
                if self.wanted != Wanted::Removed {
                    self.want_run(now, out);
                }
            }
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

    fn current(&self, generation: u64) -> bool {
        self.alive && generation == self.generation
    }

    fn starting(&self) -> bool {
        matches!(self.phase, Phase::Handshake | Phase::Initializing)
    }

    /// Changes the phase; its timer is set or void.
    fn enter(&mut self, phase: Phase, at: Option<Duration>, out: &mut Effects) {
        self.phase = phase;
        self.arm(Slot::Phase, at, out);
    }

    /// A timer of an older number is stale.
    fn arm(&mut self, slot: Slot, at: Option<Duration>, out: &mut Effects) {
        self.armed += 1;
        self.timers[slot as usize] = self.armed;
        if let Some(at) = at {
            out.push(Effect::Arm(slot, self.armed, at));
        }
    }

    fn release_token(&mut self, out: &mut Effects) {
        if std::mem::take(&mut self.holds_token) {
            out.push(Effect::ReleaseToken);
        }
    }

    // ── what is wanted ──────────────────────────────────────────────────────

    fn want_run(&mut self, _now: Duration, out: &mut Effects) {
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
    fn begin(&mut self, out: &mut Effects) {
        if self.policy.on_demand {
            self.cause = None;
            self.enter(Phase::OnDemand, None, out);
        } else {
            self.check(out);
        }
    }

    fn check(&mut self, out: &mut Effects) {
        self.enter(Phase::Checking, None, out);
        out.push(Effect::Check);
    }

    fn heal(&mut self, out: &mut Effects) {
        if let Phase::Unavailable { kind, checking: false } = self.phase {
            self.enter(Phase::Unavailable { kind, checking: true }, None, out);
            out.push(Effect::Check);
        }
    }

    fn restart(&mut self, who: String, now: Duration, out: &mut Effects) {
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

    fn stop(&mut self, wanted: Wanted, who: String, now: Duration, out: &mut Effects) {
        if self.wanted == Wanted::Removed {
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

    fn release_token_request(&mut self, out: &mut Effects) {
        self.holds_token = false;
        out.push(Effect::ReleaseToken);
    }

    /// No process: where to stay.
    fn rest(&mut self, out: &mut Effects) {
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

    fn go_down(&mut self, who: String, now: Duration, out: &mut Effects) {
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

    fn terminate(&mut self, now: Duration, out: &mut Effects) {
        if let Some(cause) = self.intent.clone() {
            out.push(Effect::Close(self.generation, cause));
        }
        self.enter(Phase::Stopping, Some(now + self.policy.stop), out);
        out.push(Effect::Terminate(self.generation));
    }

    // ── on the way up ───────────────────────────────────────────────────────

    fn passed(&mut self, out: &mut Effects) {
        if matches!(self.phase, Phase::Checking | Phase::Unavailable { checking: true, .. }) {
            self.reprobe = Duration::ZERO;
            self.enter(Phase::Queued, None, out);
            out.push(Effect::RequestToken);
        }
    }

    fn refused(&mut self, cause: Cause, now: Duration, dice: f64, out: &mut Effects) {
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

    fn unavailable(
        &mut self,
        kind: Unavailability,
        cause: Cause,
        now: Duration,
        dice: f64,
        out: &mut Effects,
    ) {
        out.push(Effect::Announce(cause.clone()));
        self.cause = Some(cause);
        let at = now + self.next_probe(dice);
        self.enter(Phase::Unavailable { kind, checking: false }, Some(at), out);
    }

    /// Doubles from the first to the longest, a tenth of jitter.
    fn next_probe(&mut self, dice: f64) -> Duration {
        let (first, longest) = self.policy.reprobe;
        self.reprobe = (self.reprobe * 2).clamp(first, longest);
        self.reprobe.mul_f64(0.9 + 0.1 * dice.clamp(0.0, 1.0))
    }

    fn token(&mut self, now: Duration, out: &mut Effects) {
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

    fn ready(&mut self, generation: u64, now: Duration, out: &mut Effects) {
        if !self.current(generation) || self.phase != Phase::Initializing {
            return;
        }
        self.cause = None;
        self.degraded = false;
        self.serving_since = Some(now);
        self.enter(Phase::Serving, None, out);
        out.push(Effect::Open(generation));
    }

    // ── on the way down ─────────────────────────────────────────────────────

    /// The intent is recorded before the signal is sent.
    fn kill(&mut self, cause: Cause, now: Duration, out: &mut Effects) {
        self.release_token(out);
        out.push(Effect::Close(self.generation, cause.clone()));
        self.cause = Some(cause.clone());
        self.intent = Some(cause);
        self.enter(Phase::Killing, Some(now + self.policy.kill), out);
        out.push(Effect::KillTree(self.generation));
    }

    fn notice(
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

    fn judge(&mut self, now: Duration, dice: f64) -> Verdict {
        let served = self.serving_since.map(|since| now.saturating_sub(since));
        self.budget.death(&self.policy, now, served, dice)
    }

    fn died(&mut self, generation: u64, cause: Cause, now: Duration, dice: f64, out: &mut Effects) {
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

    fn tree_gone(&mut self, generation: u64, now: Duration, out: &mut Effects) {
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
    fn next(&mut self, now: Duration, out: &mut Effects) {
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

    fn exhausted(&mut self, last: Option<Cause>, deaths: u32, now: Duration, out: &mut Effects) {
        let last = last.map_or_else(String::new, |cause| {
            format!(" Last: {}.", cause.reason.trim_end_matches('.'))
        });
        let word = if deaths == 1 { "death" } else { "deaths" };
        let window = humantime::format_duration(self.policy.window);
        let reason = format!(
            "{deaths} {word} in {window}; not restarting.{last} \
             Fix it, then `stockade reset {}`.",
            self.plugin
        );
        let cause = Cause::new(CauseCode::Exhausted, reason);
        out.push(Effect::Announce(cause.clone()));
        self.cause = Some(cause);
        let retry_at = self.policy.slow_retry.map(|after| now + after);
        self.enter(Phase::Exhausted { retry_at }, retry_at, out);
    }

    fn unkillable(&mut self, out: &mut Effects) {
        self.enter(Phase::Unkillable, None, out);
    }

    fn timer(&mut self, slot: Slot, id: u64, now: Duration, out: &mut Effects) {
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
