//! Stays as the sub-reaper of the plugin's tree: reaps, reports the end of the
//! main process, kills what outlives it, and goes down with the supervisor.

use std::os::fd::OwnedFd;

use prost::Message as _;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, recv},
    process::Pid,
};
use stockade_proto::launch::LaunchCommand;

use crate::{report, sys, tree};

/// What the launcher's one child is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// The plugin's main process.
    Plugin,
    /// Pid 1 of its namespace, which reports the end of the main process itself
    /// and then exits with 0.
    Init,
}

/// The child and the descriptor that tells of ended children.
pub(crate) struct Child {
    pub(crate) pid: Pid,
    pub(crate) signals: OwnedFd,
    pub(crate) role: Role,
}

/// Closes the plugin's descriptors in a process that stays: a copy would hide
/// the plugin's hang-up.
pub(crate) fn let_go() {
    for fd in
        [stockade_proto::fds::CALLS, stockade_proto::fds::HOST, stockade_proto::fds::NOTICE, 1, 2]
    {
        sys::close(fd);
    }
}

/// Returns when the main process and every descendant are gone.
pub(crate) fn run(socket: &OwnedFd, child: Child) {
    sys::set_name(c"stockade-launch");
    let_go();
    loop {
        if let Some(result) = sys::reap(child.pid) {
            // An init that was killed took the plugin with it: SIGKILL.
            if child.role == Role::Plugin || result.status != 0 {
                report::exited(socket, &result);
            }
            return clear(socket, &child);
        }
        let mut fds =
            [PollFd::new(&child.signals, PollFlags::IN), PollFd::new(socket, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return lost(&child),
        }
        let (signal, message) = (fds[0].revents(), fds[1].revents());
        if !signal.is_empty() {
            sys::drain(&child.signals);
        }
        if !message.is_empty() && !obey(socket, &child) {
            return lost(&child);
        }
    }
}

/// Kills what outlived the main process. What is stuck in the kernel is
/// reported, and waited for: the report that nothing is left comes last.
fn clear(socket: &OwnedFd, child: &Child) {
    loop {
        let cleared = tree::kill_descendants(&child.signals);
        let done = cleared.stuck.is_empty();
        report::tree_gone(socket, cleared.killed, cleared.stuck);
        let mut fds = [PollFd::new(socket, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let _ = poll(&mut fds, Some(&now));
        if done || !fds[0].revents().is_empty() {
            return;
        }
    }
}

/// The supervisor is gone: so is everything below.
fn lost(child: &Child) {
    tree::kill_main(child.pid);
    tree::kill_descendants(&child.signals);
}

/// Reads one command; false on hang-up.
fn obey(socket: &OwnedFd, child: &Child) -> bool {
    let mut buffer = [0; 256];
    match recv(socket, &mut buffer[..], RecvFlags::DONTWAIT) {
        Ok((_, 0)) => false,
        Ok((_, n)) => {
            if let Ok(LaunchCommand { command: Some(_) }) = LaunchCommand::decode(&buffer[..n]) {
                tree::kill_main(child.pid);
                tree::kill_all_once();
            }
            true
        }
        Err(Errno::AGAIN | Errno::INTR) => true,
        Err(_) => false,
    }
}
