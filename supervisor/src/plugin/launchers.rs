//! The launchers that live, and the orphans that are none. When a launcher
//! itself is killed, the daemon (a sub-reaper too) inherits what it held; that
//! is no plugin's any more: killed and reaped by pid.

use std::{
    collections::HashSet,
    io,
    process::{Child, Command},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::machine;

static LAUNCHERS: LazyLock<Mutex<HashSet<u32>>> = LazyLock::new(Mutex::default);

fn launchers() -> MutexGuard<'static, HashSet<u32>> {
    LAUNCHERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a launcher. Under the lock, so that it is never taken for an orphan.
pub(super) fn start(command: &mut Command) -> io::Result<Child> {
    let mut launchers = launchers();
    let child = command.spawn()?;
    launchers.insert(child.id());
    Ok(child)
}

/// A launcher that has ended.
pub(super) fn forget(pid: u32) {
    launchers().remove(&pid);
}

/// Kills and reaps children of this process that are no launchers. Only for a
/// process whose children are all ours (the daemon).
pub(super) fn reap_orphans() {
    // Their descendants become our children as they die, hence the rounds.
    for _ in 0..100 {
        let orphans = kill_orphans();
        if orphans.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        for pid in orphans {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}

fn kill_orphans() -> Vec<Pid> {
    let launchers = launchers();
    let orphans: Vec<Pid> = machine::children(std::process::id())
        .into_iter()
        .filter(|pid| !launchers.contains(pid))
        .filter_map(|pid| Pid::from_raw(pid as i32))
        .collect();
    for pid in &orphans {
        let _ = kill_process(*pid, Signal::KILL);
    }
    orphans
}
