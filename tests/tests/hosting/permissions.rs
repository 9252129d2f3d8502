//! Who may what: granted, denied, unknown; what a refusal looks like and how it
//! is told.

use serde_json::{Value, json};
use stockade_tests::Options;

use crate::actor::{answer, ask, asking, refused};

#[tokio::test]
async fn a_refusal_looks_as_the_caller_wants_and_always_leaves_a_trace() {
    let daemon =
        Options::new().rogue("bare", "").rogue("me", &asking(&["kv:read"], "")).start().await;
    daemon.serving("bare").await;
    daemon.serving("me").await;
    let get = |mode: &str| json!({"op": "get", "key": "k", "mode": mode});
    let (kind, text) = refused(&daemon, "bare", get("raise")).await;
    assert_eq!(kind, "PermissionDenied");
    assert_eq!(
        text,
        "Plugin 'bare' attempted to use capability 'kv.get' but lacks required permission 'kv:read'"
    );
    for mode in ["", "warn", "silent"] {
        assert_eq!(answer(&daemon, "bare", get(mode)).await, Value::Null, "{mode}");
    }
    let lines = daemon.logs("bare").await;
    let warned = lines.iter().filter(|line| line.text.contains("plugin_permission_denied")).count();
    assert_eq!(warned, 2, "the usual way and warn, not raise and silent: {lines:?}");
    // The empty values of the others.
    for (op, empty) in [
        ("delete", json!(false)),
        ("list", json!({"keys": [], "more": false})),
        ("cas", json!(false)),
        ("entity", Value::Null),
        ("emit", json!(0)),
        ("call", Value::Null),
    ] {
        let key = if op == "entity" { "npc/1" } else { "good.echo" };
        let args = json!({"op": op, "key": key, "value": if op == "list" { json!("") } else { json!({}) }});
        assert_eq!(answer(&daemon, "bare", args).await, empty, "{op}");
    }
    // What was not granted was not done either.
    let (kind, _) =
        refused(&daemon, "me", json!({"op": "set", "key": "k", "value": 1, "mode": "raise"})).await;
    assert_eq!(kind, "PermissionDenied");
    assert_eq!(answer(&daemon, "me", get("raise")).await, Value::Null);
    let (_, text, _) = daemon.cli(&["permissions", "bare", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&text).expect("JSON");
    let of = |name: &str| {
        let all = told["permissions"].as_array().expect("list");
        all.iter().find(|one| one["permission"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(of("kv:read")["refused"], 5, "{text}");
    assert_eq!(of("kv:read")["status"], "not requested");
    let (_, text, _) = daemon.cli(&["events", "-o", "jsonl"]).await;
    assert!(text.contains("plugin_permission_denied: Plugin 'bare' attempted"), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn requested_and_allowed_is_granted_and_the_difference_is_shown() {
    let daemon = Options::new()
        .rogue("me", &asking(&["kv:read", "kv:write", "event:emit", "kv:reed", "db:write"], ""))
        .rogue("free", &asking(&["group:gameplay"], ""))
        .config("[permissions]\nallow = [\"kv:read\", \"kv:write\", \"db:write\"]\ndeny = [\"kv:write\"]")
        .config("[plugin.free.permissions]\nallow = [\"*\"]")
        .start()
        .await;
    daemon.serving("me").await;
    daemon.serving("free").await;
    let (_, text, _) = daemon.cli(&["permissions", "me", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(told["granted"], json!(["db:write", "kv:read"]));
    assert_eq!(told["denied"], json!(["event:emit", "kv:write"]));
    assert_eq!(told["unknown"], json!(["kv:reed"]));
    let (_, text, _) = daemon.cli(&["permissions", "free", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        told["granted"],
        json!(["log:emit", "npc:read", "npc:write", "session:read", "session:write", "world:read"])
    );
    let own = answer(&daemon, "me", json!({"op": "self"})).await;
    assert_eq!(own["permissions"], json!(["db:write", "kv:read"]));
    assert_eq!(own["capabilities"], json!(["kv.read"]));
    assert_eq!(answer(&daemon, "me", json!({"op": "has", "key": "kv:read"})).await, true);
    assert_eq!(answer(&daemon, "me", json!({"op": "has", "key": "kv:write"})).await, false);
    let (kind, _) =
        refused(&daemon, "me", json!({"op": "has", "key": "kv:write", "mode": "raise"})).await;
    assert_eq!(kind, "PermissionDenied");
    let (_, text, _) = daemon.cli(&["describe", "me"]).await;
    assert!(
        text.contains("\"kv:reed\" is unknown and not granted; did you mean `kv:read`?"),
        "{text}"
    );
    assert!(text.contains("\"db:write\" is a powerful one"), "{text}");
    let (_, text, _) = daemon.cli(&["permissions"]).await;
    assert!(text.contains("kv:write") && text.contains("denied"), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_changed_configuration_takes_permissions_away() {
    let daemon = Options::new().rogue("me", &asking(&["kv:read", "kv:write"], "")).start().await;
    daemon.serving("me").await;
    answer(&daemon, "me", json!({"op": "set", "key": "k", "value": 1, "mode": "raise"})).await;
    let config = "[permissions]\ndeny = [\"kv:write\"]\n";
    stockade_tests::write_file(&daemon.root.join("stockade.toml"), config);
    daemon.reload().await;
    daemon.until("me", |health| health.generation >= 2).await;
    daemon.serving("me").await;
    let outcome =
        ask(&daemon, "me", json!({"op": "set", "key": "k", "value": 2, "mode": "raise"})).await;
    assert_eq!(outcome.failed().0, "PermissionDenied");
    assert_eq!(answer(&daemon, "me", json!({"op": "get", "key": "k"})).await, 1);
    daemon.stop().await;
}

#[tokio::test]
async fn a_list_with_what_is_no_permission_is_a_problem_of_the_configuration() {
    let daemon = Options::new().start().await;
    let config =
        "[permissions]\nallow = [\"kv:reed\"]\n[quota]\nkyes = 1\n[remote]\nallow = [\"x\"]\n";
    stockade_tests::write_file(&daemon.root.join("stockade.toml"), config);
    let problems = daemon.reload().await.problems.join("\n");
    for part in ["\"kv:reed\" is no permission", "did you mean `keys`", "is not like \"127.0.0.1\""]
    {
        assert!(problems.contains(part), "{part}: {problems}");
    }
    daemon.stop().await;
}
