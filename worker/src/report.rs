//! Messages to the supervisor on the launch socket. A supervisor that is gone
//! is no error here: the hang-up of the socket is handled where it is polled.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
};

use prost::Message as _;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use stockade_proto::launch::{
    Exited, LaunchFailed, LaunchReport, Listener, Started, TreeGone, launch_report::Report,
};

use crate::sys::WaitResult;

fn send(socket: BorrowedFd<'_>, report: Report, fd: Option<BorrowedFd<'_>>) {
    let bytes = LaunchReport { report: Some(report) }.encode_to_vec();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fd.into_iter().collect();
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let _ = sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL);
}

/// The plugin is forked; `pidfd` refers to it.
pub(crate) fn started(socket: &OwnedFd, pidfd: BorrowedFd<'_>) {
    send(socket.as_fd(), Report::Started(Started {}), Some(pidfd));
}

/// The plugin is traced; its calls wait on `listener`.
pub(crate) fn listener(socket: &OwnedFd, listener: BorrowedFd<'_>) {
    send(socket.as_fd(), Report::Listener(Listener {}), Some(listener));
}

/// A step failed, the exec included.
pub(crate) fn failed(socket: BorrowedFd<'_>, step: &str, errno: rustix::io::Errno) {
    let failed = LaunchFailed { step: step.to_owned(), errno: errno.raw_os_error() };
    send(socket, Report::Failed(failed), None);
}

/// The plugin's main process ended.
pub(crate) fn exited(socket: &OwnedFd, result: &WaitResult) {
    let exited = Exited {
        wait_status: result.status,
        max_rss_kib: result.max_rss_kib,
        user_usec: result.user_usec,
        system_usec: result.system_usec,
    };
    send(socket.as_fd(), Report::Exited(exited), None);
}

/// The tree is empty, but for the processes named.
pub(crate) fn tree_gone(socket: &OwnedFd, killed: u32, stuck: Vec<u32>) {
    send(socket.as_fd(), Report::Gone(TreeGone { killed, stuck }), None);
}
