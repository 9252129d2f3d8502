//! Manifests of all forms, read as the daemon reads them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use stockade::manifest::{Found, Net, Profile, Run, load};
use stockade_proto::v1::PluginState;
use stockade_tests::Options;

fn read(file: &str, text: &str) -> Found {
    let folder = tempfile::tempdir().expect("folder");
    let directory = folder.path().join("My Plugin");
    fs::create_dir(&directory).expect("directory");
    fs::write(directory.join(file), text).expect("manifest");
    load(&directory).expect("found")
}

fn problems(found: &Found) -> Vec<String> {
    match &found.manifest {
        Ok(manifest) => manifest.warnings.iter().map(ToString::to_string).collect(),
        Err(problems) => problems.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn the_seed_form_loads_unchanged() {
    let found = read(
        "manifest.json",
        r#"{"name": "Video Tracker", "description": "Tracks players", "version": "1.0",
            "dependencies": ["torch", "torch.cuda"], "requires_gpu": true,
            "models": {"player": "models/p.pt"}, "something": {"else": 1}}"#,
    );
    let manifest = found.manifest.clone().expect("valid");
    assert_eq!(manifest.name, "video-tracker");
    assert_eq!(
        problems(&found),
        ["manifest.json:1:2: the plugin is called \"video-tracker\" (from \"Video Tracker\")"]
    );
    assert_eq!(
        manifest.run,
        Run::Python { target: "plugin:Plugin".into(), venv: None, interpreter: None }
    );
    assert_eq!(manifest.requires.packages, ["torch", "torch.cuda"]);
    assert_eq!(manifest.requires.models[0].path, Path::new("models/p.pt"));
    assert!(manifest.requires.gpu.is_some());
    assert_eq!((manifest.limits.memory, manifest.limits.data), (8 << 30, None));
}

#[test]
fn the_shipped_form_loads_unchanged() {
    for tools in [
        r#"[{"id": "analyze", "title": "Analyze", "description": "d", "input_types": ["image"],
            "output_types": ["text"], "inputs": {"image": "bytes", "lang": "string?"}}]"#,
        r#"{"analyze": {"title": "Analyze"}}"#,
    ] {
        let text = format!(
            r#"{{"id": "ocr", "name": "OCR", "version": "2.1.0", "author": "a", "license": "MIT",
                "entrypoint": "forgesyte_ocr.plugin", "type": "analyzer", "capabilities": ["ocr"],
                "tools": {tools}}}"#
        );
        let manifest = read("manifest.json", &text).manifest.expect("valid");
        assert_eq!(manifest.name, "ocr");
        let target = "forgesyte_ocr.plugin:Plugin".to_owned();
        assert_eq!(manifest.run, Run::Python { target, venv: None, interpreter: None });
    }
    let text = r#"{"kind": "remote_feature", "id": "remote-analytics", "protocol": "http",
                   "endpoint": "https://plugin.example", "permissions": ["session:read"]}"#;
    let manifest = read("manifest.json", text).manifest.expect("valid");
    assert!(matches!(manifest.run, Run::Remote(_)));
    assert_eq!(manifest.permissions.requested, ["session:read"]);
}

#[test]
fn every_problem_of_a_manifest_json_is_told() {
    let found =
        read("manifest.json", "{\"name\": 7,\n \"dependencies\": \"torch\",\n \"tools\": 3}");
    let told = problems(&found).join("\n");
    for part in [
        "manifest.json:1:2: `name` must be text",
        "manifest.json:2:2: `dependencies` must be a list of texts",
        "manifest.json:3:2: `tools` must be a list",
    ] {
        assert!(told.contains(part), "{part}\n{told}");
    }
    let found = read("manifest.json", "{\"name\": \"x\",}");
    assert!(problems(&found)[0].starts_with("manifest.json:1:14: "), "{:?}", problems(&found));
    assert_eq!(found.name, "my-plugin", "listed under its directory's name");
}

