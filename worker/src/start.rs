//! Forks the plugin: limits, signals, death with its parent, then exec.

use std::{
    ffi::CString,
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::{io::Errno, process::PidfdFlags};
use stockade_proto::launch::LaunchPlan;

use crate::{Failure, at, report, resident::Child, sys};

/// Starts the plugin and reports its pid and pidfd.
pub(crate) fn plugin(plan: &LaunchPlan, socket: &OwnedFd) -> Result<Child, Failure> {
    let program = Program::of(plan).map_err(at("prepare"))?;
    sys::become_subreaper().map_err(at("subreaper"))?;
    if sys::parent_pid() != plan.supervisor_pid {
        return Err(Failure { step: "parent", errno: Errno::SRCH });
    }
    let signals = sys::block_and_watch_sigchld().map_err(at("signalfd"))?;
    let launcher = rustix::process::getpid();
    let Some(pid) = sys::fork().map_err(at("fork"))? else {
        let failure = match enter(plan, &program, launcher.as_raw_pid() as u32) {
            Ok(never) => match never {},
            Err(failure) => failure,
        };
        report::failed(socket.as_fd(), failure.step, failure.errno);
        sys::exit_now(127);
    };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(at("pidfd"))?;
    report::started(socket, pid.as_raw_pid() as u32, pidfd.as_fd());
    Ok(Child { pid, signals })
}

/// The child's part, up to the exec.
fn enter(
    plan: &LaunchPlan,
    program: &Program,
    launcher: u32,
) -> Result<std::convert::Infallible, Failure> {
    sys::die_with_parent().map_err(at("pdeathsig"))?;
    if sys::parent_pid() != launcher {
        return Err(Failure { step: "parent", errno: Errno::SRCH });
    }
    let _ = rustix::process::setsid();
    sys::set_nice(plan.nice).map_err(at("nice"))?;
    for limit in &plan.rlimits {
        sys::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(at("rlimit"))?;
    }
    rustix::process::chdir(program.directory.as_c_str()).map_err(at("chdir"))?;
    sys::no_new_privs().map_err(at("no_new_privs"))?;
    sys::reset_signals();
    Err(Failure { step: "exec", errno: sys::exec(&program.path, &program.argv, &program.env) })
}

/// The plan's strings as the kernel wants them.
struct Program {
    path: CString,
    directory: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
}

impl Program {
    fn of(plan: &LaunchPlan) -> rustix::io::Result<Self> {
        let c = |text: &String| CString::new(text.as_str()).map_err(|_| Errno::INVAL);
        Ok(Program {
            path: c(&plan.path)?,
            directory: c(&plan.directory)?,
            argv: plan.argv.iter().map(c).collect::<Result<_, _>>()?,
            env: plan.env.iter().map(c).collect::<Result<_, _>>()?,
        })
    }
}
