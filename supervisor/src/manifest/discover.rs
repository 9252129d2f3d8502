//! Finds plugin directories and reads their manifests.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use super::{legacy, native, ownership, types::Manifest, types::Run, types::made_valid};
use crate::{
    capacity::limits,
    document::{Problem, Severity, read_text},
};

/// The files that make a directory a plugin, in order of preference.
pub const MANIFEST_FILES: [&str; 2] = ["plugin.toml", "manifest.json"];

/// A plugin directory and what its manifest came to.
#[derive(Clone, Debug)]
pub struct Found {
    /// The manifest's name, or the directory's when there is no valid one.
    pub name: String,
    /// What it is known by between scans: its directory, or where a
    /// distribution advertises it.
    pub key: PathBuf,
    /// The plugin's directory.
    pub directory: PathBuf,
    /// The manifest, or every problem it has.
    pub manifest: Result<Manifest, Vec<Problem>>,
    /// Changes when the manifest or the program does.
    pub fingerprint: u64,
}

impl Found {
    /// `Manifest error: plugin.toml:12:5: …; …`
    pub fn reason(problems: &[Problem]) -> String {
        let errors: Vec<String> = problems
            .iter()
            .filter(|problem| problem.severity == Severity::Error)
            .map(ToString::to_string)
            .collect();
        format!("Manifest error: {}", errors.join(" | "))
    }
}

/// A folder of plugins that cannot be read now. That is no reason to end them: a disk may
/// be away for a moment.
#[derive(Debug)]
pub struct Unread {
    /// The folder, as the keys of its plugins have it.
    pub folder: PathBuf,
    /// What is wrong.
    pub why: io::Error,
}

impl Unread {
    fn of(folder: &Path, why: io::Error) -> Self {
        let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
        Unread { folder, why }
    }
}

impl std::fmt::Display for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Unread { folder, why } = self;
        write!(
            f,
            "cannot read plugin folder {}: {why}. Its plugins stay as they are until it can be \
             read. Put it back, or take it out of plugin_dirs (a link: remove it)",
            folder.display()
        )
    }
}

/// Every plugin of the folders, in the order of the folders, then by name.
pub fn scan(folders: &[PathBuf]) -> (Vec<Found>, Vec<Unread>) {
    let mut found = Vec::new();
    let mut unread = Vec::new();
    for folder in folders {
        match directories(folder) {
            Ok((all, away)) => {
                found.extend(all.iter().filter_map(|directory| load(directory)));
                unread.extend(away);
            }
            Err(why) => unread.push(Unread::of(folder, why)),
        }
    }
    (found, unread)
}

/// What may be plugins, in the order of their names, and what would be if it could be read:
/// a link may lead to a disk that is away.
///
/// # Errors
/// The folder cannot be read.
pub fn directories(folder: &Path) -> io::Result<(Vec<PathBuf>, Vec<Unread>)> {
    let entries = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.path()));
    let mut all = entries.collect::<io::Result<Vec<PathBuf>>>()?;
    let mut away = Vec::new();
    all.retain(|path| match fs::metadata(path) {
        _ if hidden(path) => false,
        Ok(metadata) => metadata.is_dir(),
        Err(why) => {
            // Unless it has gone just now.
            let is_there = fs::symlink_metadata(path).is_ok();
            away.extend(is_there.then(|| Unread::of(path, why)));
            false
        }
    });
    all.sort();
    Ok((all, away))
}

fn hidden(path: &Path) -> bool {
    path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."))
}

/// Reads the text of a manifest (`plugin.toml` or `manifest.json`) that lies, or
/// would lie, in `directory`.
///
/// # Errors
/// Every problem of it.
pub fn parse(directory: &Path, file_name: &str, text: &str) -> Result<Manifest, Vec<Problem>> {
    let file = directory.join(file_name);
    match file_name {
        "plugin.toml" => native::read(directory, &file, text),
        _ => legacy::read(directory, &file, text),
    }
}

/// Reads one directory; None when it holds no manifest.
pub fn load(directory: &Path) -> Option<Found> {
    use std::hash::Hasher as _;
    let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    let file_name = MANIFEST_FILES
        .into_iter()
        .find(|name| fs::symlink_metadata(directory.join(name)).is_ok())?;
    let file = directory.join(file_name);
    let manifest = match read_text(&file, limits::MANIFEST) {
        Ok(text) => parse(&directory, file_name, &text),
        Err(error) => Err(vec![Problem::of_file(file_name, format!("cannot be read: {error}"))]),
    };
    let name = match &manifest {
        Ok(manifest) => manifest.name.clone(),
        Err(_) => directory_name(&directory),
    };
    let mut fingerprint = fingerprint(&directory, manifest.as_ref().ok());
    let manifest = manifest.and_then(|manifest| trusted(file_name, &file, manifest));
    if let Err(problems) = &manifest {
        // Whoever corrects a mode changes no file's content.
        let mut hasher = std::hash::DefaultHasher::new();
        problems.iter().for_each(|problem| hasher.write(problem.to_string().as_bytes()));
        fingerprint ^= hasher.finish();
    }
    Some(Found { name, key: directory.clone(), directory, manifest, fingerprint })
}

