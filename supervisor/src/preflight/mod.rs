//! Manifest + machine → [`LaunchPlan`], or the reason why not. Nothing of the
//! plugin runs here.

mod confinement;
mod grants;
mod hints;
mod places;
mod plan;
mod python;
mod requirements;
mod users;

use std::path::PathBuf;

pub use confinement::{Access, Confinement, Layer, Place};
pub use grants::Guarded;
pub use plan::{LaunchPlan, Surroundings, plan};
pub use python::PythonHost;
pub use requirements::Sha256Cache;

use crate::lifecycle::{Cause, CauseCode};

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

/// What a plugin needs and has not got; all of it makes one sentence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Absent {
    /// Why there is no GPU for it.
    pub gpu: Option<String>,
    /// Packages, commands, models.
    pub names: Vec<String>,
    /// How to get them.
    pub hints: Vec<String>,
    /// Files and folders whose change may bring them.
    pub watch: Vec<PathBuf>,
}

impl Absent {
    /// Nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.gpu.is_none() && self.names.is_empty()
    }

    /// The refusal that says all of it.
    pub fn into_refusal(self) -> Refusal {
        let Absent { gpu, mut names, mut hints, watch } = self;
        // Each is a sentence of its own or part of one.
        hints.iter_mut().for_each(|hint| *hint = hint.trim_end_matches('.').to_owned());
        hints.dedup();
        let code = if gpu.is_some() { CauseCode::GpuMissing } else { CauseCode::DependencyMissing };
        let mut sentences: Vec<String> = gpu.iter().cloned().collect();
        if !names.is_empty() || gpu.is_none() {
            let fix = match hints.is_empty() {
                true => String::new(),
                false => format!(" To fix: {}.", hints.join("; ")),
            };
            sentences.push(format!("Missing dependencies: {}.{fix}", names.join(", ")));
        }
        if gpu.is_some() {
            names.insert(0, "cuda".to_owned());
        }
        Refusal { cause: Cause::new(code, sentences.join(" ")), missing: names, watch }
    }
}
