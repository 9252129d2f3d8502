//! Random event sequences keep the invariants of docs/lifecycle.md.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::{Cause, CauseCode, Effect, Event, Machine, Phase, Policy, Slot, Wanted};

/// What the world may do next; generations are relative to the present one.
#[derive(Clone, Debug)]
enum Move {
    Operator(u8),
    Answer(u8, u64),
    Fire(usize),
    Sleep(u64),
}

fn moves() -> impl Strategy<Value = Vec<(Move, f64)>> {
    let one = prop_oneof![
        (0u8..11).prop_map(Move::Operator),
        (0u8..13, prop_oneof![6 => Just(0u64), 1 => Just(1), 1 => Just(2)])
            .prop_map(|(kind, back)| Move::Answer(kind, back)),
        (0usize..4).prop_map(Move::Fire),
        (0u64..2_000).prop_map(Move::Sleep),
    ];
    proptest::collection::vec((one, 0.0..1.0f64), 0..200)
}

/// The world as the effects made it.
#[derive(Default)]
struct World {
    alive: BTreeSet<u64>,
    /// Of those, whose main process has ended.
    dead: BTreeSet<u64>,
    noticed: BTreeSet<u64>,
    timers: Vec<(Slot, u64, Duration)>,
    token: i32,
}

fn cause(n: u8) -> Cause {
    let code =
        [CauseCode::Crash, CauseCode::ProtocolVersion, CauseCode::CallTimeout][n as usize % 3];
    Cause::new(code, "r")
}

impl World {
    fn event(&self, machine: &Machine, step: &Move) -> Option<Event> {
        let generation = |back: u64| machine.generation().saturating_sub(back);
        Some(match step {
            Move::Operator(n) => match n {
                0 => Event::Start,
                1 => Event::Stop("o".into()),
                2 => Event::Restart("o".into()),
                3 => Event::Reset,
                4 => Event::Disable("o".into()),
                5 => Event::Needed,
                6 => Event::Heal,
                7 => Event::Enable(true),
                8 => Event::Enable(false),
                9 => Event::Changed("o".into()),
                _ => Event::Start,
            },
            Move::Answer(n, back) => {
                let g = generation(*back);
                match n {
                    0 => Event::Passed,
                    1 => Event::Refused(cause(1)),
                    2 if self.token > 0 => Event::Token,
                    3 => Event::Greeted(g),
                    4 => Event::Ready(g),
                    5 => Event::StartFailed(g, cause(*back as u8)),
                    6 => Event::Notice(g, cause(0), back % 2 == 0),
                    // What is alive dies once, then its tree goes.
                    7 if self.alive.contains(&g) && !self.dead.contains(&g) => {
                        Event::Died(g, cause(0))
                    }
                    8 if self.dead.contains(&g) => Event::TreeGone(g),
                    9 => Event::Kill(g, cause(2)),
                    10 => Event::Drained(g),
                    11 => Event::Progress(g),
                    12 if self.dead.contains(&g) => Event::TreeStuck(g),
                    _ => return None,
                }
            }
            Move::Fire(n) => {
                let (slot, id, _) = *self.timers.get(*n)?;
                Event::Timer(slot, id)
            }
            Move::Sleep(_) => return None,
        })
    }

    fn apply(&mut self, effects: &[Effect], policy: &Policy, now: Duration) {
        for effect in effects {
            match effect {
                Effect::Spawn(generation) => {
                    let others: Vec<u64> = self.alive.iter().copied().collect();
                    assert!(others.len() <= 1, "spawn of {generation} beside {others:?}");
                    for other in &others {
                        assert!(self.noticed.contains(other), "{other} is not dying");
                    }
                    assert!(self.alive.insert(*generation), "{generation} twice");
                }
                Effect::Arm(slot, id, at) => {
                    self.timers.insert(0, (*slot, *id, *at));
                    self.timers.truncate(4);
                    assert!(
                        *at <= now + policy.slow_retry.unwrap_or_default().max(policy.init_max)
                    );
                }
                Effect::RequestToken => self.token = 1,
                Effect::ReleaseToken => self.token = 0,
                Effect::KillTree(generation) => {
                    assert!(self.alive.contains(generation), "kill of what is gone: {generation}");
                }
                Effect::Check
                | Effect::Open(_)
                | Effect::Drain(_)
                | Effect::Close(..)
                | Effect::Terminate(_)
                | Effect::Announce(_)
                | Effect::Finished => {}
            }
        }
    }
}

