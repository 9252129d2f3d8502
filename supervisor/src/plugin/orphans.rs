//! When a launcher itself is killed, the daemon (a sub-reaper too) inherits
//! what it held. Those are no plugin's any more: killed and reaped by pid.

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::launch::known_launchers;
use crate::machine;

/// Kills and reaps children of this process that are no launchers. Only for a
/// process whose children are all ours (the daemon).
pub(super) fn reap_orphans() {
    // Their descendants become our children as they die, hence the rounds.
    for _ in 0..100 {
        let launchers = known_launchers();
        let orphans: Vec<Pid> = machine::children(std::process::id())
            .into_iter()
            .filter(|pid| !launchers.contains(pid))
            .filter_map(|pid| Pid::from_raw(pid as i32))
            .collect();
        if orphans.is_empty() {
            return;
        }
        for pid in &orphans {
            let _ = kill_process(*pid, Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
        for pid in orphans {
            let _ = waitpid(Some(pid), WaitOptions::NOHANG);
        }
    }
}
