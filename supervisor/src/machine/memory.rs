//! Did the machine run out of memory just now? From `oom_kill` of /proc/vmstat.

use std::{
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

/// Remembers the counter of a moment ago, so that a kill can be attributed.
#[derive(Debug)]
pub struct OomWatch {
    /// The counter when last looked at, and when it last moved.
    state: Mutex<(u64, Option<Instant>)>,
}

/// A kill this recent may be the one that we see the result of.
const RECENT: Duration = Duration::from_secs(2);

impl Default for OomWatch {
    fn default() -> Self {
        OomWatch { state: Mutex::new((read(), None)) }
    }
}

impl OomWatch {
    /// Looks at the counter; true when it moved within the last two seconds.
    pub fn recent(&self) -> bool {
        let count = read();
        let mut state = self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if count != state.0 {
            *state = (count, Some(Instant::now()));
        }
        state.1.is_some_and(|moved| moved.elapsed() < RECENT)
    }
}

fn read() -> u64 {
    let vmstat = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let line = vmstat.lines().find(|line| line.starts_with("oom_kill "));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}
