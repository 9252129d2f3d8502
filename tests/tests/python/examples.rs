//! The examples, and what `stockade new --python` makes.

use std::{
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Daemon, Options, binary, environments, python_host, write_file};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/python/examples").join(name)
}

/// Copies an example into the daemon's folder; with an environment that has
/// what it imports.
fn install(daemon: &Daemon, name: &str, environment: Option<&str>) {
    let directory = daemon.directory(name);
    std::fs::create_dir_all(&directory).expect("directory");
    if let Some(environment) = environment {
        symlink(environments(environment), directory.join(".venv")).expect("symlink");
    }
    for file in ["plugin.py", "plugin.toml", "manifest.json"] {
        if let Ok(text) = std::fs::read_to_string(example(name).join(file)) {
            write_file(&directory.join(file), &text);
        }
    }
}

/// What a script of Pillow writes to its standard output.
fn picture(script: &str) -> Vec<u8> {
    let python = environments("numpy2").join("bin/python");
    let output = Command::new(python).args(["-c", script]).output().expect("python");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test]
async fn ocr_reads_a_picture_of_text() {
    python_host();
    let daemon = Options::new().start().await;
    install(&daemon, "ocr", None);
    daemon.serving("ocr").await;
    let page = picture(
        "import sys\nfrom PIL import Image, ImageDraw, ImageFont\n\
         image = Image.new('RGB', (800, 200), 'white')\n\
         font = ImageFont.load_default(60)\n\
         ImageDraw.Draw(image).text((30, 60), 'Stockade reads 42', 'black', font)\n\
         image.save(sys.stdout.buffer, 'PNG')\n",
    );
    let blobs: &[(&str, &[u8])] = &[("image_bytes", &page)];
    let read = daemon.call_with("ocr", "analyze", json!({}), blobs, 0).await.unwrap();
    assert_eq!(read["text"], "Stockade reads 42");
    assert_eq!(read["words"].as_array().map(Vec::len), Some(3), "{read}");
    let confidence = read["words"][0]["confidence"].as_f64().expect("confidence");
    assert!((0.5..=1.0).contains(&confidence), "{read}");
    let blobs: &[(&str, &[u8])] = &[("image_bytes", b"no picture")];
    let wrong = daemon.call_with("ocr", "analyze", json!({}), blobs, 0).await;
    assert_eq!(wrong.error_type, "OcrError", "{wrong:?}");
    let blobs: &[(&str, &[u8])] = &[("image_bytes", &page)];
    let args = json!({"language": "klingon"});
    let wrong = daemon.call_with("ocr", "analyze", args, blobs, 0).await;
    assert!(wrong.error.contains("klingon"), "{wrong:?}");
    let languages = daemon.call("ocr", "languages", json!({})).await.unwrap();
    assert!(languages.as_array().is_some_and(|all| all.contains(&json!("eng"))), "{languages}");
    daemon.stop().await;
}

#[tokio::test]
async fn quests_keeps_progress_and_answers_the_server() {
    use stockade_proto::v1::{EvaluateConditionRequest, extensions_client::ExtensionsClient};
    python_host();
    let daemon = Options::new().start().await;
    install(&daemon, "quests", None);
    daemon.serving("quests").await;
    let args = json!({"player": "ada", "quest": "dragon", "steps": 9});
    assert_eq!(daemon.call("quests", "advance", args).await.unwrap()["progress"], 9);
    let finished = async || {
        let context = json!({"player": "ada", "quest": "dragon"}).to_string();
        let request = EvaluateConditionRequest {
            condition_id: "plugin:quests:has_finished".into(),
            context: context.into(),
            ..Default::default()
        };
        let mut extensions = ExtensionsClient::new(daemon.channel());
        let reply = extensions.evaluate_condition(request).await.expect("reply").into_inner();
        assert_eq!(reply.reason, "");
        reply.result
    };
    assert!(!finished().await);
    let args = json!({"player": "ada", "quest": "dragon"});
    daemon.call("quests", "advance", args).await.unwrap();
    assert!(finished().await);
    let all = daemon.call("quests", "quests", json!({"player": "ada"})).await.unwrap();
    assert_eq!(all, json!({"dragon": 10}));
    let helped = daemon.call("quests", "help_npc", json!({"player": "ada", "npc": "7"})).await;
    assert_eq!(helped.unwrap(), json!({"trust": 1.0}));
    daemon.stop().await;
}

