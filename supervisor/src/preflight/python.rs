//! Which interpreter hosts a Python plugin, and how it is called.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Refusal, plan::executable};
use crate::{
    config::Config,
    lifecycle::{Cause, CauseCode},
};

/// What runs Python plugins on this machine.
#[derive(Clone, Debug)]
pub struct PythonHost {
    /// The interpreter of plugins that bring none.
    pub interpreter: PathBuf,
    /// The folder that holds the package `stockade`.
    pub package: PathBuf,
}

impl From<&Config> for PythonHost {
    fn from(config: &Config) -> Self {
        PythonHost { interpreter: config.python.clone(), package: config.python_host.clone() }
    }
}

/// An interpreter and what its environment needs.
pub(super) struct Interpreter {
    pub(super) program: PathBuf,
    venv: Option<PathBuf>,
}

impl Interpreter {
    /// The manifest's interpreter, its virtual environment (named, or `.venv`
    /// when it is there), else the machine's.
    pub(super) fn of(
        directory: &Path,
        venv: Option<&Path>,
        interpreter: Option<&Path>,
        host: &PythonHost,
    ) -> Result<Self, Refusal> {
        let usual = Path::new(".venv");
        let venv = venv.or_else(|| {
            (interpreter.is_none() && directory.join(usual).join("bin/python").exists())
                .then_some(usual)
        });
        if let Some(venv) = venv {
            let place = directory.join(venv);
            let shown = venv.join("bin/python");
            let fix = format!("Make it: python3 -m venv {}", place.display());
            let program = executable(place.join("bin/python"), &shown, &fix)?;
            return Ok(Interpreter { program, venv: Some(place) });
        }
        let program = interpreter.unwrap_or(&host.interpreter);
        let fix = match interpreter {
            Some(_) => "Install it, or correct run.interpreter.",
            None => {
                "Install it (Debian: apt-get install python3), or set `python` in stockade.toml."
            }
        };
        let program = executable(program.to_owned(), program, fix)?;
        Ok(Interpreter { program, venv: None })
    }

    /// The command line: our package is found first, then hosts the plugin. The
    /// plugin's directory, which is the current one, is not on the path yet.
    pub(super) fn argv(&self, host: &PythonHost, args: &[String]) -> Result<Vec<String>, Refusal> {
        let extension = host.package.join("stockade/_host.abi3.so");
        if !extension.exists() {
            let reason = format!(
                "Cannot execute the Python host: {} is not there. Install Stockade's python \
                 folder, or set `python_host` in stockade.toml.",
                extension.display()
            );
            return Err(Refusal {
                cause: Cause::new(CauseCode::ExecFailed, reason),
                missing: vec![extension.display().to_string()],
                watch: vec![extension],
            });
        }
        let boot = format!(
            "import sys; sys.version_info >= (3, 9) or sys.exit('Stockade hosts plugins with \
             CPython 3.9 or later; this is %d.%d' % sys.version_info[:2]); sys.path[:] = \
             [{:?}] + [path for path in sys.path if path]; from stockade._boot import main; main()",
            host.package.display().to_string()
        );
        // No user site: a plugin must not see what the daemon's user installed.
        let mut argv = vec![self.program.display().to_string(), "-s".into(), "-c".into(), boot];
        argv.extend(args.iter().cloned());
        Ok(argv)
    }

    /// As an activated virtual environment would have it.
    pub(super) fn environment(&self, env: &mut BTreeMap<String, String>) {
        let Some(venv) = &self.venv else { return };
        env.entry("VIRTUAL_ENV".into()).or_insert_with(|| venv.display().to_string());
        if let Some(path) = env.get_mut("PATH") {
            *path = format!("{}:{path}", venv.join("bin").display());
        }
    }
}
