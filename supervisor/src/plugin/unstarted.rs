//! What a launcher reports when it could not start the plugin's program.

use std::path::Path;

use rustix::io::Errno;

use crate::lifecycle::{Cause, CauseCode};

/// Steps of the launcher that build the sandbox.
const SANDBOX_STEPS: [&str; 17] = [
    "namespaces",
    "setgroups",
    "uid_map",
    "gid_map",
    "loopback",
    "mount private",
    "mount root",
    "mount tmpfs",
    "mount proc",
    "bind",
    "link",
    "pivot_root",
    "read-only root",
    "setuid",
    "capabilities",
    "landlock",
    "seccomp",
];

/// Why a launcher did not come to run the plugin's program: the step that failed, and
/// the system's error.
pub(super) fn not_executed(name: &str, program: Option<&Path>, step: &str, errno: i32) -> Cause {
    let program = program.map(|program| program.display().to_string()).unwrap_or_default();
    let system = std::io::Error::from_raw_os_error(errno);
    if step == "exec" {
        let (name, fix) = match Errno::from_raw_os_error(errno) {
            Errno::NOENT => (
                "ENOENT, missing interpreter or dynamic loader",
                "Install the interpreter, or build the program for this machine.",
            ),
            Errno::ACCESS => ("EACCES", "Make it executable for the daemon's user."),
            Errno::NOEXEC => {
                ("ENOEXEC, not a program for this machine", "Build it for this architecture.")
            }
            _ => ("refused", "See the system's error."),
        };
        let reason = format!("Cannot execute {program}: {name} ({system}). {fix}");
        return Cause::new(CauseCode::ExecFailed, reason);
    }
    if ["open", "changed"].contains(&step) {
        let reason = format!(
            "Could not start: a file or folder that it may see was replaced meanwhile \
             ({system}). If it stays so, look at its grants: stockade describe {}.",
            name
        );
        return Cause::new(CauseCode::SpawnResources, reason);
    }
    // What another attempt may not meet again.
    let used_up = [Errno::NOMEM, Errno::AGAIN, Errno::NOSPC, Errno::MFILE, Errno::NFILE];
    if SANDBOX_STEPS.contains(&step) && !used_up.contains(&Errno::from_raw_os_error(errno)) {
        let reason = format!(
            "Its sandbox cannot be built: {step}: {system}. Run `stockade doctor`, and look at \
             its grants: stockade describe {}.",
            name
        );
        return Cause::new(CauseCode::Sandbox, reason);
    }
    let reason = format!(
        "Could not start: {step}: {system}. The machine or a limit of the daemon is used up."
    );
    Cause::new(CauseCode::SpawnResources, reason)
}
