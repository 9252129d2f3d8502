//! Exit and cause (faults 1 to 11).

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::Options;

use crate::scene::{QUICK, Scene};

/// Fault 1.
#[tokio::test]
async fn exit_codes_are_told_as_they_were() {
    let scene = Scene::new(QUICK).await;
    for code in [1, 69, 78, 255] {
        let outcome = scene.call("exit", json!({"n": code})).await;
        assert_eq!(outcome.failed(), ("WorkerCrashed", "exit_code"));
        assert!(outcome.error.starts_with(&format!("Exited {code} after ")), "{}", outcome.error);
        assert!(outcome.delivered);
        scene.recovers_from("exit_code").await;
    }
    let outcome = scene.call("exit", json!({"n": 0})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "clean_exit"));
    let reason = scene.recovers_from("clean_exit").await;
    assert!(reason.starts_with("Exited 0 without being asked after "), "{reason}");
    assert!(reason.ends_with("Plugins must serve until told to stop."), "{reason}");
    scene.end().await;
}

/// Fault 1: the last words are in the reason and in the crash record.
#[tokio::test]
async fn the_last_words_are_told() {
    let scene = Scene::new(QUICK).await;
    let outcome = scene.call("words_then_exit", json!({"text": "no such table: frames"})).await;
    assert!(outcome.error.ends_with("Last stderr: no such table: frames"), "{}", outcome.error);
    scene.recovers_from("exit_code").await;
    let crash = &scene.daemon.crashes("rogue").await[0];
    assert_eq!(crash.stderr_tail, "no such table: frames");
    assert_eq!((crash.exit_code, crash.cause.as_str()), (Some(1), "exit_code"));
    assert_eq!(crash.calls.len(), 1);
    assert_eq!(crash.calls[0].tool, "words_then_exit");
    assert_eq!(crash.calls[0].input_digest.len(), 16);
    assert!(crash.uptime_seconds > 0.0 && crash.peak_memory_bytes > 0, "{crash:?}");
    scene.end().await;
}

/// Fault 2.
#[tokio::test]
async fn fatal_signals_are_crashes_with_their_names_and_tools() {
    let scene = Scene::new(QUICK).await;
    for (number, name) in
        [(11, "SIGSEGV"), (7, "SIGBUS"), (4, "SIGILL"), (6, "SIGABRT"), (8, "SIGFPE")]
    {
        let outcome = scene.call("signal", json!({"n": number})).await;
        assert_eq!(outcome.failed(), ("WorkerCrashed", "crash"), "{name}");
        let start = format!("Crashed with {name} after ");
        assert!(outcome.error.starts_with(&start), "{}", outcome.error);
        assert!(outcome.error.contains(" in tool signal. Core: "), "{}", outcome.error);
        scene.recovers_from("crash").await;
        let crash = &scene.daemon.crashes("rogue").await[0];
        assert_eq!(crash.signal.as_deref(), Some(name));
        assert!(!crash.backtrace.is_empty(), "{crash:?}");
    }
    for tool in ["segfault", "abort", "overflow"] {
        let outcome = scene.call(tool, json!({})).await;
        assert_eq!(outcome.failed(), ("WorkerCrashed", "crash"), "{tool}");
        assert!(outcome.error.contains(&format!("in tool {tool}")), "{}", outcome.error);
        scene.recovers_from("crash").await;
    }
    scene.end().await;
}

/// Faults 3 and 4, on a machine that kills nobody for memory meanwhile. Whether an
/// earlier kill for memory of somebody else is mistaken for this one, it cannot see.
#[tokio::test]
async fn a_kill_from_outside_is_neither_memory_nor_clean() {
    let oom_kills = || {
        let counters = std::fs::read_to_string("/proc/vmstat").expect("vmstat");
        let line = counters.lines().find_map(|line| line.strip_prefix("oom_kill "));
        line.expect("oom_kill").parse::<u64>().expect("number")
    };
    let before = oom_kills();
    let scene = Scene::new(QUICK).await;
    for (signal, name) in [(libc::SIGKILL, "SIGKILL"), (libc::SIGTERM, "SIGTERM")] {
        let health = scene.daemon.serving("rogue").await;
        unsafe { libc::kill(health.pid.expect("pid") as i32, signal) };
        let generation = health.generation;
        let health = scene.daemon.until("rogue", |now| now.generation > generation).await;
        let exit = health.last_exit.expect("exit");
        let others = oom_kills() - before;
        assert_eq!(exit.cause, "signal", "{others} kills for memory on this machine meanwhile");
        assert_eq!(exit.signal.as_deref(), Some(name));
        assert_eq!(
            exit.reason,
            format!(
                "Killed by {name}, not sent by the supervisor. \
                 Check operators and other agents on this machine."
            )
        );
        scene.recovers_from("signal").await;
    }
    scene.end().await;
}

