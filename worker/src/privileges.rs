//! Gives up what the plugin must not have: the daemon's user, capabilities.

use rustix::{
    io::{Errno, Result},
    process::{Gid, Uid},
    thread::{CapabilitySet, CapabilitySets, set_capabilities},
};

use crate::{Failure, at, sys};

/// Becomes `uid` (0: stays who it is) without any capability, for good. The
/// death signal must be asked for again after this.
pub(crate) fn drop_all(uid: u32) -> std::result::Result<(), Failure> {
    sys::clear_capability_bounds();
    if uid != 0 {
        become_user(uid).map_err(at("setuid"))?;
    }
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    set_capabilities(None, none).map_err(at("capabilities"))
}

fn become_user(uid: u32) -> Result<()> {
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(group, group, group)?;
    rustix::thread::set_thread_res_uid(user, user, user)?;
    // It must not come back.
    match rustix::thread::set_thread_uid(Uid::ROOT) {
        Ok(()) => Err(Errno::NOTRECOVERABLE),
        Err(_) => Ok(()),
    }
}
