//! `stockade check`

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use stockade::{
    Config,
    document::Severity,
    machine::{Gpus, LayerProbe},
    manifest::{self, MANIFEST_FILES},
    preflight::{self, Absent, Guarded, PythonHost, Surroundings},
};

use super::{failure::Failure, output};

/// Check plugins' directories without a daemon: every problem at once
#[derive(Args)]
#[command(after_help = "Examples:\n  stockade check ./my-plugin\n  stockade check plugins/*")]
pub(super) struct Check {
    /// Plugin directories
    #[arg(required = true)]
    directories: Vec<PathBuf>,
    /// The manifest only: do not look for the program and what it requires
    #[arg(long)]
    manifest_only: bool,
}

pub(super) fn run(check: &Check) -> Result<(), Failure> {
    let mut bad = 0;
    for directory in &check.directories {
        if !one(directory, check.manifest_only) {
            bad += 1;
        }
    }
    match bad {
        0 => Ok(()),
        1 => Err(Failure::failed("1 plugin has problems")),
        n => Err(Failure::failed(format!("{n} plugins have problems"))),
    }
}

/// True when it can run here.
fn one(directory: &std::path::Path, manifest_only: bool) -> bool {
    let shown = directory.display();
    let Some(found) = manifest::load(directory) else {
        output::line(&format!("{shown}: no {}", MANIFEST_FILES.join(" or ")));
        return false;
    };
    let (problems, manifest) = match &found.manifest {
        Ok(manifest) => (&manifest.warnings, Some(manifest)),
        Err(problems) => (problems, None),
    };
    for problem in problems {
        let kind = match problem.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        output::line(&format!("{shown}/{problem} [{kind}]"));
    }
    let Some(manifest) = manifest else { return false };
    if !manifest_only {
        let scratch = std::env::temp_dir().join(format!("stockade-check-{}", std::process::id()));
        let config = Config::new(directory, &scratch);
        let around = Surroundings {
            state_dir: scratch.clone(),
            gpus: Gpus::new(None),
            digests: Default::default(),
            python: PythonHost::from(&config),
            library_host: config.library_host.clone(),
            remote_host: config.remote_host.clone(),
            guarded: Guarded::default(),
            tracer: None,
            layers: Arc::new(LayerProbe::new(config.worker.clone(), config.plugin_uids.clone())),
        };
        let planned = preflight::plan(manifest, &around);
        let _ = std::fs::remove_dir_all(scratch);
        let refusal = match planned {
            Err(refusal) => Some(refusal),
            Ok(plan) => plan.absent.map(Absent::into_refusal),
        };
        if let Some(refusal) = refusal {
            output::line(&format!("{shown}: {} [error]", refusal.cause.reason));
            return false;
        }
        if !manifest.requires.packages.is_empty() {
            let packages = manifest.requires.packages.join(", ");
            output::line(&format!("{shown}: looked for when it starts: {packages}"));
        }
    }
    output::line(&format!(
        "{shown}: {} {} is fine",
        manifest.name,
        manifest.version.as_deref().unwrap_or("(no version)")
    ));
    true
}
