//! Tests that cannot be made here, said so that a summary counts them.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

/// Says that the test that calls it does not test anything here, and why: on
/// standard error, and as one line of the file `STOCKADE_SKIPS` where that is
/// given. `scripts/test` prints how many there were.
///
/// Only for what this machine or this user cannot do at all; what should work and
/// does not is a failed test.
///
/// # Panics
/// The file cannot be written: a skip that nobody counts would look like a success.
pub fn skipped(reason: &str) {
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("SKIPPED: {test}: {reason}");
    let Some(path) = std::env::var_os("STOCKADE_SKIPS").filter(|path| !path.is_empty()) else {
        return;
    };
    let mut file =
        fs::File::options().create(true).append(true).open(path).expect("STOCKADE_SKIPS");
    // In one write: other tests write there, too.
    file.write_all(format!("{test}: {reason}\n").as_bytes()).expect("STOCKADE_SKIPS");
}

/// A tiny file system at `place`, as a disk that becomes full. None is a skip: only
/// root can mount.
///
/// # Panics
/// We are root and cannot mount all the same.
pub fn small_disk(place: &Path, size: &str) -> Option<SmallDisk> {
    if !rustix::process::geteuid().is_root() {
        skipped("only root can mount the small disk that is to become full");
        return None;
    }
    let output = Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
        .arg(place)
        .output()
        .expect("mount");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "cannot mount although we are root: {said}");
    Some(SmallDisk { place: place.to_owned() })
}

/// A mounted file system, gone when this is dropped.
pub struct SmallDisk {
    place: PathBuf,
}

impl SmallDisk {
    /// Gives it another size.
    ///
    /// # Panics
    /// It cannot.
    pub fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        let status = Command::new("mount").args(["-o", &options]).arg(&self.place).status();
        assert!(status.is_ok_and(|status| status.success()), "cannot remount");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("-l").arg(&self.place).status();
        let unmounted = status.is_ok_and(|status| status.success());
        assert!(unmounted || std::thread::panicking(), "{} stays mounted", self.place.display());
    }
}
