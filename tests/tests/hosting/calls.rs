//! Calls between plugins: permission, deadline, depth, cycles.

use serde_json::{Value, json};
use stockade_tests::Options;

use crate::actor::{answer, asking, refused};

fn call(target: &str, value: Value) -> Value {
    json!({"op": "call", "key": target, "value": value, "mode": "raise"})
}

#[tokio::test]
async fn a_plugin_calls_whom_it_may() {
    let daemon = Options::new()
        .rogue("one", &asking(&["plugin:call:good"], ""))
        .rogue("all", &asking(&["plugin:call"], ""))
        .start()
        .await;
    daemon.serving("one").await;
    daemon.serving("all").await;
    let echoed = answer(&daemon, "one", call("good.echo", json!({"text": "hi"}))).await;
    assert_eq!(echoed["text"], "hi");
    let (kind, text) = refused(&daemon, "one", call("all.echo", json!({"text": "hi"}))).await;
    assert_eq!(kind, "PermissionDenied");
    assert!(text.contains("'plugin:call:all'"), "{text}");
    answer(&daemon, "all", call("one.pid", json!({}))).await;
    // Errors come through as they are.
    let (kind, text) = refused(&daemon, "all", call("good.raise", json!({"text": "no"}))).await;
    assert_eq!((kind.as_str(), text.as_str()), ("ValueError", "no"));
    assert_eq!(refused(&daemon, "all", call("nobody.x", json!({}))).await.0, "PluginNotFound");
    assert_eq!(refused(&daemon, "all", call("good.nothing", json!({}))).await.0, "ToolNotFound");
    let outcome = daemon.call("good", "abort", json!({})).await;
    assert_eq!(outcome.failed().0, "WorkerCrashed");
    assert_eq!(refused(&daemon, "all", call("good.abort", json!({}))).await.0, "WorkerCrashed");
    daemon.stop().await;
}

#[tokio::test]
async fn cycles_and_depth_are_bounded_and_forgetting_the_call_does_not_help() {
    let free = asking(&["plugin:call"], "concurrency = 4");
    let mut options = Options::new();
    for n in 0..12 {
        options = options.rogue(&format!("p{n}"), &free);
    }
    let daemon = options.start().await;
    for n in 0..12 {
        daemon.serving(&format!("p{n}")).await;
    }
    // p0 → p1 → p0
    let back = call("p1.host", call("p0.pid", json!({})));
    let (kind, text) = refused(&daemon, "p0", back).await;
    assert_eq!(kind, "CallCycle");
    assert!(text.contains("p0 -> p1 -> p0"), "{text}");
    let own = refused(&daemon, "p0", call("p0.pid", json!({}))).await;
    assert_eq!(own.0, "CallCycle");
    // The same, with requests that do not say which call they belong to.
    let mut inner = call("p0.pid", json!({}));
    inner["outside"] = json!(true);
    let mut outer = call("p1.host", inner);
    outer["outside"] = json!(true);
    assert_eq!(refused(&daemon, "p0", outer).await.0, "CallCycle");
    // p0 → p1 → … → p11 is too deep; half of it is not.
    let deep = |last: usize| {
        (0..last).rev().fold(call(&format!("p{last}.pid"), json!({})), |inner, n| {
            if n == 0 { inner } else { call(&format!("p{n}.host"), inner) }
        })
    };
    answer(&daemon, "p0", deep(6)).await;
    let (kind, text) = refused(&daemon, "p0", deep(11)).await;
    assert_eq!(kind, "CallCycle");
    assert!(text.contains("plugins deep; 8 are allowed"), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_deadline_is_that_of_the_calling_call() {
    let daemon = Options::new()
        .rogue("caller", &asking(&["plugin:call"], ""))
        .rogue("sleeper", "")
        .start()
        .await;
    daemon.serving("caller").await;
    daemon.serving("sleeper").await;
    let args = call("sleeper.wait", json!({"n": 60_000}));
    let outcome = daemon.call_with("caller", "host", args, &[], 1000).await;
    assert_eq!(outcome.failed().0, "TimeoutError");
    // The inner call was given up with the outer one, and its tool was told so.
    stockade_tests::eventually("the inner call is over", || async {
        let seen = daemon.call("sleeper", "cancelled", json!({})).await;
        (seen.result == true).then_some(())
    })
    .await;
    assert_eq!(daemon.health("sleeper").await.generation, 1, "it is not the sleeper's fault");
    daemon.stop().await;
}
