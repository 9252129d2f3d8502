//! The policy by example, on times of our own making.

use std::time::Duration;

use super::{
    Cause, CauseCode, Effect, Event, Evidence, ExitStatus, KillFacts, Machine, Phase, Policy, Slot,
    State, Substate, Unavailability, Wanted, infer,
};

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn crash() -> Cause {
    Cause::new(CauseCode::Crash, "Crashed.")
}

/// A machine, its clock and the last timer set.
struct Bench {
    machine: Machine,
    now: Duration,
    timer: Option<(Slot, u64, Duration)>,
}

impl Bench {
    fn new(policy: Policy) -> Self {
        Bench { machine: Machine::new("p", policy, Wanted::Run, 0), now: s(1000), timer: None }
    }

    fn step(&mut self, event: Event) -> Vec<Effect> {
        self.step_with(event, 1.0)
    }

    fn step_with(&mut self, event: Event, dice: f64) -> Vec<Effect> {
        let effects = self.machine.step(event, self.now, dice);
        for effect in &effects {
            if let Effect::Arm(slot @ Slot::Phase, id, at) = effect {
                self.timer = Some((*slot, *id, *at));
            }
        }
        effects
    }

    /// From checking to serving; the generation.
    fn serve(&mut self) -> u64 {
        assert_eq!(self.machine.phase(), Phase::Checking);
        self.step(Event::Passed);
        self.step(Event::Token);
        let generation = self.machine.generation();
        self.step(Event::Greeted(generation));
        self.step(Event::Ready(generation));
        assert_eq!(self.machine.phase(), Phase::Serving);
        generation
    }

    fn started(policy: Policy) -> (Self, u64) {
        let mut bench = Bench::new(policy);
        bench.step(Event::Start);
        let generation = bench.serve();
        (bench, generation)
    }

    fn die(&mut self, generation: u64, dice: f64) {
        self.step_with(Event::Died(generation, crash()), dice);
        self.step_with(Event::TreeGone(generation), dice);
    }

    fn fire(&mut self) -> Vec<Effect> {
        let (slot, id, at) = self.timer.take().expect("a timer");
        self.now = self.now.max(at);
        self.step(Event::Timer(slot, id))
    }
}

#[test]
fn the_back_off_sequence_is_exact_and_its_jitter_bounded() {
    for (dice, factor) in [(0.0, 0.5), (1.0, 1.0)] {
        let policy = Policy { max_deaths: 100, ..Policy::default() };
        let (mut bench, mut generation) = Bench::started(policy);
        bench.die(generation, dice);
        for expected in [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0] {
            // The first restart was immediate; every further death waits.
            generation = bench.serve();
            bench.die(generation, dice);
            let Phase::Backoff { until } = bench.machine.phase() else {
                panic!("{:?}", bench.machine.phase())
            };
            let wait = (until - bench.now).as_secs_f64();
            assert!((wait - expected * factor).abs() < 1e-6, "{wait} {expected} {factor}");
            assert_eq!(bench.machine.retry_at(), Some(until));
            bench.fire();
        }
    }
}

#[test]
fn the_sixth_death_in_ten_minutes_exhausts_and_the_window_slides() {
    let (mut bench, mut generation) = Bench::started(Policy::default());
    for death in 1..=6 {
        bench.die(generation, 1.0);
        if death == 6 {
            break;
        }
        if bench.machine.phase() != Phase::Checking {
            bench.fire();
        }
        generation = bench.serve();
    }
    assert_eq!(bench.machine.phase(), Phase::Exhausted { retry_at: Some(bench.now + s(900)) });
    let cause = bench.machine.cause().expect("a cause").clone();
    assert_eq!(cause.code, CauseCode::Exhausted);
    assert_eq!(
        cause.reason,
        "6 deaths in 10m; now tried only every 15m. Last: Crashed. Fix it, then `stockade reset p`."
    );
    // The slow retry starts it again; the old deaths have left the window.
    bench.fire();
    let generation = bench.serve();
    bench.die(generation, 1.0);
    assert!(matches!(bench.machine.phase(), Phase::Checking | Phase::Backoff { .. }));
}

