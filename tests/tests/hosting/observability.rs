//! The admin endpoints: the sources' shapes, by HTTP, gRPC and in the command.

use serde_json::{Value, json};
use stockade_tests::{Daemon, Options, curl};

use crate::actor::asking;

async fn get(daemon: &Daemon, path: &str) -> (u16, Value) {
    let socket = daemon.socket.display().to_string();
    let url = format!("http://localhost{path}");
    let (status, text) = curl(&["--unix-socket", &socket, &url]).await;
    (status, serde_json::from_str(&text).unwrap_or_default())
}

async fn post(daemon: &Daemon, path: &str) -> (u16, Value) {
    let socket = daemon.socket.display().to_string();
    let url = format!("http://localhost{path}");
    let (status, text) = curl(&["-X", "POST", "--unix-socket", &socket, &url]).await;
    (status, serde_json::from_str(&text).unwrap_or_default())
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
}

#[tokio::test]
async fn the_admin_endpoints_have_the_sources_shapes() {
    let permissions = ["behavior:extend_conditions", "behavior:extend_effects"];
    let daemon = Options::new()
        .port()
        .rogue("b", &asking(&permissions, "args = [\"--extend\", \"\"]"))
        .start()
        .await;
    daemon.serving("b").await;
    for n in 0..12 {
        let tool = if n < 4 { "pid" } else { "raise" };
        daemon.call("b", tool, json!({})).await;
        daemon.serving("b").await;
    }
    let (status, list) = get(&daemon, "/admin/plugins/list").await;
    assert_eq!(status, 200);
    assert_eq!(keys(&list), ["total", "feature_plugins", "route_plugins"]);
    assert_eq!(
        list["feature_plugins"][0],
        json!({"id": "b", "name": "b", "version": "1.2.3", "kind": "local", "enabled": true})
    );
    let (_, all) = get(&daemon, "/admin/plugins/metrics").await;
    assert_eq!(
        keys(&all["summary"]),
        [
            "total_plugins",
            "total_requests",
            "total_errors",
            "overall_error_rate",
            "unhealthy_plugins",
            "unhealthy_count"
        ]
    );
    assert_eq!(all["summary"]["unhealthy_plugins"], json!(["b"]));
    let (status, one) = get(&daemon, "/admin/plugins/metrics/b").await;
    assert_eq!(status, 200);
    assert_eq!((&one["requests"]["total"], &one["requests"]["errors"]), (&json!(12), &json!(8)));
    assert!(
        one["requests"]["p99"].as_f64() > Some(0.0) && one["requests"]["last_request"].is_string()
    );
    assert_eq!(keys(&one["health"]), ["is_healthy", "last_check", "recent_errors"]);
    assert_eq!(
        keys(&one["health"]["recent_errors"][0]),
        ["timestamp", "error_type", "error_message", "context"]
    );
    assert_eq!(one["health"]["recent_errors"][0]["context"], "tool raise");
    let (status, none) = get(&daemon, "/admin/plugins/metrics/x").await;
    assert_eq!((status, none), (404, json!({"detail": "Metrics not found for plugin 'x'"})));
    let (_, health) = get(&daemon, "/admin/plugins/health").await;
    assert_eq!(health["overall_healthy"], false);
    assert_eq!(
        keys(&health["health_status"]["b"]),
        [
            "is_healthy",
            "last_check",
            "error_count",
            "request_error_rate",
            "condition_failure_rate",
            "effect_failure_rate"
        ]
    );
    let (_, extensions) = get(&daemon, "/admin/plugins/behavior-extensions").await;
    assert_eq!(extensions["conditions"]["total"], 5);
    assert_eq!(
        keys(&extensions["conditions"]["list"][0]),
        ["condition_id", "plugin_id", "description", "required_context"]
    );
    let (status, details) = get(&daemon, "/admin/plugins/b/details").await;
    assert_eq!(status, 200);
    for key in [
        "plugin_id",
        "name",
        "version",
        "description",
        "author",
        "kind",
        "enabled",
        "permissions",
        "dependencies",
        "metrics",
        "behavior_extensions",
    ] {
        assert!(details.get(key).is_some(), "{key}: {details}");
    }
    assert_eq!(get(&daemon, "/admin/plugins/x/details").await.0, 404);
    let (_, reset) = post(&daemon, "/admin/plugins/metrics/reset?plugin_id=b").await;
    assert_eq!(reset, json!({"status": "ok", "message": "Metrics reset for plugin 'b'"}));
    assert_eq!(get(&daemon, "/admin/plugins/metrics/b").await.1["requests"]["total"], 0);
    let (_, reset) = post(&daemon, "/admin/plugins/metrics/reset").await;
    assert_eq!(reset["message"], "All plugin metrics reset");
    assert_eq!(post(&daemon, "/admin/plugins/metrics/reset?plugin_id=x").await.0, 404);
    let (_, text, _) = daemon.cli(&["metrics"]).await;
    assert!(text.contains("HEALTHY"), "{text}");
    // Not by the port.
    let base = format!("http://{}", daemon.address().await);
    for path in
        ["/admin/plugins/list", "/v1/kv/b", "/v1/permissions", "/v1/workspaces", "/v1/provenance"]
    {
        assert_eq!(curl(&[&format!("{base}{path}")]).await.0, 403, "{path}");
        assert_eq!(get(&daemon, path).await.0, 200, "{path}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_plugins_own_metrics_are_shown_and_bounded() {
    let daemon = Options::new().rogue("m", "").config("[quota]\nseries = 2").start().await;
    daemon.serving("m").await;
    for (name, value) in [("seen", 2.0), ("seen", 3.0), ("other", 1.0)] {
        let args = json!({"op": "counter", "key": name, "value": value});
        daemon.call("m", "host", args).await.unwrap();
    }
    let third =
        daemon.call("m", "host", json!({"op": "counter", "key": "third", "value": 1})).await;
    assert_eq!(third.failed().0, "QuotaExceeded");
    assert!(third.error.contains("quota.series"), "{}", third.error);
    let odd = daemon.call("m", "host", json!({"op": "counter", "key": "a b", "value": 1})).await;
    assert_eq!(odd.failed().0, "InvalidArgument");
    let (_, one) = get(&daemon, "/admin/plugins/metrics/m").await;
    let own: Vec<_> = one["custom"]
        .as_array()
        .expect("list")
        .iter()
        .map(|one| (one["name"].clone(), one["value"].clone()))
        .collect();
    assert_eq!(own, [(json!("plugin_m_other"), json!(1.0)), (json!("plugin_m_seen"), json!(5.0))]);
    daemon.stop().await;
}

#[tokio::test]
async fn the_store_is_asked_by_http_too() {
    let daemon = Options::new().rogue("m", &asking(&["kv:read"], "")).start().await;
    daemon.serving("m").await;
    let socket = daemon.socket.display().to_string();
    let put = async |path: &str, body: &str| {
        let url = format!("http://localhost{path}");
        curl(&["-X", "PUT", "-d", body, "--unix-socket", &socket, &url]).await.0
    };
    assert_eq!(put("/v1/kv/m/a/b:c", "{\"x\": 1}").await, 204);
    assert_eq!(put("/v1/kv/m/bad", "{").await, 422);
    assert_eq!(put("/v1/kv/nobody/a", "1").await, 404);
    let (status, value) = get(&daemon, "/v1/kv/m/a/b:c").await;
    assert_eq!((status, &value["value"]), (200, &json!({"x": 1})));
    assert_eq!(get(&daemon, "/v1/kv/m/none").await.0, 404);
    assert_eq!(get(&daemon, "/v1/kv/m?values=true").await.1["total"], 1);
    assert_eq!(put("/v1/workspaces/w", "{\"behavior\": {\"enabledPlugins\": []}}").await, 200);
    // What would be ignored, and so enable every plugin, is refused.
    let answered = get(&daemon, "/v1/workspaces/w").await.1;
    assert_eq!(answered["enabled_plugins"], json!([]));
    let misread = ["{\"enabledPlugins\": []}", "{\"behavior\": {\"enabled_plugins\": []}}", ""];
    for body in misread.into_iter().chain([&*answered.to_string()]) {
        assert_eq!(put("/v1/workspaces/w", body).await, 422, "{body}");
    }
    assert_eq!(get(&daemon, "/v1/workspaces/w").await.1, answered);
    let (_, records) = get(&daemon, "/v1/provenance?key=plugin:m:a/b:c").await;
    assert_eq!(records["records"][0]["operation"], "kv.set");
    assert_eq!(get(&daemon, "/v1/plugins/m/permissions").await.1["granted"], json!(["kv:read"]));
    daemon.stop().await;
}
