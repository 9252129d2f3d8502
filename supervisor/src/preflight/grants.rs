//! Grants as they really are: links resolved, the operator's word and the daemon's
//! own places checked against where a path leads, not against how it is spelt.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::places::Needs;
use crate::{
    config::Config,
    manifest::{Allowed, Manifest, Sandbox},
};

/// What no grant may lead to.
#[derive(Clone, Debug, Default)]
pub struct Guarded {
    /// Neither itself nor anything in it: the state of the daemon and all data.
    pub state_dir: PathBuf,
    /// Not even read: whoever sees it can connect.
    pub socket: PathBuf,
    /// Not written: what decides what is run.
    pub fixed: Vec<PathBuf>,
}

impl From<&Config> for Guarded {
    fn from(config: &Config) -> Self {
        let programs = [
            &config.worker,
            &config.library_host,
            &config.remote_host,
            &config.python_host,
            &config.python,
        ];
        let mut fixed: Vec<PathBuf> = programs.into_iter().cloned().collect();
        fixed.extend(config.plugin_dirs.iter().cloned());
        fixed.extend(config.files.iter().cloned());
        Guarded { state_dir: config.state_dir.clone(), socket: config.socket.clone(), fixed }
    }
}

/// Where a path leads; itself when it leads nowhere.
fn real(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

fn overlap(one: &Path, other: &Path) -> bool {
    one.starts_with(other) || other.starts_with(one)
}

/// Drops grants that lead where the operator does not allow, and notes them.
///
/// # Errors
/// The sentence about a grant that leads to the daemon's own places.
pub(super) fn check(
    manifest: &Manifest,
    granted: &mut Sandbox,
    needs: &Needs<'_>,
    guarded: &Guarded,
) -> Result<(), String> {
    let Sandbox { read, write, denied, allowed, .. } = granted;
    for (kind, paths, lists) in
        [("read", &mut *read, &allowed.read), ("write", &mut *write, &allowed.write)]
    {
        paths.retain(|path| {
            let fine = permitted(path, lists);
            if !fine {
                let leads = real(path);
                denied.push(format!(
                    "fs.{kind} {} (it leads to {})",
                    path.display(),
                    leads.display()
                ));
            }
            fine
        });
    }
    // A model outside of the directory is a file that it asks to read.
    let directory = real(&manifest.directory);
    let models = needs.models.into_iter().flat_map(|models| models.values());
    let outside: Vec<&PathBuf> =
        models.filter(|model| !real(model).starts_with(&directory)).collect();
    if let Some(model) = outside.iter().find(|model| !permitted(model, &allowed.read)) {
        return Err(format!(
            "Its model {} lies outside of what the operator allows it to read. Move it into the \
             plugin's directory, or add its folder to fs.read of [plugin.{}.sandbox].",
            model.display(),
            manifest.name
        ));
    }
    for path in read.iter().chain(write.iter()).chain(outside) {
        if let Some((what, place)) = hidden(path, guarded) {
            return Err(told(path, what, place));
        }
    }
    for path in write.iter() {
        if let Some(place) = fixed(path, &directory, guarded) {
            return Err(told(path, "which decides what is run", place));
        }
    }
    Ok(())
}

fn told(path: &Path, what: &str, place: &Path) -> String {
    format!(
        "Its grant {} leads to {}, {what}. Grant a narrower folder.",
        path.display(),
        place.display()
    )
}

/// Every list of the operator has it.
fn permitted(path: &Path, lists: &Allowed) -> bool {
    let path = real(path);
    lists.iter().all(|list| list.iter().any(|place| path.starts_with(real(place))))
}

fn hidden<'a>(path: &Path, guarded: &'a Guarded) -> Option<(&'static str, &'a Path)> {
    let path = real(path);
    if overlap(&path, &real(&guarded.state_dir)) {
        return Some(("the daemon's own state", &guarded.state_dir));
    }
    let socket = real(&guarded.socket);
    socket.starts_with(&path).then_some(("the daemon's socket", &guarded.socket))
}

/// Folders inside the plugin's own directory are its own affair.
fn fixed<'a>(path: &Path, directory: &Path, guarded: &'a Guarded) -> Option<&'a Path> {
    let path = real(path);
    if path.starts_with(directory) && path != directory {
        return None;
    }
    guarded.fixed.iter().map(PathBuf::as_path).find(|place| overlap(&path, &real(place)))
}
