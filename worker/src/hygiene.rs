//! What needs no privilege: descriptors in their places and no others, a
//! session of its own, umask, out-of-memory score.

use std::os::fd::{AsRawFd as _, OwnedFd};

use rustix::{
    fs::{Mode, OFlags},
    io::{Result, fcntl_dupfd_cloexec},
};
use stockade_proto::fds;

use crate::{receive::Descriptors, sys};

/// The launch socket and the originals move above this while 0..5 are laid.
const HIGH: i32 = 64;

/// Plugins are the first to go when the machine runs out of memory.
const OOM_SCORE: &str = "500";

/// What stays open besides the plugin's own, close-on-exec.
pub(crate) struct Kept {
    /// The launch socket.
    pub(crate) socket: OwnedFd,
    /// Where a process joins the plugin's cgroup.
    pub(crate) cgroup: Option<OwnedFd>,
}

/// Lays the descriptors and closes all others.
pub(crate) fn clean(descriptors: Descriptors) -> Result<Kept> {
    let socket = fcntl_dupfd_cloexec(rustix::stdio::stdin(), HIGH)?;
    let cgroup = descriptors.cgroup.map(|fd| fcntl_dupfd_cloexec(&fd, HIGH)).transpose()?;
    let high = [descriptors.calls, descriptors.host, descriptors.notice]
        .map(|fd| fcntl_dupfd_cloexec(&fd, HIGH));
    for (fd, place) in high.into_iter().zip([fds::CALLS, fds::HOST, fds::NOTICE]) {
        sys::place(&fd?, place)?;
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    sys::place(&null, 0)?;
    drop(null);
    let kept: Vec<i32> =
        [Some(&socket), cgroup.as_ref()].into_iter().flatten().map(|fd| fd.as_raw_fd()).collect();
    sys::close_all_but(fds::NOTICE, &kept)?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Refused only where /proc is not mounted; the score is a preference.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    Ok(Kept { socket, cgroup })
}
