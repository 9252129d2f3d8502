//! `stockade-worker`, the launcher: takes one launch plan from fd 0, cleans
//! the process up, starts the plugin, reports how it ended, leaves nothing.
//!
//! The journey, forward only: [`receive`] the plan and its descriptors →
//! [`hygiene`] (descriptors, session, umask, oom score) → [`confine`] (the
//! sandbox) → [`start`] the plugin → [`resident`] until its tree is gone.
//!
//! It is single-threaded from start to end and runs no async runtime. Only
//! [`sys`] holds unsafe code.

mod confine;
mod hygiene;
mod receive;
mod report;
mod resident;
mod start;
mod sys;
mod tree;

use std::{os::fd::AsFd as _, process::ExitCode};

/// The launcher could not read its plan: nobody to report to.
const EXIT_NO_PLAN: u8 = 96;
/// A step failed; the supervisor has been told which.
const EXIT_FAILED: u8 = 97;

fn main() -> ExitCode {
    let (plan, descriptors) = match receive::launch_plan() {
        Ok(received) => received,
        Err(error) => {
            eprintln!(
                "stockade-worker: no launch plan on standard input: {error}. \
                 It is started by `stockade serve`, not by hand."
            );
            return ExitCode::from(EXIT_NO_PLAN);
        }
    };
    let socket = match hygiene::clean(descriptors) {
        Ok(socket) => socket,
        Err(errno) => {
            report::failed(rustix::stdio::stdin(), "descriptors", errno);
            return ExitCode::from(EXIT_FAILED);
        }
    };
    match launch(&plan, &socket) {
        Ok(child) => {
            resident::run(&socket, child);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            report::failed(socket.as_fd(), failure.step, failure.errno);
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// A step of the launch that the kernel refused.
struct Failure {
    step: &'static str,
    errno: rustix::io::Errno,
}

/// `map_err(at("step"))`: names the step that failed.
fn at(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> Failure {
    move |errno| Failure { step, errno }
}

fn launch(
    plan: &stockade_proto::launch::LaunchPlan,
    socket: &std::os::fd::OwnedFd,
) -> Result<resident::Child, Failure> {
    confine::apply(plan)?;
    start::plugin(plan, socket)
}
