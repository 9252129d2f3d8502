//! The files of a configuration, and their texts.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::FileTypeExt as _,
    path::{Path, PathBuf},
};

use crate::capacity::limits;

/// A file's text, if it is no larger than a configuration is.
pub(super) fn read_text(path: &Path) -> io::Result<String> {
    let most = limits::CONFIGURATION as u64;
    let kind = fs::metadata(path)?.file_type();
    if kind.is_fifo() || kind.is_socket() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut text = String::new();
    fs::File::open(path)?.take(most + 1).read_to_string(&mut text)?;
    match text.len() as u64 > most {
        true => Err(io::Error::other(format!("it is larger than {most} bytes"))),
        false => Ok(text),
    }
}

/// The file, then `stockade.toml.d/*.toml` beside it in order.
pub(super) fn with_drop_ins(path: &Path) -> Vec<PathBuf> {
    let mut files = vec![path.to_owned()];
    let mut folder = path.as_os_str().to_owned();
    folder.push(".d");
    let mut drop_ins: Vec<PathBuf> = fs::read_dir(PathBuf::from(folder))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    drop_ins.sort();
    files.extend(drop_ins);
    files
}