/// Fault 5, without cgroups: the guard.
#[tokio::test]
async fn exceeding_the_own_cap_is_told_as_such() {
    let scene = Scene::new(&format!("{QUICK}\n[limits]\nmemory = \"150MiB\"")).await;
    let outcome = scene.call("allocate", json!({"n": 400})).await;
    assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_own"));
    let start = "Exceeded memory = 150MiB (peak ";
    assert!(outcome.error.starts_with(start), "{}", outcome.error);
    assert!(outcome.error.ends_with("Raise limits.memory or reduce the batch size."));
    scene.recovers_from("oom_own").await;
    scene.end().await;
}

/// Fault 7, without cgroups: the tree counts, not the main process.
#[tokio::test]
async fn a_grandchilds_memory_counts() {
    let scene = Scene::new(&format!("{QUICK}\n[limits]\nmemory = \"150MiB\"")).await;
    let outcome = scene.call("child_allocate", json!({"n": 400})).await;
    assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_own"));
    scene.recovers_from("oom_own").await;
    scene.end().await;
}

/// Fault 9.
#[tokio::test]
async fn limits_of_the_kernel_are_told_by_their_names() {
    let limits = "[limits]\nmemory = \"8GiB\"\ncpu_time = \"1s\"\nfile_size = \"2MiB\"\n\
                  data = \"300MiB\"\nopen_files = 64";
    let scene = Scene::new(&format!("concurrency = 2\n{QUICK}\n{limits}")).await;
    let outcome = scene.call("write_file", json!({"n": 4})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "file_size_limit"));
    assert_eq!(outcome.error, "Hit limits.file_size = 2MiB. Raise it or write less.");
    scene.recovers_from("file_size_limit").await;

    let outcome = scene.call("reserve", json!({"n": 400})).await;
    assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "memory_limit"));
    let start = "Allocation failed under limits.data = 300MiB.";
    assert!(outcome.error.starts_with(start), "{}", outcome.error);
    scene.recovers_from("memory_limit").await;

    // A tool that is told "too many open files" raises; nothing dies.
    let outcome = scene.call("open_files", json!({"n": 100})).await;
    assert_eq!(outcome.failed(), ("io::Error", ""));
    assert!(outcome.error.contains("Too many open files"), "{}", outcome.error);

    let outcome = scene.call("burn", json!({"n": 20_000})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "cpu_limit"));
    assert_eq!(outcome.error, "Hit limits.cpu_time = 1s. Raise it or compute less.");
    scene.recovers_from("cpu_limit").await;
    scene.end().await;
}

