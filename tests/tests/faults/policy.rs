//! Policy on real processes (faults 35 to 37, on_error). The arithmetic of
//! restarts is tested on paused time in the supervisor's lifecycle room.

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Options, eventually, manifest};

use crate::scene::{QUICK, Scene};

/// Fault 35, with fewer: start tokens hold while many crash together.
#[tokio::test]
async fn plugins_that_crash_together_come_back_a_few_at_a_time() {
    let mut options = Options::new().bystander().config("max_starting = 2");
    for n in 0..20 {
        options = options.rogue(&format!("p{n}"), QUICK);
    }
    let daemon = options.start().await;
    for n in 0..20 {
        daemon.serving(&format!("p{n}")).await;
    }
    for plugin in daemon.list().await.plugins {
        if plugin.name != "good" {
            unsafe { libc::kill(plugin.pid.expect("pid") as i32, libc::SIGKILL) };
        }
    }
    eventually("all serve again", || async {
        let list = daemon.list().await;
        let back = |plugin: &stockade_proto::v1::PluginHealth| {
            plugin.name == "good"
                || (plugin.restarts == 1 && plugin.state() == PluginState::Initialized)
        };
        list.plugins.iter().all(back).then_some(())
    })
    .await;
    daemon.stop().await;
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