#[test]
fn deaths_exactly_a_window_apart_still_count_and_later_ones_do_not() {
    let policy = Policy { max_deaths: 1, window: s(100), stable: s(1), ..Policy::default() };
    for (apart, exhausted) in [(100, true), (101, false)] {
        let (mut bench, generation) = Bench::started(policy);
        bench.die(generation, 1.0);
        let generation = bench.serve();
        bench.now += s(apart);
        bench.die(generation, 1.0);
        let is = matches!(bench.machine.phase(), Phase::Exhausted { .. });
        assert_eq!(is, exhausted, "{apart}");
    }
}

#[test]
fn a_stable_run_makes_the_next_restart_immediate_again() {
    let (mut bench, generation) = Bench::started(Policy::default());
    bench.die(generation, 1.0);
    let generation = bench.serve();
    bench.die(generation, 1.0);
    assert!(matches!(bench.machine.phase(), Phase::Backoff { .. }));
    bench.fire();
    let generation = bench.serve();
    bench.now += s(60);
    bench.die(generation, 1.0);
    assert_eq!(bench.machine.phase(), Phase::Checking);
}

#[test]
fn a_crash_loop_that_starts_after_hours_still_trips() {
    let (mut bench, mut generation) = Bench::started(Policy::default());
    bench.now += s(5 * 3600);
    for _ in 0..6 {
        bench.die(generation, 1.0);
        match bench.machine.phase() {
            Phase::Exhausted { .. } => return,
            Phase::Backoff { .. } => drop(bench.fire()),
            _ => {}
        }
        generation = bench.serve();
    }
    panic!("never exhausted");
}

#[test]
fn operator_restarts_and_refused_checks_consume_no_budget() {
    let (mut bench, mut generation) = Bench::started(Policy { max_deaths: 1, ..Policy::default() });
    for _ in 0..20 {
        bench.step(Event::Restart("root".into()));
        bench.step(Event::Drained(generation));
        let stopped = Cause::new(CauseCode::OperatorStop, "Stopped by root.");
        bench.step(Event::Died(generation, stopped));
        bench.step(Event::TreeGone(generation));
        generation = bench.serve();
    }
    assert_eq!(bench.machine.restarts(), 0);
    bench.step(Event::Stop("root".into()));
    bench.step(Event::Drained(generation));
    bench.die(generation, 1.0);
    assert_eq!(bench.machine.phase(), Phase::Stopped);
    bench.step(Event::Start);
    let missing = Cause::new(CauseCode::DependencyMissing, "Missing dependencies: x");
    for _ in 0..20 {
        bench.step(Event::Refused(missing.clone()));
        assert_eq!(bench.machine.visible(), (State::Unavailable, Substate::PreflightFailed));
        bench.step(Event::Heal);
    }
    bench.step(Event::Passed);
    assert_eq!(bench.machine.phase(), Phase::Queued);
}

#[test]
fn an_unavailable_plugin_is_probed_between_a_minute_and_a_quarter_of_an_hour() {
    let mut bench = Bench::new(Policy::default());
    bench.step(Event::Start);
    let missing = Cause::new(CauseCode::DependencyMissing, "Missing dependencies: x");
    let mut waits = Vec::new();
    for _ in 0..7 {
        bench.step(Event::Refused(missing.clone()));
        let (_, _, at) = bench.timer.expect("a probe");
        waits.push((at - bench.now).as_secs());
        bench.fire();
    }
    assert_eq!(waits, [60, 120, 240, 480, 900, 900, 900]);
}

#[test]
fn a_start_that_lacks_the_same_thing_is_told_once_and_tried_ever_more_rarely() {
    let mut bench = Bench::new(Policy::default());
    bench.step(Event::Start);
    let lacks = || Cause::new(CauseCode::DependencyMissing, "Missing dependencies: torch.");
    let (mut told, mut waits) = (0, Vec::new());
    for _ in 0..6 {
        bench.step(Event::Passed);
        bench.step(Event::Token);
        let generation = bench.machine.generation();
        bench.step(Event::Greeted(generation));
        bench.step(Event::StartFailed(generation, lacks()));
        bench.step(Event::Died(generation, lacks()));
        let effects = bench.step(Event::TreeGone(generation));
        told += effects.iter().filter(|effect| matches!(effect, Effect::Announce(_))).count();
        let (.., at) = bench.timer.expect("a timer");
        waits.push((at - bench.now).as_secs());
        bench.fire();
    }
    assert_eq!(told, 1);
    assert!(waits.is_sorted() && waits[0] >= 54 && waits[5] >= 810, "{waits:?}");
}

