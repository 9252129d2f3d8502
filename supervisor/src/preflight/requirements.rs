//! `[requires]`: commands, model files, GPUs.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::Mutex,
    time::SystemTime,
};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::{Absent, hints};
use crate::{
    document::Bytes,
    machine::{Gpu, Gpus},
    manifest::{GpuNeed, Manifest, Model},
};

/// Where a plugin's commands are looked for.
const PATH: [&str; 5] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// Model files by name, and the programs of commands; every missing one is named
/// in `absent`.
pub(super) fn files(
    manifest: &Manifest,
    digests: &Sha256Cache,
    absent: &mut Absent,
) -> (BTreeMap<String, PathBuf>, Vec<PathBuf>) {
    let mut commands = Vec::new();
    for command in &manifest.requires.commands {
        if let Some(program) = find_command(command) {
            commands.push(program);
        } else {
            absent.names.push(command.clone());
            absent.hints.push(hints::command(command));
            absent.watch.extend(PATH.iter().map(|folder| Path::new(folder).join(command)));
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
                absent.names.push(format!("{} (path: {})", model.name, model.path.display()));
                absent.hints.push(hint);
                absent.watch.push(path);
            }
        }
    }
    (models, commands)
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
    // Never waits for a writer, should it be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = rustix::fs::open(path, flags, Mode::empty()).map(File::from);
    let file = opened.map_err(io::Error::from).map_err(|error| match error.kind() {
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

/// The UUIDs of GPUs that fit, most free memory first; none with a reason in
/// `absent`.
pub(super) fn gpus(manifest: &Manifest, gpus: &Gpus, absent: &mut Absent) -> Vec<String> {
    let Some(need) = manifest.requires.gpu else { return Vec::new() };
    let mut refuse = |why: String| {
        absent.gpu = Some(format!(
            "Plugin requires GPU/CUDA but {why}. Install the NVIDIA driver or run it on a \
             machine with such a GPU."
        ));
        Vec::new()
    };
    let inventory = match gpus.inventory() {
        Ok(inventory) => inventory,
        Err(why) => {
            return refuse(format!("CUDA not available (looked for {}; {why})", wish(&need)));
        }
    };
    let mut fitting: Vec<&Gpu> = inventory.iter().filter(|gpu| fits(gpu, &need)).collect();
    if fitting.len() < need.count as usize {
        let found: Vec<String> = inventory.iter().map(describe).collect();
        let found = found.join(", ");
        return refuse(format!("no match (looked for {}; found {found})", wish(&need)));
    }
    fitting.sort_by_key(|gpu| std::cmp::Reverse(gpu.memory_free));
    fitting.iter().take(need.count as usize).map(|gpu| gpu.uuid.clone()).collect()
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
