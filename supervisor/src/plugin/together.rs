//! What all plugins use together, and which of them gives way when that is more than
//! they may use.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use crate::{
    document::Bytes,
    lifecycle::{Cause, CauseCode},
};

/// The most that all plugins may use together.
#[derive(Clone, Copy, Debug)]
pub struct Totals {
    /// Bytes of memory.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
}

impl Default for Totals {
    fn default() -> Self {
        Totals { memory: u64::MAX, processes: u64::MAX }
    }
}

/// What one plugin uses.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Part {
    pub(super) memory: u64,
    pub(super) tasks: u64,
}

#[derive(Default)]
struct Sums {
    most: Totals,
    parts: HashMap<u64, Part>,
    all: Part,
    /// Uses most of what there is too much of: is to be looked at next.
    suspect: Option<u64>,
}

/// The sums over every tree that is watched.
#[derive(Default)]
pub(super) struct Together(Mutex<Sums>);

impl Together {
    fn lock(&self) -> MutexGuard<'_, Sums> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn allow(&self, most: Totals) {
        self.lock().most = most;
    }

    pub(super) fn enter(&self, key: u64) {
        self.lock().parts.insert(key, Part::default());
    }

    pub(super) fn leave(&self, key: u64) {
        let mut sums = self.lock();
        if let Some(part) = sums.parts.remove(&key) {
            sums.all.memory -= part.memory;
            sums.all.tasks -= part.tasks;
        }
        sums.suspect.take_if(|suspect| *suspect == key);
    }

    /// The plugin that should be looked at before its turn.
    pub(super) fn suspect(&self) -> Option<u64> {
        self.lock().suspect
    }

    /// One plugin uses this now. Some: all together use too much, and this one most.
    /// A plugin that is not the one with most is never to blame.
    pub(super) fn note(&self, key: u64, now: Part) -> Option<Cause> {
        let mut sums = self.lock();
        sums.suspect.take_if(|suspect| *suspect == key);
        let before = sums.parts.get_mut(&key)?;
        let old = std::mem::replace(before, now);
        sums.all.memory = sums.all.memory - old.memory + now.memory;
        sums.all.tasks = sums.all.tasks - old.tasks + now.tasks;
        let (all, most) = (sums.all, sums.most);
        if all.memory > most.memory {
            let first = sums.largest(|part| part.memory)?;
            if first == key {
                let text = format!(
                    "All plugins together used {}; [limits] memory_total = {}. This one used most \
                     ({}). Lower its limits.memory, or raise memory_total.",
                    Bytes(all.memory),
                    Bytes(most.memory),
                    Bytes(now.memory)
                );
                return Some(Cause::new(CauseCode::OomHost, text));
            }
            sums.suspect = Some(first);
        } else if all.tasks > most.processes {
            let first = sums.largest(|part| part.tasks)?;
            if first == key {
                let text = format!(
                    "All plugins together ran {} processes and threads; [limits] processes_total = \
                     {}. This one ran most ({}). Lower its limits.processes, or raise \
                     processes_total.",
                    all.tasks, most.processes, now.tasks
                );
                return Some(Cause::new(CauseCode::ProcessLimit, text));
            }
            sums.suspect = Some(first);
        }
        None
    }
}

impl Sums {
    fn largest(&self, of: impl Fn(&Part) -> u64) -> Option<u64> {
        self.parts.iter().max_by_key(|(key, part)| (of(part), **key)).map(|(key, _)| *key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(memory: u64) -> Part {
        Part { memory, tasks: 1 }
    }

    #[test]
    fn the_largest_gives_way_and_no_other() {
        let together = Together::default();
        together.allow(Totals { memory: 100, processes: 1000 });
        (1..=3).for_each(|key| together.enter(key));
        assert!(together.note(1, memory(60)).is_none());
        assert!(together.note(2, memory(30)).is_none());
        assert!(together.note(3, memory(20)).is_none(), "it is not the largest");
        assert_eq!(together.suspect(), Some(1), "but the largest is looked at next");
        let cause = together.note(1, memory(61)).unwrap();
        assert_eq!(cause.code, CauseCode::OomHost);
        together.leave(1);
        assert!(together.note(3, memory(21)).is_none());
        assert_eq!(together.suspect(), None);
        assert!(together.note(1, memory(1000)).is_none(), "it has left");
    }

    #[test]
    fn processes_are_summed_too() {
        let together = Together::default();
        together.allow(Totals { memory: u64::MAX, processes: 10 });
        together.enter(1);
        together.enter(2);
        assert!(together.note(1, Part { memory: 0, tasks: 4 }).is_none());
        let cause = together.note(2, Part { memory: 0, tasks: 7 }).unwrap();
        assert_eq!(cause.code, CauseCode::ProcessLimit);
    }
}
