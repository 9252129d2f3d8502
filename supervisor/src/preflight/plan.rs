//! Everything the launcher must know, and nothing that it must decide.

use std::{
    collections::BTreeMap,
    io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Absent, Confinement, Guarded, Refusal, confinement,
    places::{self, Needs},
    python::{Interpreter, PythonHost},
    requirements,
};
use crate::{
    document::read_start,
    lifecycle::{Cause, CauseCode},
    machine::{Gpus, LayerProbe, Tracer},
    manifest::{Limits, Manifest, Profile, Remote, Run, untrusted_now},
};

/// What a plugin's process is to be.
#[derive(Clone, Debug)]
pub struct LaunchPlan {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// The program itself first.
    pub argv: Vec<String>,
    /// The whole environment, sorted.
    pub env: BTreeMap<String, String>,
    /// Working directory: the plugin's own.
    pub directory: PathBuf,
    /// Writable, survives restarts.
    pub data_dir: PathBuf,
    /// Checked model files by name.
    pub models: BTreeMap<String, PathBuf>,
    /// UUIDs of the GPUs assigned.
    pub gpus: Vec<String>,
    /// What the launcher and the guard enforce.
    pub limits: Limits,
    /// What holds it back and what it may see.
    pub confinement: Confinement,
    /// `module:Class`, for a host of a language.
    pub entry: String,
    /// Looked for in the plugin's own interpreter before its code runs.
    pub packages: Vec<String>,
    /// Unconfined, with every file and socket told to the tracer.
    pub tracer: Option<Tracer>,
    /// What is missing besides: the process only looks for the packages, so
    /// that all is told at once.
    pub absent: Option<Absent>,
}

impl LaunchPlan {
    /// Its /tmp and /dev/shm are nobody else's.
    pub fn has_own_scratch(&self) -> bool {
        let granted = self.confinement.places.iter().any(|place| place.path == Path::new("/tmp"));
        self.tracer.is_none() && self.confinement.has("namespaces") && !granted
    }
}

/// What the plan depends on besides the manifest.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The daemon's state directory.
    pub state_dir: PathBuf,
    /// The machine's GPUs.
    pub gpus: Arc<Gpus>,
    /// Digests of model files already read.
    pub digests: Arc<requirements::Sha256Cache>,
    /// What runs Python plugins.
    pub python: PythonHost,
    /// What runs shared libraries.
    pub library_host: PathBuf,
    /// What speaks to remote plugins.
    pub remote_host: PathBuf,
    /// What no grant may lead to.
    pub guarded: Guarded,
    /// What this machine can hold plugins back with.
    pub layers: Arc<LayerProbe>,
    /// Plugins run unconfined, and what they would need is noted here.
    pub tracer: Option<Tracer>,
}

/// Nobody else could have changed what is run since the manifest was read.
fn trusted(manifest: &Manifest) -> Result<(), Refusal> {
    let texts = untrusted_now(manifest);
    if texts.is_empty() {
        return Ok(());
    }
    let reason = format!("Manifest error: {}.", texts.join("; "));
    let cause = Cause::new(CauseCode::ManifestError, reason);
    let mut watch = vec![manifest.directory.clone()];
    if let Run::Binary(program) | Run::Library(program) = &manifest.run {
        let program = manifest.directory.join(program);
        watch.extend(program.parent().map(Path::to_owned));
        watch.push(program);
    }
    Err(Refusal { cause, missing: Vec::new(), watch })
}

/// Checks everything and plans the launch. Reads files; may block.
///
/// # Errors
/// Everything that is not as it must be.
pub fn plan(manifest: &Manifest, around: &Surroundings) -> Result<LaunchPlan, Refusal> {
    trusted(manifest)?;
    let mut absent = Absent::default();
    let gpus = requirements::gpus(manifest, &around.gpus, &mut absent);
    let (models, commands) = requirements::files(manifest, &around.digests, &mut absent);
    let packages = manifest.requires.packages.clone();
    if !absent.is_empty() && packages.is_empty() {
        return Err(absent.into_refusal());
    }
    let directory = &manifest.directory;
    let data_dir = data_dir(&around.state_dir, &manifest.name)?;
    let mut env = environment(manifest, &data_dir, &gpus);
    let mut entry = String::new();
    let mut needs = Needs { models: Some(&models), programs: commands, ..Needs::default() };
    if manifest.sandbox.gpu {
        needs.devices = around.gpus.devices(&gpus);
    }
    let (program, argv) = match &manifest.run {
        Run::Binary(path) => {
            let fix = "Build the plugin, or correct run.binary.";
            let program = executable(directory.join(path), path, fix)?;
            if manifest.sandbox.profile == Profile::Strict && is_script(&program) {
                return Err(script(path));
            }
            let mut argv = vec![program.display().to_string()];
            argv.extend(manifest.args.iter().cloned());
            (program, argv)
        }
        Run::Python { target, venv, interpreter } => {
            entry.clone_from(target);
            let (venv, interpreter) = (venv.as_deref(), interpreter.as_deref());
            let python = Interpreter::of(directory, venv, interpreter, &around.python)?;
            python.environment(&mut env);
            let argv = python.argv(&around.python, &manifest.args)?;
            needs.programs.extend(places::interpreter_folders(&python.program));
            needs.programs.push(around.python.package.clone());
            (python.program, argv)
        }
        Run::Library(path) => {
            let library = directory.join(path);
            readable(&library, path)?;
            entry = library.display().to_string();
            let host = &around.library_host;
            let fix = "Install stockade-library beside stockade, or set `library_host` in \
                       stockade.toml.";
            let program = executable(host.clone(), host, fix)?;
            needs.programs.push(program.clone());
            let argv = vec![program.display().to_string()];
            (program, argv.into_iter().chain(manifest.args.iter().cloned()).collect())
        }
        Run::Remote(remote) => {
            let host = &around.remote_host;
            let fix = "Install stockade-remote beside stockade, or set `remote_host` in \
                       stockade.toml.";
            let program = executable(host.clone(), host, fix)?;
            needs.programs.push(program.clone());
            needs.programs.extend(remote.ca.clone());
            env.insert("STOCKADE_REMOTE".to_owned(), remote_text(manifest, remote));
            let argv = vec![program.display().to_string()];
            (program, argv)
        }
    };
    let confinement = confinement::of(manifest, around, &data_dir, &needs)?;
    Ok(LaunchPlan {
        program,
        argv,
        env,
        directory: directory.clone(),
        data_dir,
        models,
        gpus,
        limits: manifest.limits,
        confinement,
        tracer: around.tracer.clone(),
        entry,
        packages,
        absent: (!absent.is_empty()).then_some(absent),
    })
}

