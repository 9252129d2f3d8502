//! The tests that the documents name are there: a claim without its test is only a claim.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The suites, and the room that has unit tests worth naming.
const SUITES: [&str; 7] = ["abuse", "e2e", "faults", "hosting", "hostile", "python", "lifecycle"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// README.md and its like, and docs/*.md.
fn documents() -> Vec<PathBuf> {
    let files = |folder: PathBuf| {
        let entries = fs::read_dir(folder).expect("folder").map(|entry| entry.expect("entry"));
        entries.map(|entry| entry.path()).collect::<Vec<_>>()
    };
    let mut all = files(root());
    all.extend(files(root().join("docs")));
    all.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    all
}

/// `suite::module::test`; `…` stands for the same place as before, or ends a name; `*` is
/// every test of a module.
fn is_there(place: &str, test: &str) -> bool {
    let (suite, module) = place.split_once("::").expect("suite and module");
    let folder = match suite {
        "lifecycle" => "supervisor/src",
        _ => "tests/tests",
    };
    let file = root().join(folder).join(suite).join(format!("{module}.rs"));
    let Ok(text) = fs::read_to_string(file) else { return false };
    match (test, test.strip_suffix('…')) {
        ("*", _) => text.contains("fn "),
        (_, Some(start)) => text.contains(&format!("fn {start}")),
        (whole, None) => text.contains(&format!("fn {whole}(")),
    }
}

#[test]
fn tests_that_the_documents_name_are_there() {
    let mut named = 0;
    let mut missing = Vec::new();
    for document in documents() {
        let text = fs::read_to_string(&document).expect("document");
        let mut place = String::new();
        // What is between two backticks; code blocks have none inside.
        for code in text.split('`').skip(1).step_by(2) {
            let parts: Vec<&str> = code.split("::").collect();
            let test = match parts[..] {
                [suite, module, test] if SUITES.contains(&suite) => {
                    place = format!("{suite}::{module}");
                    test
                }
                ["…", test] => test,
                _ => continue,
            };
            named += 1;
            if place.is_empty() || !is_there(&place, test) {
                missing.push(format!("{}: {code} ({place})", document.display()));
            }
        }
    }
    assert!(named > 50, "only {named} are found: is it still how they are written?");
    assert!(missing.is_empty(), "not there:\n{}", missing.join("\n"));
}
