//! Policy on real processes (faults 35 to 37, on_error). The arithmetic of
//! restarts is tested on paused time in the supervisor's lifecycle room.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::json;
use stockade_proto::v1::{PluginHealth, PluginState};
use stockade_tests::{Daemon, Options, PATIENCE, manifest};

use crate::scene::{QUICK, Scene};

/// Fault 35, with fewer: start tokens hold while many crash together.
#[tokio::test]
async fn plugins_that_crash_together_come_back_a_few_at_a_time() {
    let mut options = Options::new().bystander().config("max_starting = 2");
    for n in 0..10 {
        let slow = format!("args = [\"--before\", \"sleep:500\"]\n{QUICK}");
        options = options.rogue(&format!("p{n}"), &slow);
    }
    let daemon = options.start().await;
    let most = starting_at_once(&daemon, 0).await;
    // How many of them had started before `good` served, nobody saw.
    assert!(most <= 2, "at the first start of all: {most}");
    for plugin in daemon.list().await.plugins {
        if plugin.name != "good" {
            unsafe { libc::kill(plugin.pid.expect("pid") as i32, libc::SIGKILL) };
        }
    }
    let most = starting_at_once(&daemon, 1).await;
    assert_eq!(most, 2, "when all had crashed together: as many as may, and no more");
    daemon.stop().await;
}

