//! One thread per busy slot for blocking tools, made when first needed.

use std::{
    collections::VecDeque,
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
};

type Job = Box<dyn FnOnce() + Send>;

/// Threads wait for jobs; a job that finds none idle makes one more.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    idle: usize,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pool")
    }
}

impl Pool {
    /// Runs `job` on a thread of its own. The supervisor bounds how many there
    /// are at once.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.push_back(Box::new(job));
        if state.idle >= state.jobs.len() {
            self.shared.wake.notify_one();
            return;
        }
        drop(state);
        let shared = self.shared.clone();
        let spawned = thread::Builder::new().name("tool".into()).spawn(move || work(&shared));
        if let Err(error) = spawned {
            // A busy thread will take the job when it is done; with none, it
            // waits, and the call's time-out speaks.
            crate::log::write(crate::Level::Error, &format!("cannot start a tool thread: {error}"));
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        if let Some(job) = state.jobs.pop_front() {
            drop(state);
            job();
            state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        } else {
            state.idle += 1;
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