/// A machine without tesseract: nothing of it is to be seen in this namespace.
#[test]
fn without_tesseract_the_reason_has_the_apt_line() {
    let hide = "for t in $(which -a tesseract); do mount --bind /dev/null $t; done";
    let script =
        format!("{hide}; exec {} check {}", binary("stockade").display(), example("ocr").display());
    python_host();
    let mut command = Command::new("unshare");
    // An unprivileged user becomes root in a namespace of its own.
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]);
    let output = command.output().expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        text.contains("Missing dependencies: tesseract. To fix: install tesseract")
            && text.contains("apt-get install tesseract-ocr"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn frame(x: u32) -> Vec<u8> {
    picture(&format!(
        "import sys\nfrom PIL import Image, ImageDraw\n\
         image = Image.new('RGB', (320, 240), 'gray')\n\
         ImageDraw.Draw(image).rectangle(({x}, 100, {x} + 40, 140), 'white')\n\
         image.save(sys.stdout.buffer, 'PNG')\n"
    ))
}

#[tokio::test]
async fn motion_is_detected_and_a_lost_baseline_is_told() {
    python_host();
    let daemon = Options::new().start().await;
    install(&daemon, "motion", Some("numpy2"));
    let detect = async |frame: &[u8]| {
        let outcome = daemon.call_with("motion", "detect", json!({}), &[("frame", frame)], 0).await;
        (outcome.generation, outcome.unwrap())
    };
    daemon.serving("motion").await;
    let (here, there) = (frame(40), frame(200));
    let (generation, seen) = detect(&here).await;
    assert_eq!(
        (generation, &seen["baseline"], &seen["motion"]),
        (1, &json!("fresh"), &json!(false))
    );
    let (_, seen) = detect(&here).await;
    assert_eq!((&seen["baseline"], &seen["motion"]), (&json!("kept"), &json!(false)));
    let (_, seen) = detect(&there).await;
    assert_eq!((&seen["motion"], &seen["frames"]), (&json!(true), &json!(3)));
    assert!(seen["box"][0].as_f64().expect("left") < 0.3, "{seen}");
    // The worker is killed in mid-sequence.
    let pid = daemon.health("motion").await.pid.expect("pid");
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    daemon.death("motion", "signal").await;
    let (generation, seen) = detect(&here).await;
    assert_eq!(generation, 2, "the client is told that state was lost");
    assert_eq!((&seen["baseline"], &seen["frames"]), (&json!("fresh"), &json!(1)));
    let (_, seen) = detect(&there).await;
    assert_eq!((&seen["baseline"], &seen["motion"]), (&json!("kept"), &json!(true)));
    daemon.stop().await;
}

const VIDEO: &str = "import sys\nfrom PIL import Image, ImageDraw\n\
    frames = []\n\
    for i in range(24):\n\
    \x20   image = Image.new('RGB', (120, 80), 'black')\n\
    \x20   ImageDraw.Draw(image).ellipse((i * 3, 30, i * 3 + 10, 40), (255, 0, 0))\n\
    \x20   frames.append(image)\n\
    frames[0].save(sys.stdout.buffer, 'GIF', save_all=True, append_images=frames[1:])\n";

#[tokio::test]
async fn the_video_tracker_on_every_kind_of_machine() {
    python_host();
    // No GPU: UNAVAILABLE, and health is complete all the same.
    let daemon = Options::new().start().await;
    install(&daemon, "tracker", Some("numpy2"));
    let health = daemon.until("tracker", |health| health.state() == PluginState::Unavailable).await;
    let reason = health.reason.expect("reason");
    assert!(reason.contains("GPU") && reason.contains("CUDA"), "{reason}");
    assert!(reason.contains("Missing dependencies: ball (path: models/ball.json)"), "{reason}");
    assert_eq!(health.missing, ["cuda", "ball (path: models/ball.json)"]);
    daemon.stop().await;
    // A GPU, but no model: UNAVAILABLE, the file is named.
    let library = binary("libfake_nvml.so").display().to_string();
    let daemon = Options::new()
        .config(&format!("nvml = \"{library}\""))
        .env("FAKE_GPUS", "GPU-one,Card,24,8,6")
        .start()
        .await;
    install(&daemon, "tracker", Some("numpy2"));
    let health = daemon.until("tracker", |health| health.state() == PluginState::Unavailable).await;
    let reason = health.reason.expect("reason");
    let wanted = "Missing dependencies: ball (path: models/ball.json). To fix: put the file at ";
    assert!(reason.starts_with(wanted), "{reason}");
    // Both: it starts by itself and runs.
    let model = r#"{"color": [255, 0, 0], "tolerance": 60, "jump": 20}"#;
    write_file(&daemon.directory("tracker").join("models/ball.json"), model);
    daemon.serving("tracker").await;
    let video = picture(VIDEO);
    let blobs: &[(&str, &[u8])] = &[("video", &video)];
    let outcome = daemon.call_with("tracker", "track_video", json!({}), blobs, 0).await;
    let generation = outcome.generation;
    let tracked = outcome.unwrap();
    assert_eq!(tracked["frames"], 24, "{tracked}");
    assert_eq!(tracked["gpus"], json!(["GPU-one"]));
    let x = |frame: usize| tracked["positions"][frame][0].as_f64().expect("x");
    assert!(x(0) < x(12) && x(12) < x(23), "{tracked}");
    // A fault in frame 17: a structured error, and the next video works.
    let args = json!({"fail_at": 17});
    let failed = daemon.call_with("tracker", "track_video", args, blobs, 0).await;
    assert_eq!(failed.error_type, "TrackingError");
    assert_eq!(failed.error, "frame 17: lost the ball");
    let again = daemon.call_with("tracker", "track_video", json!({}), blobs, 0).await;
    assert_eq!(again.generation, generation, "the same process");
    assert_eq!(again.unwrap()["frames"], 24);
    let health = daemon.health("tracker").await;
    assert_eq!((health.state(), health.error_count), (PluginState::Initialized, 1));
    daemon.stop().await;
}

#[tokio::test]
async fn a_new_python_plugin_tests_and_runs() {
    python_host();
    let daemon = Options::new().start().await;
    let (code, out, err) = daemon.cli(&["new", "--python", "my-tool"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("make -C my-tool test\n"), "{out}");
    let directory = daemon.root.join("my-tool");
    let output = Command::new("make").arg("test").current_dir(&directory).output().expect("make");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (code, out, _) = daemon.cli(&["check", "my-tool"]).await;
    assert_eq!((code, out.as_str()), (0, "my-tool: my-tool 0.1.0 is fine\n"));
    std::fs::rename(&directory, daemon.directory("my-tool")).expect("install");
    daemon.serving("my-tool").await;
    let greeted = daemon.call("my-tool", "greet", json!({"name": "Ada", "times": 2})).await;
    assert_eq!(greeted.unwrap(), "Hello, Ada! Hello, Ada!");
    assert_eq!(daemon.call("my-tool", "count", json!({"n": 3})).await.items, [1, 2, 3]);
    daemon.stop().await;
}
