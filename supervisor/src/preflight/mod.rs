//! Manifest + machine → [`LaunchPlan`], or the reason why not. Nothing of the
//! plugin runs here.

mod plan;
mod requirements;

use std::path::PathBuf;

pub use plan::{LaunchPlan, Surroundings, plan};
pub use requirements::Sha256Cache;

use crate::lifecycle::Cause;

/// Why a plugin cannot be launched.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// Code and sentence.
    pub cause: Cause,
    /// What is missing, one name each.
    pub missing: Vec<String>,
    /// Files whose appearance may heal it.
    pub watch: Vec<PathBuf>,
}
