//! A file that somebody else wrote: read without waiting for it, and not beyond a size.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use rustix::fs::OFlags;

/// The text of a regular file of at most `most` bytes.
///
/// # Errors
/// It cannot be read, is something else (a FIFO would be waited for), is larger, or is not
/// UTF-8.
pub fn read_text(path: &Path, most: usize) -> io::Result<String> {
    let bytes = read_start(path, most + 1)?;
    if bytes.len() > most {
        return Err(io::Error::other(format!(
            "it has more than the {most} bytes that are allowed"
        )));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8"))
}

/// The first bytes of a regular file.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read_start(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let regular = |metadata: fs::Metadata| match metadata.is_file() {
        true => Ok(()),
        false => Err(io::Error::other("it is not a regular file")),
    };
    // Opening a device may already do something.
    regular(fs::metadata(path)?)?;
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file: File = fs::OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    regular(file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_within_their_size_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let place = |name: &str| folder.path().join(name);
        fs::write(place("text"), "text").unwrap();
        assert_eq!(read_text(&place("text"), 4).unwrap(), "text");
        assert_eq!(read_start(&place("text"), 2).unwrap(), b"te");
        let why = |path: &Path, most| read_text(path, most).unwrap_err().to_string();
        assert_eq!(why(&place("text"), 3), "it has more than the 3 bytes that are allowed");
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, place("fifo"), kind, mode, 0).unwrap();
        std::os::unix::fs::symlink("/dev/zero", place("zero")).unwrap();
        for other in ["fifo", "zero", "."] {
            assert_eq!(why(&place(other), 9), "it is not a regular file");
        }
        assert_eq!(read_text(&place("none"), 9).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
