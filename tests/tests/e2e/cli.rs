//! The command line: output, formats, exit codes.

use serde_json::{Value, json};
use stockade_tests::Options;

use crate::http::with_image;

#[tokio::test]
async fn exit_codes_and_formats_are_those_documented() {
    let daemon = Options::new()
        .rogue("rogue", "[restart]\nmax_deaths = 0\nexhausted = \"hold\"")
        .rogue("rogue-two", "")
        .start()
        .await;
    daemon.serving("rogue").await;
    daemon.serving("rogue-two").await;
    let (code, out, _) = daemon.cli(&["list"]).await;
    assert_eq!(code, 0);
    let head: Vec<&str> = out.lines().next().expect("head").split_whitespace().collect();
    assert_eq!(
        head,
        ["NAME", "STATE", "READY", "RESTARTS", "PID", "CPU", "RSS", "UPTIME", "LAST-ERROR"]
    );
    assert!(!out.contains('\x1b'), "no colours in a pipe");
    let (_, out, _) = daemon.cli(&["list", "-o", "name", "rogue*"]).await;
    assert_eq!(out, "rogue\nrogue-two\n");
    let (_, out, _) = daemon.cli(&["list", "-o", "json"]).await;
    let list: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(list.as_array().expect("array").len(), 3);
    let (_, out, _) = daemon.cli(&["list", "-o", "jsonl"]).await;
    assert_eq!(out.lines().count(), 3);
    let (_, out, _) = daemon.cli(&["list", "-o", "wide"]).await;
    assert!(out.lines().next().expect("head").contains("SUBSTATE"));

    assert_eq!(daemon.cli(&["status", "rogue"]).await.0, 0);
    let (code, out, _) = daemon.cli(&["stop", "rogue*"]).await;
    assert_eq!((code, out.as_str()), (0, "rogue: LOADED (STOPPED)\nrogue-two: LOADED (STOPPED)\n"));
    let (code, _, err) = daemon.cli(&["status", "rogue"]).await;
    assert_eq!((code, err.as_str()), (3, "stockade: not serving: rogue\n"));
    let (code, _, err) = daemon.cli(&["call", "rogue", "pid"]).await;
    assert_eq!(code, 3);
    assert!(err.contains("PluginUnavailable: Plugin is LOADED: Stopped by an operator."), "{err}");
    assert_eq!(daemon.cli(&["start", "rogue", "rogue-two"]).await.0, 0);
    let (code, _, err) = daemon.cli(&["status", "rouge"]).await;
    assert_eq!(
        (code, err.as_str()),
        (4, "stockade: Plugin rouge not found. Did you mean rogue?\n")
    );
    assert_eq!(daemon.cli(&["call", "rogue", "nothing"]).await.0, 4);
    assert_eq!(daemon.cli(&["call", "rogue", "echo"]).await.0, 2);
    assert_eq!(daemon.cli(&["frobnicate"]).await.0, 2);
    assert_eq!(daemon.cli(&["--socket", "/no/such.sock", "list"]).await.0, 4);

    // A death: told, recorded, exhausted, reset.
    let (code, _, err) = daemon.cli(&["call", "rogue", "exit", "--arg", "n=5"]).await;
    assert_eq!(code, 1);
    assert!(err.starts_with("stockade: WorkerCrashed: Exited 5 after "), "{err}");
    let (_, out, _) = daemon.cli(&["crashes", "rogue"]).await;
    assert!(out.contains("exit_code") && out.contains("Exited 5 after "), "{out}");
    let (_, out, _) = daemon.cli(&["crashes", "-o", "json"]).await;
    let crashes: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(crashes[0]["calls"][0]["tool"], "exit");
    daemon.until("rogue", |health| health.substate == "EXHAUSTED").await;
    assert_eq!(daemon.cli(&["reset", "rogue"]).await.0, 0);
    assert_eq!(daemon.cli(&["restart", "rogue"]).await.0, 0);
    assert_eq!(daemon.cli(&["disable", "rogue-two"]).await.0, 0);
    assert_eq!(daemon.health("rogue-two").await.substate, "DISABLED");
    let (code, _, _) = daemon.cli(&["start", "rogue-two"]).await;
    assert_eq!(code, 1, "disabled is stronger than start");
    assert_eq!(daemon.cli(&["enable", "rogue-two"]).await.0, 0);

    daemon.cli(&["call", "rogue", "log", "--arg", "text=hello"]).await;
    let (_, out, _) = daemon.cli(&["logs", "rogue"]).await;
    assert!(out.contains("warn   hello"), "{out}");
    let (_, out, _) = daemon.cli(&["events", "rogue"]).await;
    assert!(out.contains("death") && out.contains("restart asked by"), "{out}");
    let (code, out, _) = daemon.cli(&["reload"]).await;
    assert_eq!((code, out.as_str()), (0, "no plugin was added, changed or removed\n"));
    let (_, out, _) = daemon.cli(&["describe", "rogue", "-o", "json"]).await;
    let described: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(described["manifest"]["limits"]["open_files"], 1024);
    let (_, out, _) = daemon.cli(&["describe", "rogue"]).await;
    assert!(out.contains("tool echo") && out.contains("text           string, required"), "{out}");
    assert!(out.contains("calls     concurrency=1 queue="), "{out}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_photograph_goes_in_and_a_thumbnail_comes_out() {
    let daemon = with_image().await;
    let photo =
        format!("image={}/../plugin-sdk/examples/image/photo.jpg", env!("CARGO_MANIFEST_DIR"));
    let args =
        ["call", "image", "thumbnail", "--arg", "width=128", "--file", &photo, "-o", "thumb.jpg"];
    let (code, out, err) = daemon.cli(&args).await;
    assert_eq!(code, 0, "{err}");
    let result: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(result["width"], 128);
    let thumb = std::fs::read(daemon.root.join("thumb.jpg")).expect("thumb.jpg");
    assert_eq!(&thumb[..3], b"\xff\xd8\xff");
    let (code, out, _) = daemon.cli(&["call", "image", "exif", "--file", &photo]).await;
    let exif: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!((code, &exif["Artist"]), (0, &json!("Stefan van der Walt")));
    let (code, _, err) =
        daemon.cli(&["call", "image", "thumbnail", "--arg", "width=big", "--file", &photo]).await;
    assert_eq!(code, 2);
    assert!(err.contains("width: \"big\" is not of type \"integer\""), "{err}");
    daemon.stop().await;
}

#[tokio::test]
async fn help_has_an_example_for_every_command() {
    let daemon = Options::new().start().await;
    let commands = [
        "serve",
        "list",
        "status",
        "describe",
        "call",
        "start",
        "stop",
        "restart",
        "reset",
        "enable",
        "disable",
        "reload",
        "logs",
        "events",
        "crashes",
        "check",
        "new",
        "config",
        "completions",
        "version",
    ];
    for command in commands {
        let (code, out, _) = daemon.cli(&[command, "--help"]).await;
        assert_eq!(code, 0, "{command}");
        assert!(out.contains("Example"), "{command} has no example:\n{out}");
    }
    let (_, out, _) = daemon.cli(&["--help"]).await;
    for line in ["0  it worked", "3  the plugin is not running", "4  there is no such plugin"] {
        assert!(out.contains(line), "{out}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = daemon.cli(&["completions", shell]).await;
        assert!(code == 0 && out.contains("stockade"), "{shell}");
    }
    assert!(daemon.cli(&["version"]).await.1.starts_with("stockade 0."));
    let config = daemon.root.join("stockade.toml").display().to_string();
    let (_, out, _) = daemon.cli(&["config", "show", "--config", &config]).await;
    assert!(
        out.contains("listen") && out.contains("127.0.0.1:7077") && out.contains("default"),
        "{out}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn the_configuration_is_shown_with_its_tables_and_its_mistakes_are_told() {
    let daemon = Options::new().alone().start().await;
    let config = daemon.root.join("other.toml");
    let shown = config.display().to_string();
    std::fs::write(
        &config,
        "[limits]\nmemory_total = \"3GiB\"\n[plugin.quests.remote]\nsecret = \"do not tell\"\n",
    )
    .expect("configuration");
    let (code, out, err) = daemon.cli(&["config", "show", "--config", &shown]).await;
    assert_eq!(code, 0, "{err}");
    let limit = out.lines().find(|line| line.starts_with("limits.memory_total"));
    let limit = limit.unwrap_or_else(|| panic!("{out}"));
    assert!(limit.contains("3GiB") && limit.contains(&shown), "{limit}");
    let other = out.lines().find(|line| line.starts_with("limits.processes_total"));
    assert!(other.is_some_and(|line| line.contains("default")), "{out}");
    assert!(out.contains("plugin.quests.remote.secret") && !out.contains("do not tell"), "{out}");
    // A command says that it does not know which daemon is meant.
    std::fs::write(&config, "sockets = \"/run/elsewhere.sock\"\n").expect("configuration");
    let mut command = std::process::Command::new(stockade_tests::binary("stockade"));
    command.args(["status", "--config", &shown]).env_remove("STOCKADE_SOCKET");
    let output = command.output().expect("stockade");
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("its `socket` was not read"), "{err}");
    assert!(err.contains("unknown key `sockets`"), "{err}");
    assert!(err.contains("use --socket for another"), "{err}");
    daemon.stop().await;
}

#[tokio::test]
async fn check_tells_every_problem_with_its_place() {
    let daemon = Options::new().alone().start().await;
    let bad = daemon.root.join("bad");
    std::fs::create_dir(&bad).expect("bad");
    let text = "name = \"Bad Name\"\n\n[run]\nbinary = \"../escape\"\nconcurency = 2\n\n[limits]\nmemory = \"lots\"\n";
    std::fs::write(bad.join("plugin.toml"), text).expect("plugin.toml");
    let (code, out, _) = daemon.cli(&["check", "bad"]).await;
    assert_eq!(code, 1);
    for line in [
        "bad/plugin.toml:1:8: `name` \"Bad Name\" is not a valid plugin name",
        "bad/plugin.toml:4:10: `run.binary` \"../escape\" leaves the plugin's directory",
        "bad/plugin.toml:5:1: unknown key `run.concurency`; did you mean `concurrency`?",
        "bad/plugin.toml:8:10: `limits.memory` must be a size such as",
    ] {
        assert!(out.contains(line), "{line}\n{out}");
    }
    let (code, out, _) = daemon.cli(&["check", "plugins"]).await;
    assert_eq!((code, out.as_str()), (1, "plugins: no plugin.toml or manifest.json\n"));
    daemon.stop().await;
}
