//! What is left of a daemon's processes.

use std::{fs, path::Path, time::Duration};

/// Processes whose working directory is below `folder`: the daemon, its
/// launchers and everything that plugins started. Zombies do not count.
pub fn left_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir("/proc").expect("/proc");
    let mut left = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(cwd) = fs::read_link(path.join("cwd")) else { continue };
        if !cwd.starts_with(folder) {
            continue;
        }
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        if status.contains("State:\tZ") {
            continue;
        }
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        left.push(format!("{} {}", entry.file_name().to_string_lossy(), name.trim()));
    }
    left
}

/// Waits until nothing is left below `folder`.
///
/// # Panics
/// Something is still there after ten seconds.
pub fn wait_gone(folder: &Path) {
    for _ in 0..1000 {
        if left_in(folder).is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("left behind: {:?}", left_in(folder));
}

/// Open descriptors of a process.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
