//! Manifests of both forms: any text gives a manifest or problems with places.
#![no_main]

use libfuzzer_sys::fuzz_target;
use stockade::manifest::{parse, valid_name};

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for file in ["plugin.toml", "manifest.json"] {
        match parse("/plugins/fuzz".as_ref(), file, text) {
            Ok(manifest) => assert!(valid_name(&manifest.name), "{:?}", manifest.name),
            Err(problems) => {
                assert!(!problems.is_empty());
                problems.iter().for_each(|problem| drop(problem.to_string()));
            }
        }
    }
});
