//! `stockade new` makes a plugin that builds, tests and runs.

use serde_json::json;
use stockade_tests::{Options, target_dir};
use tokio::process::Command;

#[tokio::test]
async fn a_new_plugin_builds_tests_and_runs() {
    let daemon = Options::new().start().await;
    let (code, out, err) = daemon.cli(&["new", "my-plugin"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("stockade call my-plugin greet --arg name=Ada"), "{out}");
    let directory = daemon.root.join("my-plugin");
    let target = target_dir().join("../new-plugin");
    for task in ["test", "build"] {
        let output = Command::new(env!("CARGO"))
            .args([task, "--quiet"])
            .current_dir(&directory)
            .env("CARGO_TARGET_DIR", &target)
            // Half of what the compiler would do is for a debugger.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .output()
            .await
            .expect("cargo");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "cargo {task}: {text}");
    }
    std::fs::create_dir(directory.join("bin")).expect("bin");
    std::fs::copy(target.join("debug/my-plugin"), directory.join("bin/my-plugin")).expect("copy");
    let (code, out, _) = daemon.cli(&["check", "my-plugin"]).await;
    assert_eq!((code, out.as_str()), (0, "my-plugin: my-plugin 0.1.0 is fine\n"));
    std::fs::rename(&directory, daemon.directory("my-plugin")).expect("install");
    daemon.serving("my-plugin").await;
    let outcome = daemon.call("my-plugin", "greet", json!({"name": "Ada"})).await;
    assert_eq!(outcome.unwrap(), "Hello, Ada!");
    let (code, _, err) = daemon.cli(&["new", "Bad Name"]).await;
    assert_eq!(code, 2);
    assert!(err.contains("is not a valid plugin name"), "{err}");
    daemon.stop().await;
}
