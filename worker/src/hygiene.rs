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

/// Returns the launch socket, moved to a high close-on-exec descriptor.
pub(crate) fn clean(descriptors: Descriptors) -> Result<OwnedFd> {
    let socket = fcntl_dupfd_cloexec(rustix::stdio::stdin(), HIGH)?;
    let high = [descriptors.calls, descriptors.host, descriptors.notice]
        .map(|fd| fcntl_dupfd_cloexec(&fd, HIGH));
    for (fd, place) in high.into_iter().zip([fds::CALLS, fds::HOST, fds::NOTICE]) {
        sys::place(&fd?, place)?;
    }
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    sys::place(&null, 0)?;
    drop(null);
    sys::close_all_but(fds::NOTICE, socket.as_raw_fd())?;
    let _ = rustix::process::setsid();
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // Refused only where /proc is not mounted; the score is a preference.
    let _ = std::fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    Ok(socket)
}
