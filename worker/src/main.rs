//! `stockade-worker`, the launcher: takes one launch plan from fd 0, cleans
//! the process up, starts the plugin, reports how it ended, leaves nothing.
//!
//! The journey, forward only: [`receive`] the plan and its descriptors →
//! [`hygiene`] (descriptors, session, umask, oom score) → [`start`] the plugin →
//! [`resident`] until its tree is gone. With namespaces, between launcher and
//! plugin: [`namespaces`] → [`init`] ([`new_root`], [`privileges`]). The plugin
//! itself, before its exec: [`landlock`], [`seccomp`] (assembled by [`bpf`]).
//! `--probe` tries each of these layers on this machine ([`probe`]).
//!
//! It is single-threaded from start to end and runs no async runtime. Only
//! [`sys`] holds unsafe code.

mod bpf;
mod hygiene;
mod init;
mod landlock;
mod namespaces;
mod new_root;
mod privileges;
mod probe;
mod receive;
mod report;
mod resident;
mod seccomp;
mod start;
mod sys;
mod tree;

use std::{os::fd::AsFd as _, process::ExitCode};

/// The launcher could not read its plan: nobody to report to.
const EXIT_NO_PLAN: u8 = 96;
/// A step failed; the supervisor has been told which.
const EXIT_FAILED: u8 = 97;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() == Some("--probe") {
        probe::run(arguments.next().and_then(|uid| uid.parse().ok()).unwrap_or(0));
        return ExitCode::SUCCESS;
    }
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
    let kept = match hygiene::clean(descriptors) {
        Ok(kept) => kept,
        Err(errno) => {
            report::failed(rustix::stdio::stdin(), "descriptors", errno);
            return ExitCode::from(EXIT_FAILED);
        }
    };
    match start::plugin(&plan, &kept) {
        Ok(child) => {
            resident::run(&kept.socket, child);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            report::failed(kept.socket.as_fd(), failure.step, failure.errno);
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