fn play(policy: Policy, moves: &[(Move, f64)]) -> (Machine, World, Duration) {
    let mut machine = Machine::new("p", policy, Wanted::Run, 0);
    let mut world = World::default();
    let mut now = Duration::from_secs(1);
    for (step, dice) in moves {
        if let Move::Sleep(ms) = step {
            now += Duration::from_millis(*ms);
        }
        let Some(event) = world.event(&machine, step) else { continue };
        if let Event::Timer(slot, id) = event {
            // The clock has come to it.
            let due = world.timers.iter().find(|timer| (timer.0, timer.1) == (slot, id));
            now = now.max(due.expect("chosen from the list").2);
        }
        let disabled = machine.wanted() == Wanted::Disabled;
        let stale = match event {
            Event::Greeted(g)
            | Event::Ready(g)
            | Event::StartFailed(g, _)
            | Event::Kill(g, _)
            | Event::Notice(g, _, _)
            | Event::Died(g, _) => g != machine.generation(),
            _ => false,
        };
        let before = (machine.phase(), machine.visible(), machine.restarts());
        let effects = machine.step(event.clone(), now, *dice);
        if stale {
            assert_eq!(effects, [], "a stale {event:?} did something");
            assert_eq!(before, (machine.phase(), machine.visible(), machine.restarts()));
        }
        match event {
            Event::Notice(g, _, _) if !stale && !effects.is_empty() => {
                world.noticed.insert(g);
            }
            Event::Died(g, _) => {
                world.dead.insert(g);
            }
            Event::TreeGone(g) => {
                world.alive.remove(&g);
                world.dead.remove(&g);
            }
            _ => {}
        }
        world.apply(&effects, &policy, now);
        if disabled && machine.wanted() != Wanted::Disabled {
            assert!(matches!(event, Event::Enable(_)), "{event:?} undid a disable");
        }
        if let Phase::Backoff { until } = machine.phase() {
            assert!(until <= now + policy.backoff_max.max(policy.reprobe.1));
        }
    }
    (machine, world, now)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_events_keep_the_invariants(moves in moves(), on_demand: bool, overlap: bool) {
        play(Policy { on_demand, overlap, ..Policy::default() }, &moves);
    }

    #[test]
    fn a_stop_ends_everything_that_was_spawned(moves in moves()) {
        let (mut machine, mut world, now) = play(Policy::default(), &moves);
        let policy = Policy::default();
        let effects = machine.step(Event::Stop("o".into()), now, 0.5);
        world.apply(&effects, &policy, now);
        // The kernel does its part: everything alive dies and is reaped.
        for generation in world.alive.clone() {
            let died = Event::Died(generation, cause(0));
            let died = (!world.dead.contains(&generation)).then_some(died);
            for event in died.into_iter().chain([Event::TreeGone(generation)]) {
                let effects = machine.step(event, now, 0.5);
                prop_assert!(!effects.iter().any(|effect| matches!(effect, Effect::Spawn(_))));
            }
        }
        let expected = match machine.wanted() {
            Wanted::Disabled => Phase::Disabled,
            _ => Phase::Stopped,
        };
        prop_assert_eq!(machine.phase(), expected);
    }

    #[test]
    fn a_crash_loop_is_restarted_no_more_than_the_budget_allows(
        gaps in proptest::collection::vec(0u64..120, 1..60),
        dice in 0.0..1.0f64,
    ) {
        let policy = Policy { slow_retry: None, ..Policy::default() };
        let mut machine = Machine::new("p", policy, Wanted::Run, 0);
        let mut now = Duration::from_secs(1);
        let mut deaths: Vec<Duration> = Vec::new();
        machine.step(Event::Start, now, dice);
        for gap in gaps {
            if let Phase::Backoff { until } = machine.phase() {
                now = until;
                let id = machine.timers_for_test();
                machine.step(Event::Timer(Slot::Phase, id), now, dice);
            }
            if matches!(machine.phase(), Phase::Exhausted { .. }) {
                break;
            }
            machine.step(Event::Passed, now, dice);
            machine.step(Event::Token, now, dice);
            let generation = machine.generation();
            machine.step(Event::Greeted(generation), now, dice);
            machine.step(Event::Ready(generation), now, dice);
            now += Duration::from_secs(gap);
            machine.step(Event::Died(generation, cause(0)), now, dice);
            machine.step(Event::TreeGone(generation), now, dice);
            deaths.push(now);
            let recent = deaths.iter().filter(|death| now - **death <= policy.window).count();
            let exhausted = matches!(machine.phase(), Phase::Exhausted { .. });
            prop_assert_eq!(exhausted, recent > policy.max_deaths as usize);
        }
    }
}
