//! Reads the launch plan and its descriptors from the launch socket.

use std::{
    io::{Error, ErrorKind, IoSliceMut, Result},
    mem::MaybeUninit,
    os::fd::OwnedFd,
};

use prost::Message as _;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use stockade_proto::launch::LaunchPlan;

/// Largest launch plan (arguments and environment included).
const MAX_PLAN: usize = 192 * 1024;

/// The descriptors that become fd 3, 4 and 5 of the plugin, and the entrance of
/// its cgroup, if there is one.
pub(crate) struct Descriptors {
    pub(crate) calls: OwnedFd,
    pub(crate) host: OwnedFd,
    pub(crate) notice: OwnedFd,
    pub(crate) cgroup: Option<OwnedFd>,
}

/// Takes the one message that waits on fd 0.
pub(crate) fn launch_plan() -> Result<(LaunchPlan, Descriptors)> {
    let mut buffer = vec![0; MAX_PLAN];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        rustix::stdio::stdin(),
        &mut [IoSliceMut::new(&mut buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut fds = ancillary.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let descriptors = match (fds.next(), fds.next(), fds.next()) {
        (Some(calls), Some(host), Some(notice)) => {
            Descriptors { calls, host, notice, cgroup: fds.next() }
        }
        _ => return Err(Error::new(ErrorKind::InvalidData, "three descriptors expected")),
    };
    let plan = LaunchPlan::decode(&buffer[..received.bytes])
        .map_err(|error| Error::new(ErrorKind::InvalidData, error))?;
    Ok((plan, descriptors))
}
