//! Changes that wait for the one thread that writes: each author's in the order in which
//! they came, and the authors in turn.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Changes that may wait, of all and of one author.
const WAITING: usize = 4096;
const OF_ONE: usize = WAITING / 4;

/// Why nothing was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Untaken {
    /// Nothing came in time.
    Nothing,
    /// Nothing waits, and nothing will come.
    Over,
}

struct State<T> {
    authors: HashMap<Arc<str>, VecDeque<T>>,
    /// Authors of whom something waits, in the order of their turns.
    turns: VecDeque<Arc<str>>,
    waiting: usize,
    over: bool,
}

impl<T> State<T> {
    fn next(&mut self) -> Option<T> {
        let author = self.turns.pop_front()?;
        let own = self.authors.get_mut(&author)?;
        let next = own.pop_front();
        match own.is_empty() {
            true => drop(self.authors.remove(&author)),
            false => self.turns.push_back(author),
        }
        self.waiting -= usize::from(next.is_some());
        next
    }
}

/// The line.
pub(super) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
}

impl<T> std::fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Queue")
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state =
            State { authors: HashMap::new(), turns: VecDeque::new(), waiting: 0, over: false };
        Queue { state: Mutex::new(state), filled: Condvar::new() }
    }
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False when too many wait.
    pub(super) fn push(&self, author: &Arc<str>, one: T) -> bool {
        let mut state = self.lock();
        if state.over || state.waiting >= WAITING {
            return false;
        }
        let own = state.authors.entry(author.clone()).or_default();
        if own.len() >= OF_ONE {
            return false;
        }
        own.push_back(one);
        let is_first = own.len() == 1;
        if is_first {
            state.turns.push_back(author.clone());
        }
        state.waiting += 1;
        drop(state);
        self.filled.notify_one();
        true
    }

    /// The next one, if one waits.
    pub(super) fn take(&self) -> Option<T> {
        self.lock().next()
    }

    /// The next one; waited for this long.
    pub(super) fn wait(&self, patience: Duration) -> Result<T, Untaken> {
        let state = self.lock();
        let empty = |state: &mut State<T>| state.waiting == 0 && !state.over;
        let waited = self.filled.wait_timeout_while(state, patience, empty);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let untaken = if state.over { Untaken::Over } else { Untaken::Nothing };
        state.next().ok_or(untaken)
    }

    /// Nothing more is taken in; what waits can still be taken.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.filled.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authors_come_in_turn_and_one_does_not_fill_the_line() {
        let queue = Queue::default();
        let (much, little): (Arc<str>, Arc<str>) = ("much".into(), "little".into());
        let taken = (0..2 * WAITING).filter(|n| queue.push(&much, ("much", *n))).count();
        assert_eq!(taken, OF_ONE);
        assert!(queue.push(&little, ("little", 0)) && queue.push(&little, ("little", 1)));
        let first: Vec<_> = std::iter::from_fn(|| queue.take()).take(5).collect();
        assert_eq!(first, [("much", 0), ("little", 0), ("much", 1), ("little", 1), ("much", 2)]);
        assert_eq!(std::iter::from_fn(|| queue.take()).count(), OF_ONE - 3);
        assert_eq!(queue.wait(Duration::from_millis(1)), Err(Untaken::Nothing));
        assert!(queue.push(&little, ("little", 2)));
        queue.end();
        assert!(!queue.push(&much, ("much", 0)));
        assert_eq!(queue.wait(Duration::from_secs(9)), Ok(("little", 2)));
        assert_eq!(queue.wait(Duration::from_secs(9)), Err(Untaken::Over));
    }
}
