//! Readiness of a descriptor on the runtime.
#![allow(unsafe_code)]

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the current runtime.
///
/// # Errors
/// The runtime refuses it.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always returns the same descriptor and keeps it open
    // until it is dropped, which `AsyncFd` does only after deregistering it.
    unsafe { AsyncFd::register(fd) }.map_err(io::Error::from)
}
