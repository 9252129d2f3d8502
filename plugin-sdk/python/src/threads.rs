//! Where Python code runs: on the main thread while it is free, else on further
//! threads. Each keeps its thread state, so thread-locals live as long as it.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
};

use pyo3::prelude::*;

/// Python code; runs with the interpreter's lock held.
pub(crate) type Job = Box<dyn FnOnce(Python<'_>) + Send>;

/// As much as the main thread has: Python recurses on the C stack.
const STACK: usize = 8 << 20;

/// Threads wait for jobs; a job that finds none idle makes one more.
#[derive(Clone, Default)]
pub(crate) struct Threads(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    main: Condvar,
    others: Condvar,
}

#[derive(Default)]
struct State {
    /// For the main thread alone.
    main_jobs: VecDeque<Job>,
    main_idle: bool,
    /// One call at a time: every tool runs on the main thread.
    only_main: bool,
    jobs: VecDeque<Job>,
    idle: usize,
}

impl Threads {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// With one call at a time nothing runs elsewhere than on the main thread.
    pub(crate) fn set_concurrency(&self, concurrency: usize) {
        self.state().only_main = concurrency <= 1;
    }

    /// Runs `job` wherever a thread is free, the main thread first.
    pub(crate) fn run(&self, job: Job) {
        let mut state = self.state();
        if state.only_main || (state.main_idle && state.main_jobs.is_empty()) {
            state.main_jobs.push_back(job);
            state.main_idle = false;
            self.0.main.notify_one();
            return;
        }
        state.jobs.push_back(job);
        if state.idle >= state.jobs.len() {
            self.0.others.notify_one();
            return;
        }
        drop(state);
        let threads = self.clone();
        let spawned = thread::Builder::new()
            .name("tool".into())
            .stack_size(STACK)
            .spawn(move || Python::attach(|py| threads.work(py)));
        if let Err(error) = spawned {
            // A busy thread takes the job when it is done.
            eprintln!("<3>cannot start a tool thread: {error}");
        }
    }

    /// Runs `job` on the main thread, when that is free.
    pub(crate) fn run_on_main(&self, job: Job) {
        let mut state = self.state();
        state.main_jobs.push_back(job);
        state.main_idle = false;
        self.0.main.notify_one();
    }

    /// The life of the main thread.
    pub(crate) fn work_on_main(&self, py: Python<'_>) -> ! {
        loop {
            let job = py.detach(|| {
                let mut state = self.state();
                loop {
                    let next = state.main_jobs.pop_front();
                    if let Some(job) = next.or_else(|| state.jobs.pop_front()) {
                        state.main_idle = false;
                        return job;
                    }
                    state.main_idle = true;
                    state = self.0.main.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            });
            do_job(py, job);
        }
    }

    fn work(&self, py: Python<'_>) {
        loop {
            let job = py.detach(|| {
                let mut state = self.state();
                loop {
                    if let Some(job) = state.jobs.pop_front() {
                        return job;
                    }
                    state.idle += 1;
                    state = self.0.others.wait(state).unwrap_or_else(PoisonError::into_inner);
                    state.idle -= 1;
                }
            });
            do_job(py, job);
        }
    }
}

/// A panic of ours ends the job, not the thread. The call's reply is dropped on
/// the way, which answers it.
fn do_job(py: Python<'_>, job: Job) {
    if catch_unwind(AssertUnwindSafe(|| job(py))).is_err() {
        eprintln!("<3>the Python host panicked; please report it");
    }
}
