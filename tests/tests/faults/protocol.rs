//! Protocol and I/O (faults 23 to 29; shared memory is not built yet).

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::Options;

use crate::scene::{QUICK, Scene};

fn raw(mode: &str) -> String {
    format!("args = [\"--raw\", \"{mode}\"]\n{QUICK}")
}

/// Faults 23 and 24, while shaking hands.
#[tokio::test]
async fn broken_handshakes_are_told_and_bounded() {
    let hold = "[timeouts]\nhandshake = \"8s\"\n[restart]\nmax_deaths = 0\nexhausted = \"hold\"";
    let rows = [
        // The channel may break while it is being set up, or in the first call.
        ("garbage", "protocol_error", "Broke the protocol in "),
        ("partial", "startup_timeout", "No handshake in 8s; last phase spawned."),
        ("silent", "startup_timeout", "No handshake in 8s; last phase spawned."),
        ("no-hello", "startup_timeout", "No handshake in 8s; last phase spawned."),
        ("close", "protocol_error", "Broke the protocol in "),
        ("wrong-nonce", "protocol_error", "Broke the protocol in hello: wrong nonce."),
        ("huge-hello", "protocol_error", "Broke the protocol in hello: "),
        ("bad-schema", "init_error", "InitError: Tool 't': the input schema is not valid: "),
    ];
    let mut options = Options::new().bystander();
    for (mode, _, _) in rows {
        let run = format!("args = [\"--raw\", \"{mode}\"]\n{hold}");
        options = options.rogue(mode, &run);
    }
    let daemon = options.start().await;
    for (mode, cause, reason) in rows {
        let health = daemon.state(mode, PluginState::Failed, "EXHAUSTED").await;
        let exit = health.last_exit.expect("exit");
        assert_eq!(exit.cause, cause, "{mode}: {}", exit.reason);
        assert!(exit.reason.starts_with(reason), "{mode}: {}", exit.reason);
    }
    daemon.stop().await;
}

/// Fault 23: versions.
#[tokio::test]
async fn another_protocol_version_says_what_to_upgrade() {
    let daemon = Options::new()
        .bystander()
        .rogue("new", &raw("new-version"))
        .rogue("old", &raw("old-version"))
        .start()
        .await;
    let health = daemon.state("new", PluginState::Unavailable, "INIT_REJECTED").await;
    assert_eq!(
        health.reason.as_deref(),
        Some("Speaks protocol 7, 8; this supervisor speaks 1–1. Upgrade the supervisor.")
    );
    let health = daemon.state("old", PluginState::Unavailable, "INIT_REJECTED").await;
    assert_eq!(
        health.reason.as_deref(),
        Some("Speaks protocol 0; this supervisor speaks 1–1. Upgrade the plugin (its SDK).")
    );
    assert_eq!(health.restarts, 0);
    daemon.stop().await;
}

/// Fault 24, in a call: accepted, never answered.
#[tokio::test]
async fn a_call_that_is_never_answered_ends_at_its_time_out() {
    let more = "args = [\"--raw\", \"no-answer\"]\n[timeouts]\ncall = \"200ms\"\n\
                cancel_grace = \"100ms\"\n[restart]\nbackoff_min = \"10ms\"";
    let scene = Scene::new(more).await;
    let outcome = scene.call("t", json!({})).await;
    assert_eq!(outcome.failed(), ("TimeoutError", "call_timeout"));
    scene.daemon.serving("rogue").await;
    scene.end().await;
}

/// Fault 25.
#[tokio::test]
async fn floods_and_huge_messages_are_breaches() {
    for (mode, what) in [
        ("huge-message", "Broke the protocol in calls: decoded message length too large: "),
        ("flood", "Broke the protocol in calls: message flood: "),
        (
            "items-without-credit",
            "Broke the protocol in calls: tool t sent items beyond its credit.",
        ),
    ] {
        let scene = Scene::new(&raw(mode)).await;
        let outcome = scene.call("t", json!({})).await;
        assert_eq!(outcome.failed(), ("WorkerCrashed", "protocol_error"), "{mode}");
        assert!(outcome.error.starts_with(what), "{}", outcome.error);
        scene.daemon.death("rogue", "protocol_error").await;
        scene.daemon.serving("rogue").await;
        scene.end().await;
    }
}

/// A tool that reports progress without end breaks the protocol, too (20,000 reports
/// within a second); its neighbours' calls go through meanwhile (the bystander's).
/// One that reports often is no flood.
#[tokio::test]
async fn a_progress_flood_is_a_breach_and_hurts_nobody() {
    // On a starved machine it may take long until a second is full of reports: not the
    // watchdog is what is tried here.
    let patient = QUICK.replace("[timeouts]", "[timeouts]\nping = \"60s\"");
    let scene = Scene::new(&patient).await;
    let outcome = scene.call("count", json!({"n": 2000})).await;
    assert_eq!((outcome.items.len(), outcome.clone().unwrap()), (2000, json!(2000)));
    // A tool that reports in a loop does no harm: its SDK sends some of it.
    scene.call("flood_progress", json!({"n": 2000})).await.unwrap();
    assert_eq!(scene.daemon.health("rogue").await.generation, 1, "it lives");
    scene.end().await;
    let scene = Scene::new(&format!("args = [\"--raw\", \"progress-flood\"]\n{patient}")).await;
    let outcome = scene.call("t", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "protocol_error"), "{}", outcome.error);
    let start = "Broke the protocol in calls: message flood: 20000 frames in ";
    assert!(outcome.error.starts_with(start), "{}", outcome.error);
    scene.daemon.death("rogue", "protocol_error").await;
    scene.daemon.serving("rogue").await;
    scene.end().await;
}

