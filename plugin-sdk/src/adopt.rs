//! Takes over the descriptors that the launcher laid at 3, 4 and 5.
#![allow(unsafe_code)]

use std::{
    io::{Error, Result},
    os::{
        fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    sync::atomic::{AtomicBool, Ordering},
};

use rustix::io::{FdFlags, fcntl_setfd};
use stockade_proto::{fds, socket::Socket};

/// Marks 3, 4 and 5 close-on-exec, so that no child of the plugin keeps the
/// channels open. False when they are not there: this is not a plugin process.
pub fn close_on_exec() -> bool {
    [fds::CALLS, fds::HOST, fds::NOTICE].into_iter().all(|fd| {
        // SAFETY: the descriptor is only borrowed for this call; a number that
        // is not open gives EBADF, which is the answer looked for.
        let fd = unsafe { BorrowedFd::borrow_raw(fd) };
        fcntl_setfd(fd, FdFlags::CLOEXEC).is_ok()
    })
}

/// For a child that was forked without exec: it is no plugin and lets go of the
/// channels, or their end of file would never come.
pub fn close_forked() {
    let Ok(null) = std::fs::File::options().write(true).open("/dev/null") else { return };
    for fd in [fds::CALLS, fds::HOST, fds::NOTICE] {
        // Covered, not closed: a file that the child opens must not get a number
        // to which a handler of the parent still writes.
        // SAFETY: in the child nobody else uses these descriptors: the threads
        // that did exist only in the parent.
        unsafe { libc::dup3(null.as_raw_fd(), fd, libc::O_CLOEXEC) };
    }
}

fn adopt(fd: i32, taken: &AtomicBool) -> Result<Socket> {
    if taken.swap(true, Ordering::AcqRel) {
        return Err(Error::other("the inherited descriptor is already in use"));
    }
    // SAFETY: the launcher laid this descriptor for the SDK alone and `taken`
    // lets this happen once per process, so there is exactly one owner.
    let stream = StdStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
    Socket::new(stream)
}

/// The channel on which calls come.
pub(crate) fn calls() -> Result<Socket> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    adopt(fds::CALLS, &TAKEN)
}

/// The channel to the supervisor's services.
pub(crate) fn host() -> Result<Socket> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    adopt(fds::HOST, &TAKEN)
}
