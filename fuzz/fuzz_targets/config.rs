//! stockade.toml: any text gives a configuration or problems.
#![no_main]

use std::{cell::LazyCell, fs};

use libfuzzer_sys::fuzz_target;
use stockade::{config::Source, manifest::parse};

thread_local! {
    static FOLDER: LazyCell<tempfile::TempDir> =
        LazyCell::new(|| tempfile::tempdir_in("/dev/shm").expect("folder"));
}

fuzz_target!(|data: &[u8]| {
    let file = FOLDER.with(|folder| folder.path().join("stockade.toml"));
    fs::write(&file, data).expect("file");
    let source = Source { file: Some(file), flags: Vec::new() };
    match source.load() {
        Ok(config) => {
            let text = "name = \"fuzz\"\n[run]\nbinary = \"b\"\n";
            let mut manifest = parse("/fuzz".as_ref(), "plugin.toml", text).expect("manifest");
            config.sandbox.apply(&mut manifest.sandbox);
            config.plugins.values().for_each(|overlay| overlay.apply(&mut manifest));
        }
        Err(problems) => assert!(!problems.is_empty()),
    }
});