/// Looks on until all plugins but `good` serve after so many restarts; the most that
/// were seen between the start of their process and their first answer at one moment.
async fn starting_at_once(daemon: &Daemon, restarts: u64) -> usize {
    let (mut most, mut last) = (0, BTreeSet::new());
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        let plugins = daemon.list().await.plugins;
        let starting = plugins.iter().filter(|plugin| plugin.substate == "STARTING");
        // Before it enters the SDK, which is before it can answer, the rogue has a
        // single thread.
        let unanswered = |pid: &u32| {
            std::fs::read_dir(format!("/proc/{pid}/task")).is_ok_and(|tasks| tasks.count() == 1)
        };
        let now: BTreeSet<u32> =
            starting.filter_map(|plugin| plugin.pid).filter(unanswered).collect();
        // The list is not of one moment; who is in two of them was starting in between.
        most = most.max(now.intersection(&last).count());
        last = now;
        let back = |plugin: &PluginHealth| {
            plugin.name == "good"
                || (plugin.restarts == restarts && plugin.state() == PluginState::Initialized)
        };
        if plugins.len() == 11 && plugins.iter().all(back) {
            return most;
        }
        assert!(Instant::now() < deadline, "they never serve again: {plugins:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Fault 36.
#[tokio::test]
async fn a_missing_model_is_unavailable_and_heals_when_it_appears() {
    let more =
        "[requires]\nmodels = { detector = \"models/ball.onnx\" }\ncommands = [\"no-such-cmd\"]";
    let daemon = Options::new().bystander().rogue("rogue", more).start().await;
    let health = daemon.state("rogue", PluginState::Unavailable, "PREFLIGHT_FAILED").await;
    let reason = health.reason.expect("reason");
    let start = "Missing dependencies: no-such-cmd, detector (path: models/ball.onnx). To fix: ";
    assert!(reason.starts_with(start), "{reason}");
    assert_eq!(health.missing, ["no-such-cmd", "detector (path: models/ball.onnx)"]);
    assert_eq!((health.restarts, health.error_count, health.generation), (0, 0, 0));
    let outcome = daemon.call("rogue", "pid", json!({})).await;
    assert_eq!(outcome.failed().0, "PluginUnavailable");
    assert!(outcome.error.starts_with("Plugin is UNAVAILABLE: Missing dependencies"));
    assert!(!outcome.delivered && outcome.retry_after_ms > 0);
    // Only the model is needed now; it comes while the daemon runs.
    let more = "[requires]\nmodels = { detector = \"models/ball.onnx\" }";
    daemon.write_plugin("rogue", &manifest("rogue", more));
    daemon.until("rogue", |health| health.missing.len() == 1).await;
    std::fs::create_dir(daemon.directory("rogue").join("models")).expect("models");
    std::fs::write(daemon.directory("rogue").join("models/ball.onnx"), "x").expect("model");
    daemon.serving("rogue").await;
    daemon.stop().await;
}

/// Fault 37.
#[tokio::test]
async fn operators_restarts_are_not_counted() {
    let scene = Scene::new("[restart]\nmax_deaths = 1").await;
    for _ in 0..6 {
        scene.daemon.admin().restart_plugin(scene.daemon.action("rogue")).await.expect("restart");
        scene.daemon.serving("rogue").await;
    }
    let health = scene.daemon.health("rogue").await;
    assert_eq!((health.restarts, health.generation), (0, 7));
    scene.end().await;
}

/// Deviation: an error counts, it does not disable the plugin.
#[tokio::test]
async fn an_error_counts_once_and_the_plugin_goes_on() {
    let scene = Scene::new(QUICK).await;
    let outcome = scene.call("raise", json!({"text": "bad input"})).await;
    assert_eq!(outcome.failed(), ("ValueError", ""));
    assert_eq!(outcome.error, "bad input");
    let outcome = scene.call("panic", json!({"text": "boom"})).await;
    assert_eq!(outcome.failed(), ("Panic", ""));
    assert_eq!(outcome.error, "boom");
    let outcome = scene.call("panic_async", json!({})).await;
    assert_eq!(outcome.failed(), ("Panic", ""));
    let health = scene.daemon.health("rogue").await;
    assert_eq!(health.state(), PluginState::Initialized);
    assert_eq!((health.error_count, health.generation), (3, 1));
    scene.end().await;
}

/// Five errors in a row restart it; a success in between resets the row.
#[tokio::test]
async fn errors_in_a_row_restart_it() {
    let scene = Scene::new(QUICK).await;
    for _ in 0..4 {
        scene.call("raise", json!({"text": "x"})).await;
    }
    scene.call("pid", json!({})).await.unwrap();
    for _ in 0..4 {
        scene.call("raise", json!({"text": "x"})).await;
    }
    assert_eq!(scene.daemon.health("rogue").await.generation, 1);
    scene.call("raise", json!({"text": "the last"})).await;
    let reason = scene.recovers_from("tool_errors").await;
    assert_eq!(reason, "Tools raised 5 errors in a row. Last: ValueError: the last in tool raise.");
    assert_eq!(scene.daemon.health("rogue").await.error_count, 9);
    scene.end().await;
}

/// `on_error = "fail"` is the seeds' strict rule.
#[tokio::test]
async fn the_strict_rule_holds_it_failed_until_restarted() {
    let scene = Scene::new("[restart]\non_error = \"fail\"").await;
    scene.call("raise", json!({"text": "once"})).await;
    let health = scene.daemon.state("rogue", PluginState::Failed, "EXHAUSTED").await;
    assert_eq!(
        health.reason.as_deref(),
        Some("Tool raise raised ValueError: once (restart.on_error = \"fail\").")
    );
    let outcome = scene.call("pid", json!({})).await;
    assert_eq!(outcome.failed().0, "PluginUnavailable");
    scene.daemon.admin().restart_plugin(scene.daemon.action("rogue")).await.expect("restart");
    scene.call("pid", json!({})).await.unwrap();
    scene.end().await;
}

/// Disabled is stronger than stopped, and than reset.
#[tokio::test]
async fn what_is_disabled_stays_down_until_enabled() {
    let scene = Scene::new(QUICK).await;
    let action = || scene.daemon.action("rogue");
    let mut admin = scene.daemon.admin();
    admin.disable_plugin(action()).await.expect("disable");
    scene.daemon.state("rogue", PluginState::Loaded, "DISABLED").await;
    admin.stop_plugin(action()).await.expect("stop");
    admin.start_plugin(action()).await.expect("start");
    admin.reset_plugin(action()).await.expect("reset");
    admin.restart_plugin(action()).await.expect("restart");
    assert_eq!(scene.daemon.health("rogue").await.substate, "DISABLED");
    admin.enable_plugin(action()).await.expect("enable");
    scene.call("pid", json!({})).await.unwrap();
    scene.end().await;
}
