//! Starts the plugin: in namespaces of its own below an init, or directly below
//! the launcher; then limits, fences and the exec.

use std::{
    convert::Infallible,
    ffi::CString,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
};

use rustix::{io::Errno, process::PidfdFlags};
use stockade_proto::launch::{LaunchPlan, Sandbox};

use crate::{
    Failure, at,
    hygiene::Kept,
    init::{self, Outside},
    landlock, namespaces, privileges, report,
    resident::{Child, Role},
    seccomp, sys,
};

/// A process between fork and exec could not go on; it has been reported.
pub(crate) const EXIT_FAILED: i32 = 127;

/// Starts the plugin and reports a descriptor of its process.
pub(crate) fn plugin(plan: &LaunchPlan, kept: &Kept) -> Result<Child, Failure> {
    let socket = &kept.socket;
    let program = Program::of(plan).map_err(at("prepare"))?;
    sys::become_subreaper().map_err(at("subreaper"))?;
    if sys::parent_pid() != plan.supervisor_pid {
        return Err(Failure { step: "parent", errno: Errno::SRCH });
    }
    let signals = sys::block_and_watch_sigchld().map_err(at("signalfd"))?;
    give_output(plan.sandbox.as_ref());
    if let Some(sandbox) = plan.sandbox.as_ref().filter(|sandbox| sandbox.namespaces) {
        let own = rustix::process::getpid();
        let outside = Outside {
            launcher: rustix::process::pidfd_open(own, PidfdFlags::empty()).map_err(at("pidfd"))?,
            user: rustix::process::geteuid().as_raw(),
            group: rustix::process::getegid().as_raw(),
        };
        let Some(pid) = namespaces::fork_into(sandbox)? else {
            init::run(plan, sandbox, &program, &outside, kept);
        };
        return Ok(Child { pid, signals, role: Role::Init });
    }
    let launcher = rustix::process::getpid().as_raw_pid() as u32;
    let Some(pid) = sys::fork().map_err(at("fork"))? else {
        if let Err(failure) = below_launcher(plan, launcher, kept) {
            report::failed(socket.as_fd(), failure.step, failure.errno);
            sys::exit_now(EXIT_FAILED);
        }
        enter(plan, &program, socket);
    };
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(at("pidfd"))?;
    report::started(socket, pidfd.as_fd());
    Ok(Child { pid, signals, role: Role::Plugin })
}

/// The pipes of the output are the daemon's; a plugin of another user could not
/// open /dev/stderr again.
fn give_output(sandbox: Option<&Sandbox>) {
    let Some(sandbox) = sandbox.filter(|sandbox| sandbox.uid != 0) else { return };
    let user = Some(rustix::process::Uid::from_raw(sandbox.uid));
    for pipe in [rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let _ = rustix::fs::fchown(pipe, user, None);
    }
}

/// Without a namespace: gone with the launcher, and no more its user.
fn below_launcher(plan: &LaunchPlan, launcher: u32, kept: &Kept) -> Result<(), Failure> {
    join_cgroup(kept)?;
    if let Some(sandbox) = &plan.sandbox {
        privileges::drop_all(sandbox.uid)?;
    }
    sys::die_with_parent().map_err(at("pdeathsig"))?;
    match sys::parent_pid() == launcher {
        true => Ok(()),
        false => Err(Failure { step: "parent", errno: Errno::SRCH }),
    }
}

/// From here on this process and its children are counted and limited.
pub(crate) fn join_cgroup(kept: &Kept) -> Result<(), Failure> {
    match &kept.cgroup {
        Some(entrance) => rustix::io::write(entrance, b"0").map(drop).map_err(at("cgroup")),
        None => Ok(()),
    }
}

/// The plugin's own part, up to the exec; never returns.
pub(crate) fn enter(plan: &LaunchPlan, program: &Program, socket: &OwnedFd) -> ! {
    let failure = match become_plugin(plan, program, socket) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    report::failed(socket.as_fd(), failure.step, failure.errno);
    sys::exit_now(EXIT_FAILED)
}

fn become_plugin(
    plan: &LaunchPlan,
    program: &Program,
    socket: &OwnedFd,
) -> Result<Infallible, Failure> {
    let _ = rustix::process::setsid();
    sys::set_nice(plan.nice).map_err(at("nice"))?;
    let sealed = match &plan.sandbox {
        Some(sandbox) if sandbox.sealed => {
            Some(sys::seal_program(&program.path, sandbox.open_files).map_err(at("exec"))?)
        }
        _ => None,
    };
    for limit in &plan.rlimits {
        sys::set_rlimit(limit.resource, limit.soft, limit.hard).map_err(at("rlimit"))?;
    }
    rustix::process::chdir(program.directory.as_c_str()).map_err(at("chdir"))?;
    sys::no_new_privs().map_err(at("no_new_privs"))?;
    if let Some(sandbox) = &plan.sandbox {
        if sandbox.landlock {
            landlock::restrict(sandbox)?;
        }
        sys::reset_signals();
        if sandbox.seccomp {
            seccomp::restrict(sandbox, sealed.as_ref().map(|fd| fd.as_raw_fd()))?;
        }
    } else {
        sys::reset_signals();
    }
    if !plan.trace.is_empty() {
        let listener = seccomp::listen(&plan.trace)?;
        report::listener(socket, listener.as_fd());
    }
    let errno = match sealed {
        Some(fd) => sys::exec_sealed(&fd, &program.argv, &program.env),
        None => sys::exec(&program.path, &program.argv, &program.env),
    };
    Err(Failure { step: "exec", errno })
}

/// The plan's strings as the kernel wants them.
pub(crate) struct Program {
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