#[test]
fn everything_that_plugin_toml_knows_is_read() {
    let found = read(
        "plugin.toml",
        r#"
name = "ocr"
version = "1.0.0"
description = "d"
[run]
binary = "bin/ocr"
args = ["-v"]
env = { OMP = "1" }
activation = "on_demand"
instances = 1
concurrency = 3
queue = { size = 7, timeout = "2s" }
[requires]
commands = ["tesseract"]
models = { a = "a.onnx", b = { path = "b.onnx", sha256 = "00000000000000000000000000000000000000000000000000000000000000aa" } }
gpu = { count = 2, memory = "8GiB", capability = "8.6" }
[limits]
memory = "2GiB"
cpu_time = "1h"
file_size = "1GB"
open_files = 256
processes = 10
core = 0
cpu = 1.5
[timeouts]
init = "5m"
call = "30s"
stop = "3s"
cancel_grace = "0s"
handshake = "2s"
ping = "1s"
[restart]
backoff_min = "2s"
backoff_max = "1m"
max_deaths = 9
window = "1h"
exhausted = "hold"
on_error = "fail"
max_errors = 2
[sandbox]
profile = "strict"
fs = { read = ["/srv/models"], write = ["cache", "/srv/out/"] }
net = "loopback"
"#,
    );
    let manifest = found.manifest.clone().unwrap_or_else(|_| panic!("{:?}", problems(&found)));
    assert_eq!(manifest.requires.models.len(), 2);
    assert_eq!(manifest.requires.gpu.expect("gpu").capability, Some((8, 6)));
    assert_eq!((manifest.limits.data, manifest.limits.cpu), (None, Some(1.5)));
    assert_eq!((manifest.concurrency, manifest.queue.size), (3, 7));
    assert_eq!(manifest.restart.max_deaths, 9);
    let sandbox = &manifest.sandbox;
    assert_eq!((sandbox.profile, sandbox.net, sandbox.jit), (Profile::Strict, Net::Loopback, true));
    assert!(sandbox.gpu, "requires.gpu asks for it");
    assert_eq!(sandbox.read, [PathBuf::from("/srv/models")]);
    assert_eq!(sandbox.write, [manifest.directory.join("cache"), "/srv/out".into()]);
}

#[test]
fn what_is_not_built_yet_says_so() {
    let found = read(
        "plugin.toml",
        "name = \"x\"\n[run]\nbinary = \"b\"\ninstances = 4\nidle_stop = \"1m\"\nsecrets = [\"A\"]\n\
         [limits]\ngpu_memory = \"1GiB\"\n[probe]\ntool = \"t\"\n",
    );
    let told = problems(&found).join("\n");
    for key in ["run.instances", "run.idle_stop", "run.secrets", "limits.gpu_memory", "probe"] {
        assert!(told.contains(&format!("`{key}`")), "{key}\n{told}");
    }
    assert_eq!(told.matches("not supported by this release yet").count(), 5, "{told}");
    let remote = "name = \"x\"\n[run]\nenv = { LD_PRELOAD = \"x.so\" }\nargs = [\"y\"]\n\
                  [run.remote]\nendpoint = \"https://plugins.example\"\n";
    let told = problems(&read("plugin.toml", remote)).join("\n");
    for key in ["run.env", "run.args"] {
        assert!(told.contains(&format!("`{key}` cannot be used with [run.remote]")), "{told}");
    }
    let gpu = "name = \"x\"\n[run]\nbinary = \"b\"\n[requires]\ngpu = true\n[limits]\naddress_space = \"1GiB\"\n";
    let told = problems(&read("plugin.toml", gpu)).join("\n");
    assert!(told.contains("cannot be used with a GPU: CUDA reserves twice the card"), "{told}");
}

#[test]
fn syntax_errors_have_their_places() {
    let told = problems(&read("plugin.toml", "name = \"x\"\n[run\nbinary = = 3\n")).join("\n");
    assert!(told.contains("plugin.toml:2:") && told.contains("plugin.toml:3:"), "{told}");
}

#[test]
fn odd_files_are_refused_without_harm() {
    let folder = tempfile::tempdir().expect("folder");
    let directory = folder.path().join("odd");
    fs::create_dir(&directory).expect("odd");
    let file = directory.join("plugin.toml");
    let told = |found: Found| problems(&found).join("\n");
    // A FIFO does not hang us.
    let made = std::process::Command::new("mkfifo").arg(&file).status().expect("mkfifo");
    assert!(made.success());
    assert!(told(load(&directory).expect("found")).contains("is not a regular file"));
    fs::remove_file(&file).expect("remove");
    fs::write(&file, "x".repeat(70_000)).expect("large");
    assert!(told(load(&directory).expect("found")).contains("65536 bytes that are allowed"));
    fs::write(&file, b"name = \"\xff\"").expect("binary");
    assert!(told(load(&directory).expect("found")).contains("cannot be read"));
    fs::remove_file(&file).expect("remove");
    assert!(load(&directory).is_none());
}

