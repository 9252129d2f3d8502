//! Large blocks of memory go back to the system when they are freed: a result of thirty
//! megabytes must not stay with the daemon because a small one lies behind it.
#![allow(unsafe_code)]

/// Blocks from this size on are mappings of their own.
const LARGE: i32 = 1 << 20;

/// Before there is a second thread. Without effect where the C library is not glibc.
pub(super) fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two integers and changes parameters of the allocator; it is
    // called while the process has one thread.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 4 * LARGE);
    }
}
