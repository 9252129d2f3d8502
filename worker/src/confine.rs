//! The sandbox: its place in the launcher's order, between hygiene and start.
//!
//! Profile `none` is all there is so far: no namespace, no Landlock, no
//! seccomp. Any other profile is refused by the supervisor before the launch.

use stockade_proto::launch::LaunchPlan;

use crate::Failure;

/// Applies the plan's profile to this process, or says which layer failed.
pub(crate) fn apply(_plan: &LaunchPlan) -> Result<(), Failure> {
    Ok(())
}