/// What `stockade-remote` is told.
fn remote_text(manifest: &Manifest, remote: &Remote) -> String {
    serde_json::json!({
        "plugin": manifest.name,
        "endpoint": remote.endpoint,
        "protocol": remote.protocol,
        "timeout_ms": remote.timeout.as_millis() as u64,
        "offers": remote.offers,
        "allow": remote.allow,
        "secret": remote.secret,
        "ca": remote.ca,
    })
    .to_string()
}

fn is_script(program: &Path) -> bool {
    read_start(program, 2).is_ok_and(|start| start == b"#!")
}

/// The kernel executes a script by its interpreter: a second program.
fn script(shown: &Path) -> Refusal {
    let reason = format!(
        "Cannot execute {} under sandbox.profile = \"strict\": it is a script (#!), and strict \
         executes one program only. Use \"standard\", or run.python for Python.",
        shown.display()
    );
    Refusal {
        cause: Cause::new(CauseCode::ExecFailed, reason),
        missing: Vec::new(),
        watch: Vec::new(),
    }
}

/// The library exists and is a file; whether it can be loaded its host finds out.
fn readable(path: &Path, shown: &Path) -> Result<(), Refusal> {
    let what = match std::fs::metadata(path) {
        Ok(metadata) if metadata.is_file() => return Ok(()),
        Ok(_) => "not a regular file".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "no such file (ENOENT)".to_owned(),
        Err(error) => error.to_string(),
    };
    let reason = format!(
        "Cannot load {}: {what}. Build the library, or correct run.library.",
        shown.display()
    );
    Err(Refusal {
        cause: Cause::new(CauseCode::ExecFailed, reason),
        missing: vec![shown.display().to_string()],
        watch: vec![path.to_owned()],
    })
}

/// The program exists, is a file and may be executed. `fix` says what to do
/// when it is not there.
pub(super) fn executable(path: PathBuf, shown: &Path, fix: &str) -> Result<PathBuf, Refusal> {
    let refuse = |what: String, fix: &str| {
        let reason = format!("Cannot execute {}: {what}. {fix}", shown.display());
        Refusal {
            cause: Cause::new(CauseCode::ExecFailed, reason),
            missing: vec![shown.display().to_string()],
            watch: vec![path.clone()],
        }
    };
    let metadata = match std::fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refuse("no such file (ENOENT)".into(), fix));
        }
        Err(error) => {
            return Err(refuse(error.to_string(), "Give the daemon's user access to it."));
        }
    };
    if !metadata.is_file() {
        return Err(refuse("not a regular file".into(), fix));
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        let fix = format!("Run: chmod +x {}", path.display());
        return Err(refuse("permission denied (EACCES)".into(), &fix));
    }
    Ok(path)
}

/// `STATE/data/NAME`, mode 0700.
fn data_dir(state_dir: &Path, name: &str) -> Result<PathBuf, Refusal> {
    let path = state_dir.join("data").join(name);
    let made = std::fs::create_dir_all(&path)
        .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)));
    made.map(|()| path.clone()).map_err(|error| Refusal {
        cause: Cause::new(
            CauseCode::SpawnResources,
            format!(
                "Could not start: data directory {}: {error}. Free space or correct its mode.",
                path.display()
            ),
        ),
        missing: Vec::new(),
        watch: Vec::new(),
    })
}

/// PATH, HOME, TMPDIR, LANG, TZ, the processors, the GPUs, the manifest's own;
/// nothing else.
fn environment(manifest: &Manifest, data_dir: &Path, gpus: &[String]) -> BTreeMap<String, String> {
    let mut env = BTreeMap::new();
    let mut set = |key: &str, value: String| env.insert(key.to_owned(), value);
    set("PATH", "/usr/local/bin:/usr/bin:/bin".into());
    set("HOME", data_dir.display().to_string());
    set("TMPDIR", "/tmp".into());
    set("LANG", "C.UTF-8".into());
    // Its user is in no passwd file; programs ask these first.
    set("USER", "plugin".into());
    set("LOGNAME", "plugin".into());
    if let Ok(zone) = std::env::var("TZ") {
        set("TZ", zone);
    }
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let granted = manifest.limits.cpu.map_or(processors, |cpu| cpu.ceil() as usize).max(1);
    set("OMP_NUM_THREADS", granted.to_string());
    set("OPENBLAS_NUM_THREADS", granted.to_string());
    if manifest.requires.gpu.is_some() {
        set("CUDA_VISIBLE_DEVICES", gpus.join(","));
    }
    env.extend(manifest.env.iter().map(|(key, value)| (key.clone(), value.clone())));
    env
}