/// Fault 10.
#[tokio::test]
async fn a_program_that_cannot_be_executed_is_unavailable_and_heals() {
    let plugin = |name: &str| format!("name = \"{name}\"\n[run]\nbinary = \"bin/{name}\"\n");
    let names = ["missing", "forbidden", "foreign", "script", "library"];
    let mut options = Options::new().bystander();
    for name in names {
        options = options.plugin(name, &plugin(name));
    }
    let daemon = options.config("watch = false").start().await;
    let program = |name: &str| daemon.directory(name).join("bin").join(name);
    let write = |name: &str, content: &[u8], mode: u32| {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::write(program(name), content).expect("program");
        std::fs::set_permissions(program(name), std::fs::Permissions::from_mode(mode))
            .expect("mode");
    };
    let reason = async |name: &str| {
        let health = daemon.state(name, PluginState::Unavailable, "PREFLIGHT_FAILED").await;
        health.reason.expect("reason")
    };
    assert!(reason("missing").await.contains("bin/missing: no such file (ENOENT)"));

    write("forbidden", b"#!/bin/sh\n", 0o644);
    daemon.admin().restart_plugin(daemon.action("forbidden")).await.expect("restart");
    let text = reason("forbidden").await;
    assert!(text.contains("permission denied (EACCES)") && text.contains("chmod +x"), "{text}");

    // An ELF header of another machine.
    write("foreign", b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xf3\0\x01\0\0\0", 0o755);
    daemon.admin().restart_plugin(daemon.action("foreign")).await.expect("restart");
    assert!(reason("foreign").await.contains("ENOEXEC"));

    write("script", b"#!/no/such/interpreter\n", 0o755);
    daemon.admin().restart_plugin(daemon.action("script")).await.expect("restart");
    assert!(reason("script").await.contains("ENOENT, missing interpreter"));

    let loader = b"#!/bin/sh\necho 'prog: error while loading shared libraries: libx.so.1: \
                   cannot open shared object file' >&2\nexit 127\n";
    write("library", loader, 0o755);
    daemon.admin().restart_plugin(daemon.action("library")).await.expect("restart");
    let text = reason("library").await;
    assert!(text.contains("missing library") && text.contains("libx.so.1"), "{text}");

    // It heals by itself when the program is there.
    // Whole at once: a program that somebody is still writing cannot be executed.
    let whole = program("missing").with_extension("new");
    if std::fs::hard_link(stockade_tests::binary("rogue"), &whole).is_err() {
        std::fs::copy(stockade_tests::binary("rogue"), &whole).expect("copy");
    }
    std::fs::rename(whole, program("missing")).expect("rename");
    daemon.serving("missing").await;
    daemon.stop().await;
}

/// Fault 11.
#[tokio::test]
async fn deaths_while_starting_are_told_with_their_phase() {
    let rows = [
        ("args = [\"--before\", \"exit:5\"]", "exit_code", "Exited 5 after "),
        ("args = [\"--raw\", \"die-after-hello\"]", "exit_code", "Exited 4 after "),
        ("args = [\"--in-init\", \"exit:6\"]", "exit_code", "Exited 6 after "),
        ("args = [\"--in-init\", \"raise:11\"]", "crash", "Crashed with SIGSEGV after "),
        (
            "args = [\"--init-error\", \"configuration error\"]",
            "init_error",
            "InitError: ValueError: configuration error",
        ),
        ("args = [\"--init-panic\", \"boom\"]", "init_error", "InitError: Panic: boom"),
        (
            "args = [\"--invalid\"]",
            "init_error",
            "Plugin validation failed: the model has no classes",
        ),
    ];
    let mut options = Options::new().bystander();
    for (n, (run, _, _)) in rows.iter().enumerate() {
        let hold = "[restart]\nmax_deaths = 0\nexhausted = \"hold\"";
        options = options.rogue(&format!("p{n}"), &format!("{run}\n{hold}"));
    }
    let daemon = options.start().await;
    for (n, (run, cause, reason)) in rows.iter().enumerate() {
        let name = format!("p{n}");
        let health = daemon.state(&name, PluginState::Failed, "EXHAUSTED").await;
        let exit = health.last_exit.expect("exit");
        assert_eq!(&exit.cause, cause, "{run}: {}", exit.reason);
        assert!(exit.reason.starts_with(reason), "{run}: {}", exit.reason);
        assert_eq!(health.error_count, 1, "a load that failed counts once: {run}");
        assert!(health.reason.expect("reason").contains(&format!("stockade reset {name}")));
    }
    daemon.stop().await;
}

/// A plugin that says what is missing is UNAVAILABLE, not FAILED.
#[tokio::test]
async fn a_plugin_may_say_what_is_missing() {
    let daemon = Options::new()
        .bystander()
        .rogue("rogue", "args = [\"--init-missing\", \"cuda\"]")
        .start()
        .await;
    let health = daemon.state("rogue", PluginState::Unavailable, "INIT_REJECTED").await;
    assert_eq!(health.reason.as_deref(), Some("Missing dependencies: cuda. To fix: Put it there."));
    assert_eq!(health.missing, ["cuda"]);
    assert_eq!((health.restarts, health.error_count), (0, 0));
    daemon.stop().await;
}
