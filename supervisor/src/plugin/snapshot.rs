//! How a plugin is, at one moment: what its actor publishes.

use std::{
    any::Any,
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use jiff::Timestamp;

use super::{look::Sample, session::Session};
use crate::{
    lifecycle::{Cause, State, Substate},
    manifest::Manifest,
    preflight::LaunchPlan,
};

/// A plugin at one moment. Cheap to share.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Its name.
    pub name: Arc<str>,
    /// Its directory.
    pub directory: PathBuf,
    /// What it runs under; None when the manifest cannot be used.
    pub manifest: Option<Arc<Manifest>>,
    /// What was planned for the present (or last) process.
    pub plan: Option<Arc<LaunchPlan>>,
    /// INITIALIZED even while calls are in flight; see [`Snapshot::state`].
    pub resting: State,
    /// The rest of the story.
    pub substate: Substate,
    /// UNAVAILABLE, and the checks are being repeated now.
    pub checking: bool,
    /// Why it failed or cannot run.
    pub cause: Option<Cause>,
    /// What is missing.
    pub missing: Vec<String>,
    /// Its present (or last) process.
    pub generation: u64,
    /// Its main process.
    pub pid: Option<u32>,
    /// Where calls go; None when it cannot take any.
    pub session: Option<Arc<Session>>,
    /// Starts that followed a death.
    pub restarts: u64,
    /// The last death.
    pub last_exit: Option<Arc<LastExit>>,
    /// When this process became INITIALIZED.
    pub serving_since: Option<std::time::Instant>,
    /// When the next start is due.
    pub next_retry_at: Option<Timestamp>,
    /// Why a changed directory is not in use.
    pub pending_change: Option<String>,
    /// What Init said last.
    pub progress: Option<String>,
    /// What the guard has to say.
    pub warning: Option<String>,
    /// What its process tree uses.
    pub usage: Arc<Sample>,
    /// What readers have made of it, once for all of them.
    pub rendered: Rendered,
}

/// Something made of a snapshot, kept with it.
#[derive(Clone, Default)]
pub struct Rendered(Arc<OnceLock<Arc<dyn Any + Send + Sync>>>);

impl std::fmt::Debug for Rendered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rendered")
    }
}

impl Rendered {
    /// What was made, or is made now.
    pub fn get<T: Any + Send + Sync>(&self, make: impl Fn() -> T) -> Arc<T> {
        let kept = self.0.get_or_init(|| Arc::new(make())).clone();
        kept.downcast::<T>().unwrap_or_else(|_| Arc::new(make()))
    }
}

impl Snapshot {
    /// The state, with RUNNING while a call is in flight.
    pub fn state(&self) -> State {
        match (self.resting, &self.session) {
            (State::Initialized, Some(session)) if session.in_flight() > 0 => State::Running,
            (state, _) => state,
        }
    }

    /// A call may go to it (or wait for it).
    pub fn ready(&self) -> bool {
        self.resting == State::Initialized && self.substate != Substate::Draining
    }

    /// Since INITIALIZED; None without a process.
    pub fn uptime(&self) -> Option<Duration> {
        self.serving_since.map(|since| since.elapsed())
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq)]
pub struct LastExit {
    /// Why.
    pub cause: Cause,
    /// If a signal ended it.
    pub signal: Option<String>,
    /// If it exited.
    pub code: Option<i32>,
    /// When.
    pub time: Timestamp,
}

/// Times of the last ten calls.
#[derive(Debug, Default)]
pub struct Recent {
    times: Mutex<VecDeque<f64>>,
}

impl Recent {
    const KEPT: usize = 10;

    /// A call took this long.
    pub fn add(&self, took: Duration) {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        if times.len() == Self::KEPT {
            times.pop_front();
        }
        times.push_back(took.as_secs_f64() * 1000.0);
    }

    /// Milliseconds of the last call and the average of the last ten.
    pub fn last_and_average(&self) -> Option<(f64, f64)> {
        let times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let last = *times.back()?;
        Some((last, times.iter().sum::<f64>() / times.len() as f64))
    }
}
