//! Plugins that installed Python distributions advertise: read from their
//! metadata; no interpreter runs.

use std::{
    fs,
    hash::Hasher as _,
    io,
    path::{Path, PathBuf},
};

use super::{
    discover::{Found, fingerprint, trusted},
    legacy,
    types::{Manifest, Run, made_valid},
};
use crate::{
    capacity::limits,
    document::{Problem, read_start, read_text},
};

/// The groups in which plugins are advertised.
const GROUPS: [&str; 2] = ["stockade.plugins", "forgesyte.plugins"];

/// The folders in which an interpreter finds distributions, as far as its place
/// tells: those of its virtual environment, else of its prefix.
pub fn libraries(python: &Path) -> Vec<PathBuf> {
    let prefix = |program: &Path| Some(program.parent()?.parent()?.to_owned());
    let venv = prefix(python).filter(|prefix| prefix.join("pyvenv.cfg").exists());
    let real = fs::canonicalize(python).unwrap_or_else(|_| python.to_owned());
    let version = real.file_name().map(|name| name.to_string_lossy().into_owned());
    let mut folders = Vec::new();
    if let Some(venv) = venv {
        folders.extend(in_versions(&venv.join("lib"), None));
    } else if let Some(prefix) = prefix(&real) {
        let version = version.filter(|name| name.starts_with("python3."));
        for library in [prefix.join("local/lib"), prefix.join("lib")] {
            folders.extend(in_versions(&library, version.as_deref()));
            folders.push(library.join("python3/dist-packages"));
        }
    }
    folders.retain(|folder| folder.is_dir());
    folders
}

/// `lib/python3.11/site-packages` and the like.
fn in_versions(library: &Path, version: Option<&str>) -> Vec<PathBuf> {
    let entries = fs::read_dir(library).into_iter().flatten().flatten();
    let mut folders: Vec<PathBuf> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("python3.") && version.is_none_or(|wanted| wanted == name))
        .flat_map(|name| {
            ["site-packages", "dist-packages"].map(|kind| library.join(&name).join(kind))
        })
        .collect();
    folders.sort();
    folders
}

/// Every advertised plugin of the interpreter `python`, by distribution.
pub fn advertised(python: &Path) -> Vec<Found> {
    let mut found = Vec::new();
    for library in libraries(python) {
        let entries = fs::read_dir(&library).into_iter().flatten().flatten();
        let mut distributions: Vec<PathBuf> = entries
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "dist-info"))
            .collect();
        distributions.sort();
        for distribution in distributions {
            let advertised = distribution.join("entry_points.txt");
            let Ok(text) = read_text(&advertised, limits::DISTRIBUTION) else { continue };
            for (name, target) in plugins_of(&text) {
                found.push(read(python, &library, &distribution, &name, &target));
            }
        }
    }
    found
}

/// `(name, module:Class)` of our groups in an `entry_points.txt`.
fn plugins_of(text: &str) -> Vec<(String, String)> {
    let mut group = "";
    let mut plugins = Vec::new();
    for line in text.trim_start_matches('\u{feff}').lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            group = name.trim();
        } else if GROUPS.contains(&group)
            && !line.starts_with(['#', ';'])
            && let Some((name, target)) = line.split_once('=')
        {
            let target = target.split('[').next().unwrap_or(target);
            let (module, class) = target.split_once(':').unwrap_or((target, "Plugin"));
            let (name, module) = (name.trim(), module.trim());
            if !name.is_empty() && !module.is_empty() {
                plugins.push((name.to_owned(), format!("{module}:{}", class.trim())));
            }
        }
    }
    plugins
}

fn read(python: &Path, library: &Path, distribution: &Path, name: &str, target: &str) -> Found {
    let module = target.split(':').next().unwrap_or(target);
    let package = module.split('.').next().unwrap_or(module);
    // An editable install lies elsewhere.
    let directory = Some(library.join(package)).filter(|path| path.is_dir());
    let directory = directory.unwrap_or_else(|| distribution.to_owned());
    let file = directory.join("manifest.json");
    let text = match read_text(&file, limits::MANIFEST) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(serde_json::json!({ "name": made_valid(name) }).to_string())
        }
        Err(error) => {
            Err(vec![Problem::of_file("manifest.json", format!("cannot be read: {error}"))])
        }
        Ok(text) => Ok(text),
    };
    let metadata = read_start(&distribution.join("METADATA"), limits::DISTRIBUTION);
    let metadata = String::from_utf8_lossy(&metadata.unwrap_or_default()).into_owned();
    let manifest = text.and_then(|text| legacy::read(&directory, &file, &text));
    let manifest = manifest.map(|manifest| Manifest {
        version: manifest.version.clone().or_else(|| header(&metadata, "Version")),
        description: manifest.description.clone().or_else(|| header(&metadata, "Summary")),
        run: Run::Python {
            target: target.to_owned(),
            venv: None,
            interpreter: Some(python.to_owned()),
        },
        ..manifest
    });
    let manifest = manifest.and_then(|manifest| trusted("entry_points.txt", &file, manifest));
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write_u8(u8::from(manifest.is_ok()));
    hasher.write_u64(fingerprint(&directory, manifest.as_ref().ok()));
    hasher.write(metadata.as_bytes());
    hasher.write(target.as_bytes());
    Found {
        name: manifest.as_ref().map_or_else(|_| name.to_owned(), |manifest| manifest.name.clone()),
        key: distribution.join(name),
        directory,
        manifest,
        fingerprint: hasher.finish(),
    }
}

/// A field of a distribution's metadata.
fn header(metadata: &str, name: &str) -> Option<String> {
    let lines = metadata.lines().take_while(|line| !line.is_empty());
    lines
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.trim().to_owned())
}
