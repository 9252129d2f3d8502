//! Pid 1 of the plugin's pid namespace: builds what the plugin will see, starts
//! it, waits for it. When this process ends, the kernel kills everything in the
//! namespace, so it ends with the plugin's main process and with the launcher.

use std::os::fd::{AsFd as _, OwnedFd};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{DumpableBehavior, PidfdFlags, pidfd_open, set_dumpable_behavior},
};
use stockade_proto::launch::{LaunchPlan, Sandbox};

use crate::{
    Failure, at,
    hygiene::Kept,
    namespaces, new_root, privileges, report,
    resident::let_go,
    start::{self, Program},
    sys,
};

/// Who the launcher is, asked before the namespaces hide it.
pub(crate) struct Outside {
    /// A descriptor of its process: inside, its number means nobody.
    pub(crate) launcher: OwnedFd,
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// Runs to the end of the plugin; never returns.
pub(crate) fn run(
    plan: &LaunchPlan,
    sandbox: &Sandbox,
    program: &Program,
    outside: &Outside,
    kept: &Kept,
) -> ! {
    if let Err(failure) = live(plan, sandbox, program, outside, kept) {
        report::failed(kept.socket.as_fd(), failure.step, failure.errno);
        sys::exit_now(start::EXIT_FAILED);
    }
    sys::exit_now(0)
}

fn live(
    plan: &LaunchPlan,
    sandbox: &Sandbox,
    program: &Program,
    outside: &Outside,
    kept: &Kept,
) -> Result<(), Failure> {
    sys::set_name(c"stockade-init");
    end_with(&outside.launcher)?;
    start::join_cgroup(kept)?;
    namespaces::settle(sandbox, outside.user, outside.group)?;
    new_root::enter(sandbox)?;
    privileges::drop_all(sandbox.uid)?;
    // Changing the user clears it. From inside nobody can reach this process.
    end_with(&outside.launcher)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(at("undumpable"))?;
    let socket = &kept.socket;
    let Some(plugin) = sys::fork().map_err(at("fork"))? else {
        start::enter(plan, program, socket);
    };
    let pidfd = pidfd_open(plugin, PidfdFlags::empty()).map_err(at("pidfd"))?;
    report::started(socket, pidfd.as_fd());
    let_go();
    report::exited(socket, &sys::wait_for(plugin));
    Ok(())
}

/// SIGKILL when the launcher ends; an error when it has ended already.
fn end_with(launcher: &OwnedFd) -> Result<(), Failure> {
    sys::die_with_parent().map_err(at("pdeathsig"))?;
    let mut ended = [PollFd::new(launcher, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    match poll(&mut ended, Some(&now)) {
        Ok(0) => Ok(()),
        _ => Err(Failure { step: "parent", errno: Errno::SRCH }),
    }
}