/// The manifest, unless what it runs could be somebody else's doing.
pub(super) fn trusted(
    file_name: &str,
    file: &Path,
    manifest: Manifest,
) -> Result<Manifest, Vec<Problem>> {
    let texts = untrusted(Some(file), &manifest);
    if texts.is_empty() {
        return Ok(manifest);
    }
    Err(texts.into_iter().map(|text| Problem::of_file(file_name, text)).collect())
}

/// Who else could change what is run now, and what to do about it: modes change without a
/// change of the manifest.
pub fn untrusted_now(manifest: &Manifest) -> Vec<String> {
    let mut files = MANIFEST_FILES.iter().map(|name| manifest.directory.join(name));
    untrusted(files.find(|file| file.exists()).as_deref(), manifest)
}

fn untrusted(file: Option<&Path>, manifest: &Manifest) -> Vec<String> {
    let directory = &manifest.directory;
    let mut texts = ownership::problems(directory);
    if let Ok(real) = fs::canonicalize(directory)
        && real != *directory
    {
        texts.extend(ownership::problems(&real));
    }
    texts.extend(file.and_then(ownership::file_problem));
    let programs = match &manifest.run {
        Run::Binary(program) | Run::Library(program) => vec![directory.join(program)],
        Run::Python { venv, .. } => {
            let venv = directory.join(venv.as_deref().unwrap_or(Path::new(".venv")));
            texts.extend(ownership::file_problem(&venv.join("bin")));
            texts.extend(ownership::file_problem(&venv.join("pyvenv.cfg")));
            python_sources(directory)
        }
        Run::Remote(_) => Vec::new(),
    };
    let mut folders: Vec<&Path> = programs.iter().filter_map(|program| program.parent()).collect();
    folders.dedup();
    texts.extend(folders.into_iter().filter_map(ownership::file_problem));
    for program in &programs {
        texts.extend(ownership::file_problem(program));
        if let Some(place) = ownership::leads_out(directory, program) {
            texts.push(format!(
                "{} leads out of the plugin's directory, to {}: put the program itself there",
                program.strip_prefix(directory).unwrap_or(program).display(),
                place.display()
            ));
        }
    }
    let mut seen = std::collections::HashSet::new();
    texts.retain(|text| seen.insert(text.clone()));
    texts
}

/// The directory's name made a valid plugin name, so that a broken plugin can
/// be listed and asked for.
fn directory_name(directory: &Path) -> String {
    let name = directory.file_name().map(|name| name.to_string_lossy().into_owned());
    made_valid(&name.unwrap_or_default())
}

/// The Python files of a plugin's directory, without its virtual environment
/// and what is hidden.
pub fn python_sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![directory.to_owned()];
    let mut seen = 0;
    while let Some(folder) = folders.pop() {
        let left = limits::PLUGIN_FILES - seen;
        let entries = fs::read_dir(folder).into_iter().flatten().take(left).flatten();
        let mut entries: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        seen += entries.len();
        entries.sort();
        collect_sources(entries, &mut folders, &mut found);
    }
    found
}

fn collect_sources(entries: Vec<PathBuf>, folders: &mut Vec<PathBuf>, found: &mut Vec<PathBuf>) {
    for path in entries {
        if path.extension().is_some_and(|extension| extension == "py") {
            found.push(path);
        } else if path.is_dir()
            && !path.is_symlink()
            && !hidden(&path)
            && !path.ends_with("__pycache__")
            && !path.join("pyvenv.cfg").exists()
        {
            folders.push(path);
        }
    }
}

/// Changes when the manifest, the program or a Python source file does (size,
/// time, inode).
pub fn fingerprint(directory: &Path, manifest: Option<&Manifest>) -> u64 {
    use std::{hash::Hasher as _, os::unix::fs::MetadataExt as _};
    let mut hasher = std::hash::DefaultHasher::new();
    let mut program = Vec::new();
    match manifest.map(|manifest| &manifest.run) {
        Some(Run::Binary(path) | Run::Library(path)) => program.push(directory.join(path)),
        Some(Run::Python { .. }) => program = python_sources(directory),
        Some(Run::Remote(_)) | None => {}
    }
    let files = MANIFEST_FILES.iter().map(|name| directory.join(name)).chain(program);
    for file in files {
        let Ok(metadata) = fs::metadata(&file) else { continue };
        let modified = metadata
            .modified()
            .ok()
            .and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok())
            .unwrap_or_default();
        hasher.write(file.as_os_str().as_encoded_bytes());
        hasher.write_u64(metadata.len());
        hasher.write_u64(metadata.ino());
        hasher.write_u128(modified.as_nanos());
    }
    hasher.finish()
}