/// Fault 26.
#[tokio::test]
async fn output_is_drained_cut_and_cleaned() {
    // As long as it takes: how fast it is drained is not what is asked here.
    let scene = Scene::new(&QUICK.replace("call = \"60s\"", "call = \"10m\"")).await;
    let before = resident(scene.daemon.pid());
    scene.call("print", json!({"n": 128})).await.unwrap();
    let grown = resident(scene.daemon.pid()).saturating_sub(before);
    assert!(grown < 32 << 20, "memory is bounded: grew by {grown}");
    let cut = |lines: &[stockade_proto::v1::LogLine]| {
        lines.iter().any(|line| line.text.ends_with("… (cut)") && line.text.len() < 9000)
    };
    assert!(cut(&scene.daemon.logs("rogue").await));
    scene.call("junk", json!({})).await.unwrap();
    scene.call("log", json!({"text": "a warning"})).await.unwrap();
    let logs = stockade_tests::eventually("the lines arrive", || async {
        let logs = scene.daemon.logs("rogue").await;
        let warned = logs.iter().any(|l| l.level == "warn" && l.text == "a warning");
        (warned && logs.iter().any(|l| l.text.contains("plain a warning"))).then_some(logs)
    })
    .await;
    assert!(logs.iter().all(|line| !line.text.chars().any(char::is_control)), "no ANSI, no NUL");
    scene.end().await;
}

fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("statm");
    statm.split_whitespace().nth(1).expect("rss").parse::<u64>().expect("pages") * 4096
}

/// Fault 27.
#[tokio::test]
async fn closed_descriptors_are_noticed() {
    let scene = Scene::new(QUICK).await;
    scene.call("close_stdout", json!({})).await.unwrap();
    scene.call("pid", json!({})).await.unwrap();
    // Only the host channel: nothing depends on it.
    let outcome =
        scene.daemon.call_with("rogue", "close_channels", json!({"n": 4}), &[], 300).await;
    assert_eq!(outcome.failed(), ("TimeoutError", ""));
    scene.daemon.admin().restart_plugin(scene.daemon.action("rogue")).await.expect("restart");
    scene.daemon.serving("rogue").await;
    // The calls channel: the SDK ends the process, or it is killed for it.
    for n in [3, 0] {
        let outcome = scene.call("close_channels", json!({"n": n})).await;
        assert_eq!(outcome.failed().0, "WorkerCrashed");
        assert!(["clean_exit", "protocol_error"].contains(&&*outcome.cause), "{outcome:?}");
        scene.daemon.serving("rogue").await;
    }
    scene.end().await;
}

/// Fault 28.
#[tokio::test]
async fn stray_answers_are_ignored() {
    let scene = Scene::new(&raw("stray")).await;
    for _ in 0..3 {
        assert_eq!(scene.call("t", json!({})).await.unwrap(), 42);
    }
    assert_eq!(scene.daemon.health("rogue").await.generation, 1);
    scene.end().await;
}

/// Fault 29.
#[tokio::test]
async fn results_that_are_wrong_are_told_and_kill_nothing() {
    for (mode, what) in [
        ("not-json", "Tool t returned what is not JSON: "),
        ("wrong-schema", "Tool t returned what its output schema forbids: "),
    ] {
        let scene = Scene::new(&raw(mode)).await;
        let outcome = scene.call("t", json!({})).await;
        assert_eq!(outcome.failed(), ("InvalidResult", ""), "{mode}");
        assert!(outcome.error.starts_with(what), "{}", outcome.error);
        let health = scene.daemon.health("rogue").await;
        assert_eq!((health.generation, health.error_count), (1, 1));
        scene.end().await;
    }
    let daemon = Options::new()
        .bystander()
        .rogue("rogue", QUICK)
        .config("max_result = \"1MiB\"")
        .start()
        .await;
    daemon.serving("rogue").await;
    let outcome = daemon.call("rogue", "huge", json!({"n": 10})).await;
    assert_eq!(outcome.failed(), ("InvalidResult", ""));
    assert!(outcome.error.contains("more than max_result allows"), "{}", outcome.error);
    assert_eq!(daemon.serving("rogue").await.generation, 1);
    daemon.stop().await;
}

/// A notice of death that no death follows is a breach, and is killed for.
#[tokio::test]
async fn a_false_notice_is_a_breach() {
    let scene = Scene::new(QUICK).await;
    let outcome = scene.call("false_notice", json!({})).await;
    // The caller is told at once what the notice said.
    assert_eq!(outcome.failed(), ("WorkerCrashed", "crash"));
    let reason = scene.recovers_from("protocol_error").await;
    assert!(reason.starts_with("Broke the protocol in dying: "), "{reason}");
    scene.end().await;
}
