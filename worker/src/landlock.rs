//! Landlock: files by path, TCP, signals and abstract sockets. Inside a new root
//! it is the second fence; without namespaces it is the one around the files.

use ::landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible as _, PathBeneath,
    PathFd, RestrictionStatus, Ruleset, RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _,
    RulesetError, RulesetStatus, Scope,
};
use rustix::io::Errno;
use stockade_proto::launch::{Access, Network, Sandbox};

use crate::Failure;

/// The newest that is used; an older kernel holds what it knows.
const NEWEST: ABI = ABI::V6;

/// Restricts this thread and everything that it will start.
pub(crate) fn restrict(sandbox: &Sandbox) -> Result<(), Failure> {
    let status =
        build(sandbox).map_err(|error| Failure { step: "landlock", errno: cause(&error) })?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(Failure { step: "landlock", errno: Errno::OPNOTSUPP }),
        _ => Ok(()),
    }
}

fn cause(error: &RulesetError) -> Errno {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = source {
        if let Some(system) = error.downcast_ref::<std::io::Error>() {
            return Errno::from_io_error(system).unwrap_or(Errno::INVAL);
        }
        source = error.source();
    }
    Errno::INVAL
}

fn build(sandbox: &Sandbox) -> Result<RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    if sandbox.network() == Network::None {
        rules = rules.handle_access(AccessNet::from_all(NEWEST))?;
    }
    let mut rules = rules.create()?;
    let read = AccessFs::from_read(NEWEST);
    let write = AccessFs::from_all(NEWEST)
        & !(AccessFs::Execute | AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev);
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    if sandbox.namespaces {
        // All that is visible is granted.
        rules = allow(rules, "/", read)?;
        rules = allow(allow(rules, "/tmp", write)?, "/dev/shm", write)?;
    } else {
        rules = allow(rules, "/dev", AccessFs::ReadFile | AccessFs::ReadDir)?;
    }
    // /proc/self/mem writes to what is only executable; thread names go without.
    // Without a /proc of its own, others' and the kernel's settings are in there.
    let writable = sandbox.jit && sandbox.namespaces;
    let own = if writable { read | AccessFs::WriteFile } else { read };
    rules = allow(rules, "/proc", own)?;
    for path in ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"] {
        rules = allow(rules, path, device)?;
    }
    for place in &sandbox.places {
        let access = match place.access() {
            Access::Read if sandbox.namespaces => continue,
            Access::Read => read,
            Access::Write => write,
            Access::Device => device,
        };
        // Where it is in this process's own root.
        let path = if sandbox.namespaces { &place.path } else { &place.source };
        rules = allow(rules, path, access)?;
    }
    rules.no_new_privs(false).restrict_self()
}

/// A path that is not there grants nothing.
fn allow(
    rules: RulesetCreated,
    path: &str,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let Ok(fd) = PathFd::new(path) else { return Ok(rules) };
    let folder = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_dir());
    // What only folders can be granted is refused for a file.
    let access = if folder { access } else { access & AccessFs::from_file(NEWEST) };
    rules.add_rule(PathBeneath::new(fd, access))
}
