//! Namespaces of the plugin's own, entered with one clone, and what has to be
//! set up in them before anything else.

use rustix::{io::Errno, process::Pid};
use stockade_proto::launch::{Network, Sandbox};

use crate::{Failure, at, sys};

/// Forks into new namespaces: None in their first process (pid 1 inside). The
/// launcher stays outside of all of them.
pub(crate) fn fork_into(sandbox: &Sandbox) -> Result<Option<Pid>, Failure> {
    let mut flags =
        libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    if !rustix::process::geteuid().is_root() {
        flags |= libc::CLONE_NEWUSER;
    }
    if sandbox.network() != Network::Host {
        flags |= libc::CLONE_NEWNET;
    }
    sys::fork_into(flags).map_err(at("namespaces"))
}

/// In the first process, in its cgroup: who we are inside, a view of cgroups that
/// begins here, the loopback device.
pub(crate) fn settle(sandbox: &Sandbox, user: u32, group: u32) -> Result<(), Failure> {
    if user != 0 {
        // The same numbers inside: never 0, which would be root in there.
        write("/proc/self/setgroups", "deny").map_err(at("setgroups"))?;
        write("/proc/self/uid_map", &format!("{user} {user} 1")).map_err(at("uid_map"))?;
        write("/proc/self/gid_map", &format!("{group} {group} 1")).map_err(at("gid_map"))?;
    }
    sys::own_cgroup_view().map_err(at("namespaces"))?;
    if sandbox.network() == Network::Loopback {
        sys::loopback_up().map_err(at("loopback"))?;
    }
    Ok(())
}

fn write(path: &str, text: &str) -> rustix::io::Result<()> {
    std::fs::write(path, text).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}
