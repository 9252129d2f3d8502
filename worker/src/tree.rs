//! Kills everything below this process. As the sub-reaper it is the ancestor
//! of every descendant, double-forked and setsid'd ones included.

use std::{
    collections::HashSet,
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process, kill_process_group},
};

use crate::sys;

/// What the clearing came to.
pub(crate) struct Cleared {
    pub(crate) killed: u32,
    pub(crate) stuck: Vec<u32>,
}

/// A process that has not died this long after SIGKILL sits in the kernel.
const STUCK_AFTER: Duration = Duration::from_secs(10);
/// Rescans that freeze a tree which is still forking.
const FREEZE_ROUNDS: usize = 1000;

/// Kills the plugin's main process and, atomically, its whole process group
/// (a fork cannot escape a group signal).
pub(crate) fn kill_main(main: Pid) {
    let _ = kill_process_group(main, Signal::KILL);
    let _ = kill_process(main, Signal::KILL);
}

/// Kills until no descendant is left, and reaps them.
pub(crate) fn kill_descendants(signals: &OwnedFd) -> Cleared {
    let started = Instant::now();
    let mut killed = HashSet::new();
    loop {
        let alive = kill_all_once();
        killed.extend(alive.iter().copied());
        sys::reap_all();
        let left = descendants();
        if left.is_empty() {
            return Cleared { killed: killed.len() as u32, stuck: Vec::new() };
        }
        if started.elapsed() > STUCK_AFTER {
            let stuck = left.iter().map(|pid| pid.as_raw_pid() as u32).collect();
            return Cleared { killed: killed.len() as u32, stuck };
        }
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        let pause = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
        let _ = poll(&mut fds, Some(&pause));
        sys::drain(signals);
    }
}

/// Freezes the tree (so that nothing forks away between look and kill), then
/// kills all of it. Returns what was found.
pub(crate) fn kill_all_once() -> Vec<Pid> {
    let mut frozen: HashSet<Pid> = HashSet::new();
    let mut order = Vec::new();
    for _ in 0..FREEZE_ROUNDS {
        let fresh: Vec<Pid> = descendants().into_iter().filter(|pid| frozen.insert(*pid)).collect();
        if fresh.is_empty() {
            break;
        }
        for pid in &fresh {
            let _ = kill_process(*pid, Signal::STOP);
        }
        order.extend(fresh);
    }
    for pid in &order {
        let _ = kill_process(*pid, Signal::KILL);
    }
    order
}

/// Every living descendant, breadth first, zombies included until reaped.
fn descendants() -> Vec<Pid> {
    let mut found = Vec::new();
    children_of("self", &mut found);
    let mut next = 0;
    while next < found.len() {
        let pid: Pid = found[next];
        children_of(&pid.as_raw_pid().to_string(), &mut found);
        next += 1;
    }
    found
}

fn children_of(process: &str, found: &mut Vec<Pid>) {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{process}/task")) else { return };
    for task in tasks.flatten() {
        let list = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(list.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)));
    }
}