#[tokio::test]
async fn two_plugins_of_one_name_are_both_listed() {
    let daemon = stockade_tests::Options::new()
        .plugin("first", &stockade_tests::manifest("twin", ""))
        .plugin("second", &stockade_tests::manifest("twin", ""))
        .start()
        .await;
    daemon.serving("twin").await;
    let health = daemon.health("twin-2").await;
    let reason = health.reason.expect("reason");
    assert!(reason.starts_with("Manifest error: the name \"twin\" is used twice: "), "{reason}");
    assert!(reason.contains("plugins/first and ") && reason.contains("plugins/second"), "{reason}");
    daemon.stop().await;
}

/// Nobody else may change what is run.
#[tokio::test]
async fn a_directory_that_others_can_write_is_refused_and_heals() {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("mode");
    };
    let daemon = Options::new().rogue("open", "").start().await;
    daemon.serving("open").await;
    let directory = daemon.directory("open");
    // The program is one file with that of other tests.
    let (program, copy) = (directory.join("bin/rogue"), daemon.root.join("copy"));
    std::fs::copy(&program, &copy).and_then(|_| std::fs::rename(&copy, &program)).expect("copy");
    for path in [directory.clone(), directory.join("plugin.toml"), program.clone()] {
        let before = std::fs::metadata(&path).expect("metadata").permissions().mode();
        mode(&path, 0o777);
        daemon.reload().await;
        // What runs was good when it was started.
        let pending = |health: &stockade_proto::v1::PluginHealth| {
            let text = health.pending_change.clone().unwrap_or_default();
            text.contains("can be written by everybody") && text.contains("chmod go-w")
        };
        daemon.until("open", pending).await;
        let (code, out, _) = daemon.cli(&["check", "plugins/open"]).await;
        assert!(code == 1 && out.contains("chmod go-w"), "{out}");
        mode(&path, before & 0o777);
        // Nobody has to say so, wherever it was.
        daemon.until("open", |health| health.pending_change.is_none()).await;
    }
    // Nor is it started again from what somebody may have put there meanwhile.
    for path in [directory.join("bin"), directory.join("bin/rogue"), directory.clone()] {
        let before = std::fs::metadata(&path).expect("metadata").permissions().mode();
        mode(&path, 0o777);
        let (_, _, _) = daemon.cli(&["restart", "open"]).await;
        let refused = |health: &stockade_proto::v1::PluginHealth| {
            let reason = health.reason.clone().unwrap_or_default();
            reason.contains("can be written by everybody") && health.pid.is_none()
        };
        let health = daemon.until("open", refused).await;
        assert_eq!(health.state(), PluginState::Unavailable, "{health:?}");
        mode(&path, before & 0o777);
        daemon.serving("open").await;
    }
    // A program that is somewhere else is somebody else's.
    std::fs::rename(&program, daemon.root.join("elsewhere")).expect("rename");
    std::os::unix::fs::symlink(daemon.root.join("elsewhere"), &program).expect("symlink");
    daemon.reload().await;
    daemon
        .until("open", |health| {
            let text = health.pending_change.clone().unwrap_or_default();
            text.contains("bin/rogue leads out of the plugin's directory")
        })
        .await;
    daemon.stop().await;
}

#[test]
fn what_nobody_can_be_granted_is_refused() {
    for (grant, why) in [
        ("fs = { read = [\"/\"] }", "name the folders"),
        ("fs = { read = [\"/proc/1\"] }", "the kernel's"),
        ("fs = { write = [\"/sys\"] }", "the kernel's"),
        ("fs = { write = [\"../other\"] }", "must not contain `..`"),
        ("fs = { read = [\"/srv/../etc\"] }", "must not contain `..`"),
        ("net = \"everywhere\"", "true, false or \"loopback\""),
        ("profile = \"lax\"", "\"none\", \"standard\", \"strict\""),
        ("fs = { list = [] }", "unknown key"),
    ] {
        let text = format!("name = \"x\"\n[run]\nbinary = \"b\"\n[sandbox]\n{grant}\n");
        let told = problems(&read("plugin.toml", &text)).join("\n");
        assert!(told.contains(why), "{grant}: {told}");
    }
}