#[test]
fn a_stop_overtakes_a_restart_loop_in_every_phase() {
    let stop = || Event::Stop("root".into());
    // In the back-off.
    let (mut bench, generation) = Bench::started(Policy::default());
    bench.die(generation, 1.0);
    let generation = bench.serve();
    bench.die(generation, 1.0);
    bench.step(stop());
    assert_eq!(bench.machine.phase(), Phase::Stopped);
    assert_eq!(bench.fire(), [], "the old timer is stale");
    // While starting: it is asked to end, then killed.
    bench.step(Event::Start);
    bench.step(Event::Passed);
    bench.step(Event::Token);
    let generation = bench.machine.generation();
    assert!(bench.step(stop()).contains(&Effect::Terminate(generation)));
    assert_eq!(bench.machine.visible(), (State::Loaded, Substate::Stopping));
    assert!(bench.fire().contains(&Effect::KillTree(generation)));
    let intent = bench.machine.intent(generation).expect("recorded before the signal").code;
    assert_eq!(intent, CauseCode::StopTimeout);
    // While being killed.
    bench.step(Event::Start);
    bench.step(stop());
    let cause = Cause::new(CauseCode::StopTimeout, "killed");
    bench.step(Event::Died(generation, cause));
    bench.step(Event::TreeGone(generation));
    assert_eq!(bench.machine.phase(), Phase::Stopped);
    // While queued: the request for a token is withdrawn.
    bench.step(Event::Start);
    bench.step(Event::Passed);
    assert!(bench.step(stop()).contains(&Effect::ReleaseToken));
    assert_eq!(bench.step(Event::Token), [Effect::ReleaseToken], "a late token goes back");
}

#[test]
fn what_survives_sigkill_is_unkillable_and_has_no_successor() {
    let (mut bench, generation) = Bench::started(Policy::default());
    let cause = Cause::new(CauseCode::Watchdog, "No answer.");
    assert!(
        bench.step(Event::Kill(generation, cause.clone())).contains(&Effect::KillTree(generation))
    );
    assert_eq!(bench.fire(), []);
    assert_eq!(bench.machine.visible(), (State::Failed, Substate::Unkillable));
    for event in [Event::Start, Event::Restart("root".into()), Event::Reset, Event::Passed] {
        let effects = bench.step(event);
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Spawn(_))), "{effects:?}");
    }
    // It ends after all.
    bench.step(Event::Died(generation, cause));
    bench.step(Event::TreeGone(generation));
    assert_eq!(bench.machine.phase(), Phase::Checking);
}

#[test]
fn a_large_dying_process_overlaps_with_its_successor_and_a_small_one_does_not() {
    let (mut bench, generation) = Bench::started(Policy::default());
    bench.step(Event::Notice(generation, crash(), false));
    assert_eq!(bench.machine.visible(), (State::Failed, Substate::Dying));
    bench.die(generation, 1.0);
    bench.now += s(100);
    let generation = bench.serve();
    bench.now += s(100);
    let effects = bench.step(Event::Notice(generation, crash(), true));
    assert!(effects.contains(&Effect::Check), "{effects:?}");
    let successor = bench.serve();
    // One dying predecessor at most: the next notice waits for the tree.
    bench.now += s(100);
    let effects = bench.step(Event::Notice(successor, crash(), true));
    assert!(!effects.contains(&Effect::Check), "{effects:?}");
    bench.step(Event::Died(successor, crash()));
    assert_eq!(bench.step(Event::TreeGone(successor)), [], "the predecessor is still there");
    assert!(bench.step(Event::TreeGone(generation)).contains(&Effect::Check));
}

#[test]
fn a_notice_without_a_death_is_a_protocol_error() {
    let (mut bench, generation) = Bench::started(Policy::default());
    bench.step(Event::Notice(generation, crash(), false));
    assert!(bench.fire().contains(&Effect::KillTree(generation)));
    assert_eq!(bench.machine.intent(generation).expect("intent").code, CauseCode::ProtocolError);
}

