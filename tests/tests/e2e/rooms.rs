//! The house: imports of the supervisor run one way, unsafe code stays where
//! it belongs, files stay small enough to be read.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn supervisor() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../supervisor/src")
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("folder").flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Upper rooms first; a room may use those below its own line.
const ORDER: [&[&str]; 9] = [
    &["gateway"],
    &["services"],
    &["calls"],
    &["registry"],
    &["plugin"],
    &["lifecycle", "preflight", "store"],
    &["manifest", "machine", "config"],
    &["document"],
    &["capacity"],
];

/// Every folder of our own Rust code.
const SOURCES: [&str; 7] = [
    "worker/src",
    "plugin-sdk/src",
    "plugin-sdk/python/src",
    "plugin-sdk/library/src",
    "plugin-sdk/remote/src",
    "supervisor/src",
    "proto/src",
];

fn level(room: &str) -> Option<usize> {
    ORDER.iter().position(|rooms| rooms.contains(&room))
}

#[test]
fn imports_run_one_way() {
    let mut wrong = Vec::new();
    for rooms in ORDER {
        for room in rooms {
            for file in sources(&supervisor().join(room)) {
                let text =
                    fs::read_to_string(&file).expect("source").replace(char::is_whitespace, "");
                for (other, below) in
                    ORDER.iter().enumerate().flat_map(|(n, r)| r.iter().map(move |o| (o, n)))
                {
                    let own = level(room).expect("level");
                    // Within {lifecycle, preflight, store} preflight and store
                    // may know the causes of the pure room; config reads the
                    // tables that it shares with manifest.
                    let allowed = below > own
                        || other == room
                        || (*other == "lifecycle" && ["preflight", "store"].contains(room))
                        || (*other == "manifest" && *room == "config");
                    let used = text.contains(&format!("crate::{other}::"))
                        || text.contains(&format!("crate::{{{other}::"))
                        || text.contains(&format!(",{other}::")) && text.contains("usecrate::{");
                    if used && !allowed {
                        wrong.push(format!("{} uses {other}", file.display()));
                    }
                }
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn the_lifecycle_is_pure() {
    for file in sources(&supervisor().join("lifecycle")) {
        let text = fs::read_to_string(&file).expect("source");
        let code: Vec<&str> =
            text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let text = code.join("\n");
        for word in ["tokio", "std::fs", "Instant", "SystemTime", "crate::", "std::io"] {
            assert!(!text.contains(word), "{} mentions {word}", file.display());
        }
    }
}

#[test]
fn unsafe_code_stays_in_its_few_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let allowed = [
        "worker/src/sys.rs",
        "plugin-sdk/library/src/library.rs",
        "plugin-sdk/src/adopt.rs",
        "plugin-sdk/src/fatal.rs",
        "proto/src/frames.rs",
        "proto/src/socket.rs",
        "supervisor/src/cli/allocator.rs",
        "supervisor/src/machine/trace.rs",
        "supervisor/src/plugin/readiness.rs",
        "supervisor/src/store/counters.rs",
    ];
    let mut found = Vec::new();
    for folder in SOURCES {
        for file in sources(&root.join(folder)) {
            let text = fs::read_to_string(&file).expect("source");
            if text.contains("unsafe {") || text.contains("unsafe fn") {
                let file = file.strip_prefix(&root).expect("inside").display().to_string();
                found.push(file);
            }
        }
    }
    found.sort();
    let mut allowed = allowed.to_vec();
    allowed.sort_unstable();
    assert_eq!(found, allowed);
}

#[test]
fn every_file_says_its_purpose_and_stays_readable() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for folder in SOURCES {
        for file in sources(&root.join(folder)) {
            let text = fs::read_to_string(&file).expect("source");
            assert!(text.starts_with("//!"), "{} does not say what it is for", file.display());
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(&text);
            let lines = code.lines().count();
            assert!(lines <= 520, "{} has {lines} lines", file.display());
        }
    }
}
