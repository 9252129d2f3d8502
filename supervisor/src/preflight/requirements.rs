//! `[requires]`: commands, model files, GPUs.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use sha2::{Digest as _, Sha256};

use super::Refusal;
use crate::{
    document::Bytes,
    lifecycle::{Cause, CauseCode},
    machine::{Gpu, Gpus},
    manifest::{GpuNeed, Manifest, Model},
};

/// Where a plugin's commands are looked for.
const PATH: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Commands and model files; every missing one is named.
pub(super) fn files(
    manifest: &Manifest,
    digests: &Sha256Cache,
) -> Result<BTreeMap<String, PathBuf>, Refusal> {
    let mut missing = Vec::new();
    let mut hints = Vec::new();
    let mut watch = Vec::new();
    for command in &manifest.requires.commands {
        if find_command(command).is_none() {
            missing.push(command.clone());
            hints.push(format!("install {command} (Debian: apt-get install {command})"));
            watch.extend(PATH.iter().map(|folder| Path::new(folder).join(command)));
        }
    }
    let mut models = BTreeMap::new();
    for model in &manifest.requires.models {
        let path = manifest.directory.join(&model.path);
        match check_model(model, &path, digests) {
            Ok(()) => {
                models.insert(model.name.clone(), path);
            }
            Err(hint) => {
                missing.push(format!("{} (path: {})", model.name, model.path.display()));
                hints.push(hint);
                watch.push(path);
            }
        }
    }
    if missing.is_empty() {
        return Ok(models);
    }
    let reason =
        format!("Missing dependencies: {}. To fix: {}.", missing.join(", "), hints.join("; "));
    Err(Refusal { cause: Cause::new(CauseCode::DependencyMissing, reason), missing, watch })
}

fn find_command(command: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let candidates = PATH.iter().map(|folder| Path::new(folder).join(command));
    candidates.into_iter().find(|path| {
        path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
    })
}

fn check_model(model: &Model, path: &Path, digests: &Sha256Cache) -> Result<(), String> {
    let shown = path.display();
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => format!("put the file at {shown}"),
        _ => format!("make {shown} readable ({error})"),
    })?;
    let metadata = file.metadata().map_err(|error| format!("make {shown} readable ({error})"))?;
    if !metadata.is_file() {
        return Err(format!("make {shown} a regular file"));
    }
    if metadata.len() == 0 {
        return Err(format!("{shown} is empty: copy it again"));
    }
    let Some(expected) = &model.sha256 else { return Ok(()) };
    let digest = digests
        .of(path, file, metadata.len(), metadata.modified().ok())
        .map_err(|error| format!("make {shown} readable ({error})"))?;
    if digest == *expected {
        return Ok(());
    }
    Err(format!("{shown} has sha256 {digest}, expected {expected}: copy it again"))
}

/// Digests of files that have not changed need no second reading.
#[derive(Debug, Default)]
pub struct Sha256Cache {
    known: Mutex<HashMap<PathBuf, Known>>,
}

/// Size, time of the last change, digest.
type Known = (u64, Option<SystemTime>, String);

impl Sha256Cache {
    fn of(
        &self,
        path: &Path,
        mut file: File,
        size: u64,
        modified: Option<SystemTime>,
    ) -> io::Result<String> {
        let known = || self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((known_size, known_time, digest)) = known().get(path)
            && (*known_size, *known_time) == (size, modified)
        {
            return Ok(digest.clone());
        }
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                n => hasher.update(&buffer[..n]),
            }
        }
        let digest: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        known().insert(path.to_owned(), (size, modified, digest.clone()));
        Ok(digest)
    }
}

/// The UUIDs of GPUs that fit, most free memory first.
pub(super) fn gpus(manifest: &Manifest, gpus: &Gpus) -> Result<Vec<String>, Refusal> {
    let Some(need) = manifest.requires.gpu else { return Ok(Vec::new()) };
    let refuse = |why: String| {
        let reason = format!(
            "Plugin requires GPU/CUDA but {why}. Install the NVIDIA driver or run it on a \
             machine with such a GPU."
        );
        Refusal {
            cause: Cause::new(CauseCode::GpuMissing, reason),
            missing: vec!["cuda".to_owned()],
            watch: Vec::new(),
        }
    };
    let inventory = gpus
        .inventory()
        .map_err(|why| refuse(format!("CUDA not available (looked for {}; {why})", wish(&need))))?;
    let mut fitting: Vec<&Gpu> = inventory.iter().filter(|gpu| fits(gpu, &need)).collect();
    if fitting.len() < need.count as usize {
        let found: Vec<String> = inventory.iter().map(describe).collect();
        let why = format!("no match (looked for {}; found {})", wish(&need), found.join(", "));
        return Err(refuse(why));
    }
    fitting.sort_by_key(|gpu| std::cmp::Reverse(gpu.memory_free));
    Ok(fitting.iter().take(need.count as usize).map(|gpu| gpu.uuid.clone()).collect())
}

fn fits(gpu: &Gpu, need: &GpuNeed) -> bool {
    gpu.memory_total >= need.memory && need.capability.is_none_or(|least| gpu.capability >= least)
}

fn wish(need: &GpuNeed) -> String {
    let mut wish = format!("{} GPU{}", need.count, if need.count == 1 { "" } else { "s" });
    if need.memory > 0 {
        wish += &format!(" with {}", Bytes(need.memory));
    }
    if let Some((major, minor)) = need.capability {
        wish += &format!(", compute capability {major}.{minor}");
    }
    wish
}

fn describe(gpu: &Gpu) -> String {
    let (major, minor) = gpu.capability;
    format!("{} with {}, {major}.{minor}", gpu.name, Bytes(gpu.memory_total))
}