#[test]
fn a_rejected_start_is_unavailable_whatever_the_process_then_does() {
    let mut bench = Bench::new(Policy::default());
    bench.step(Event::Start);
    bench.step(Event::Passed);
    bench.step(Event::Token);
    let generation = bench.machine.generation();
    let cause = Cause::new(CauseCode::ProtocolVersion, "Speaks protocol 9.");
    bench.step(Event::StartFailed(generation, cause.clone()));
    bench.die(generation, 1.0);
    assert_eq!(bench.machine.visible(), (State::Unavailable, Substate::InitRejected));
    assert_eq!(bench.machine.cause(), Some(&cause));
    assert!(matches!(
        bench.machine.phase(),
        Phase::Unavailable { kind: Unavailability::Rejected, .. }
    ));
}

#[test]
fn progress_extends_the_init_deadline_up_to_a_limit() {
    let mut bench = Bench::new(Policy::default());
    bench.step(Event::Start);
    bench.step(Event::Passed);
    bench.step(Event::Token);
    bench.step(Event::Greeted(1));
    let start = bench.now;
    for _ in 0..60 {
        bench.now += s(50);
        bench.step(Event::Progress(1));
    }
    let (_, _, at) = bench.timer.expect("armed");
    assert_eq!(at, start + s(1800));
    bench.fire();
    assert_eq!(bench.machine.cause().expect("cause").code, CauseCode::StartupTimeout);
}

fn evidence(status: i32) -> Evidence {
    Evidence {
        status: ExitStatus::from_wait(status),
        intent: None,
        asked: false,
        up: Duration::from_millis(1234),
        greeted: true,
        notice_signal: None,
        syscall: None,
        tool: Some("thumbnail".into()),
        kill: KillFacts::default(),
        stderr: String::new(),
        memory_limit: Some("limits.data = 4GiB".into()),
        cpu_limit: Some("10s".into()),
        file_size_limit: Some("1MiB".into()),
        memory: ("1GiB".into(), "900MiB".into()),
        core: "/tmp/core".into(),
        program: "bin/p".into(),
    }
}

#[test]
fn causes_are_inferred_in_order() {
    let code = |evidence: &Evidence| infer(evidence).code;
    assert_eq!(code(&evidence(0)), CauseCode::CleanExit);
    assert_eq!(code(&evidence(69 << 8)), CauseCode::ExitCode);
    assert_eq!(code(&evidence(11)), CauseCode::Crash);
    assert_eq!(
        infer(&evidence(11)).reason,
        "Crashed with SIGSEGV after 1s 200ms in tool thumbnail. \
         Core: none; set limits.core to get one."
    );
    assert_eq!(code(&evidence(15)), CauseCode::Signal);
    assert_eq!(code(&evidence(9)), CauseCode::Signal);
    assert_eq!(code(&evidence(24)), CauseCode::CpuLimit);
    assert_eq!(code(&evidence(25)), CauseCode::FileSizeLimit);
    assert_eq!(code(&evidence(31)), CauseCode::Sandbox);
    // SIGKILL: intent, own OOM, host OOM, CPU, somebody else.
    let mut killed = evidence(9);
    killed.kill = KillFacts { own_oom: true, host_oom: true, cpu_spent: true };
    killed.intent = Some(Cause::new(CauseCode::CallTimeout, "x"));
    assert_eq!(code(&killed), CauseCode::CallTimeout);
    killed.intent = None;
    assert_eq!(code(&killed), CauseCode::OomOwn);
    killed.kill.own_oom = false;
    assert_eq!(code(&killed), CauseCode::OomHost);
    killed.kill.host_oom = false;
    assert_eq!(code(&killed), CauseCode::CpuLimit);
    // A crash that overtakes our kill is a crash.
    let mut raced = evidence(11);
    raced.intent = Some(Cause::new(CauseCode::CallTimeout, "x"));
    assert_eq!(code(&raced), CauseCode::Crash);
    raced.status = ExitStatus::from_wait(3 << 8);
    assert_eq!(code(&raced), CauseCode::ExitCode);
    // Memory that could not be had.
    let mut aborted = evidence(6);
    aborted.stderr = "memory allocation of 99 bytes failed".into();
    assert_eq!(code(&aborted), CauseCode::MemoryLimit);
    // The loader's complaint.
    let mut loader = evidence(127 << 8);
    loader.greeted = false;
    loader.stderr = "error while loading shared libraries: libx.so: cannot open".into();
    assert_eq!(code(&loader), CauseCode::ExecFailed);
}
