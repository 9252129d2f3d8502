//! Keys and values: what is kept, for how long, how much, and whose it is.

use serde_json::{Value, json};
use stockade_proto::v1::{ListValuesRequest, data_client::DataClient};
use stockade_tests::Options;

use crate::actor::{self, answer, ask, asking, op, provenance, refused, with_me};

#[tokio::test]
async fn values_are_set_read_listed_swapped_and_deleted() {
    let daemon = with_me().await;
    assert_eq!(op(&daemon, "get", "a", Value::Null).await, Value::Null);
    op(&daemon, "set", "a", json!({"n": [1, "ü", null]})).await;
    assert_eq!(op(&daemon, "get", "a", Value::Null).await, json!({"n": [1, "ü", null]}));
    assert_eq!(op(&daemon, "get", "plugin:me:a", Value::Null).await["n"][0], 1, "its full name");
    op(&daemon, "set_bytes", "blob", json!(70_000)).await;
    assert_eq!(op(&daemon, "get_bytes", "blob", Value::Null).await, 70_000);
    for n in 0..5 {
        op(&daemon, "set", &format!("p:{n}"), json!(n)).await;
    }
    let listed = op(&daemon, "list", "p:", json!("p:2")).await;
    assert_eq!(listed, json!({"keys": ["p:3", "p:4"], "more": false}));
    let cas = |expected: Value, value: Value| json!({"op": "cas", "key": "leader", "expected": expected, "value": value});
    assert_eq!(answer(&daemon, "me", cas(Value::Null, json!("x"))).await, true, "was absent");
    assert_eq!(answer(&daemon, "me", cas(Value::Null, json!("y"))).await, false);
    assert_eq!(answer(&daemon, "me", cas(json!("x"), json!("y"))).await, true);
    assert_eq!(answer(&daemon, "me", cas(json!("x"), json!("z"))).await, false);
    assert_eq!(op(&daemon, "get", "leader", Value::Null).await, "y");
    assert_eq!(answer(&daemon, "me", cas(json!("y"), Value::Null)).await, true, "deletes");
    assert_eq!(op(&daemon, "get", "leader", Value::Null).await, Value::Null);
    assert_eq!(op(&daemon, "delete", "a", Value::Null).await, true);
    assert_eq!(op(&daemon, "delete", "a", Value::Null).await, false);
    daemon.stop().await;
}

#[tokio::test]
async fn many_swaps_at_once_lose_none() {
    let options = asking(&["kv:read", "kv:write"], "concurrency = 8");
    let daemon = Options::new().alone().rogue("me", &options).start().await;
    daemon.serving("me").await;
    op(&daemon, "set", "n", json!(0)).await;
    let adders = (0..8).map(|_| {
        let client = daemon.client();
        tokio::spawn(async move {
            let mut added = 0;
            while added < 10 {
                let now = op(&client, "get", "n", Value::Null).await;
                let next = json!(now.as_i64().expect("number") + 1);
                let swap = json!({"op": "cas", "key": "n", "expected": now, "value": next});
                added += i32::from(answer(&client, "me", swap).await == true);
            }
        })
    });
    for adder in adders.collect::<Vec<_>>() {
        adder.await.expect("adder");
    }
    assert_eq!(op(&daemon, "get", "n", Value::Null).await, 80);
    daemon.stop().await;
}

#[tokio::test]
async fn a_value_is_gone_after_its_time() {
    let daemon = with_me().await;
    let set = json!({"op": "set", "key": "short", "value": 1, "ttl_ms": 300});
    answer(&daemon, "me", set).await;
    let long = json!({"op": "set", "key": "long", "value": 2, "ttl_ms": 3_600_000});
    answer(&daemon, "me", long).await;
    stockade_tests::eventually("the key expires", || async {
        (op(&daemon, "get", "short", Value::Null).await == Value::Null).then_some(())
    })
    .await;
    assert_eq!(op(&daemon, "list", "", json!("")).await["keys"], json!(["long"]));
    assert_eq!(op(&daemon, "delete", "short", Value::Null).await, false, "it was not there");
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_stored_outlives_the_process_and_the_daemon() {
    let daemon = with_me().await;
    op(&daemon, "set", "kept", json!("yes")).await;
    daemon.call("me", "abort", json!({})).await;
    daemon.until("me", |health| health.generation >= 2 && health.restarts > 0).await;
    daemon.serving("me").await;
    assert_eq!(op(&daemon, "get", "kept", Value::Null).await, "yes");
    let folder = daemon.kill().await;
    let daemon = Options::new().rogue("me", &asking(&actor::ALL, "")).start_in(folder).await;
    daemon.serving("me").await;
    assert_eq!(op(&daemon, "get", "kept", Value::Null).await, "yes");
    let records = provenance(&daemon, "plugin:me:kept").await;
    assert_eq!(records.len(), 1, "{records:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn quotas_bound_keys_bytes_values_and_rates() {
    let daemon = Options::new()
        .rogue("me", &asking(&actor::ALL, ""))
        .rogue("other", &asking(&actor::ALL, ""))
        .config("[quota]\nkeys = 3\nbytes = \"2KiB\"\nvalue = \"1KiB\"")
        .config("[plugin.other.quota]\nwrites = 5\nkeys = 1000")
        .start()
        .await;
    daemon.serving("me").await;
    daemon.serving("other").await;
    let set = |key: &str, size: usize| json!({"op": "set", "key": key, "value": "x".repeat(size)});
    let (kind, text) = refused(&daemon, "me", set("large", 1025)).await;
    assert_eq!(kind, "QuotaExceeded");
    assert!(text.contains("quota.value"), "{text}");
    for key in ["a", "b", "c"] {
        answer(&daemon, "me", set(key, 600)).await;
    }
    let (_, text) = refused(&daemon, "me", set("d", 1)).await;
    assert!(text.contains("4 keys") && text.contains("quota.keys"), "{text}");
    let (_, text) = refused(&daemon, "me", set("a", 1020)).await;
    assert!(text.contains("quota.bytes"), "{text}");
    answer(&daemon, "me", set("a", 1)).await;
    answer(&daemon, "me", json!({"op": "delete", "key": "b"})).await;
    answer(&daemon, "me", set("d", 1)).await;
    // What has expired makes room.
    let short = json!({"op": "set", "key": "c", "value": 1, "ttl_ms": 1});
    answer(&daemon, "me", short).await;
    stockade_tests::eventually("room", || async {
        ask(&daemon, "me", set("e", 1)).await.ok.then_some(())
    })
    .await;
    let mut slowed = false;
    for n in 0..50 {
        let outcome = ask(&daemon, "other", set(&format!("k{n}"), 1)).await;
        slowed |= !outcome.ok && outcome.error.contains("quota.writes");
    }
    assert!(slowed, "five writes a second are allowed");
    let (_, text, _) = daemon.cli(&["permissions", "other", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&text).expect("JSON");
    assert!(told["quota"]["refused"].as_u64() > Some(0), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn names_that_are_not_the_plugins_own_are_refused_and_told() {
    let daemon = Options::new()
        .rogue("me", &asking(&actor::ALL, ""))
        .rogue("other", &asking(&actor::ALL, ""))
        .start()
        .await;
    daemon.serving("me").await;
    daemon.serving("other").await;
    answer(&daemon, "other", json!({"op": "set", "key": "secret", "value": "theirs"})).await;
    let foreign = [
        "plugin:other:secret",
        "Plugin:other:secret",
        "plugin/other/secret",
        "plugin:me:plugin:other:secret",
        "plugin:other",
        "PLUGIN:ME:x",
    ];
    let invalid = [
        "plugin::secret",
        "../other/secret",
        "a//b",
        "plugin:me:",
        ":",
        "a b",
        "рlugin:other:secret",
        "plugin\u{ff1a}other:secret",
        "plugin:\u{200b}other:secret",
        "x\u{2f}\u{2e}\u{2e}/y",
        "a\\b",
        "a\0b",
        "",
    ];
    for (kind, names) in [("PermissionDenied", &foreign[..]), ("InvalidArgument", &invalid[..])] {
        for name in names {
            for op in ["get", "set", "delete", "cas", "emit"] {
                let args = json!({"op": op, "key": name, "value": 1});
                let refused = refused(&daemon, "me", args).await;
                assert_eq!(refused.0, kind, "{op} {name:?}: {}", refused.1);
            }
        }
    }
    let (kind, _) = refused(&daemon, "me", json!({"op": "list", "key": "plugin:other:"})).await;
    assert_eq!(kind, "PermissionDenied");
    let theirs = answer(&daemon, "other", json!({"op": "get", "key": "secret"})).await;
    assert_eq!(theirs, "theirs");
    assert_eq!(
        op(&daemon, "get", "secret", Value::Null).await,
        Value::Null,
        "its own is not there"
    );
    let (_, text, _) = daemon.cli(&["events", "-o", "jsonl"]).await;
    assert!(text.contains("is not in the namespace of plugin 'me'"), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn operators_read_change_and_export_what_is_stored() {
    let daemon = with_me().await;
    op(&daemon, "set", "a:1", json!({"level": 3})).await;
    op(&daemon, "set_bytes", "b", json!(3)).await;
    let run = async |args: &[&str]| daemon.cli(args).await;
    let (code, text, _) = run(&["kv", "get", "me", "a:1"]).await;
    assert_eq!((code, text.trim()), (0, "{\"level\":3}"));
    let (code, _, error) = run(&["kv", "get", "me", "nothing"]).await;
    assert_eq!(code, 4);
    assert!(error.contains("has no key nothing"), "{error}");
    let (code, _, error) = run(&["kv", "set", "me", "a:2", "plain text", "--ttl", "1h"]).await;
    assert_eq!(code, 0, "{error}");
    assert_eq!(op(&daemon, "get", "a:2", Value::Null).await, "plain text");
    assert_eq!(run(&["kv", "set", "mee", "x", "1"]).await.0, 4, "no such plugin");
    let (_, text, _) = run(&["kv", "list", "me", "--prefix", "a:", "-o", "name"]).await;
    assert_eq!(text, "a:1\na:2\n");
    let (_, text, _) = run(&["kv", "export"]).await;
    let rows: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("JSON line")).collect();
    assert_eq!(rows.len(), 3);
    assert_eq!(rows[0]["value"], json!({"level": 3}));
    assert_eq!((&rows[2]["value"], &rows[2]["binary"]), (&json!("BwcH"), &json!(true)));
    assert_eq!(run(&["kv", "delete", "me", "a:2"]).await.0, 0);
    let (_, text, _) = run(&["provenance", "--key", "plugin:me:a:2", "-o", "json"]).await;
    let records: Value = serde_json::from_str(&text).expect("JSON");
    let did: Vec<&str> =
        records.as_array().expect("list").iter().filter_map(|r| r["operation"].as_str()).collect();
    assert_eq!(did, ["kv.delete", "kv.set"], "newest first");
    assert!(records[0]["actor"].as_str().expect("actor").starts_with("operator "), "{text}");
    let (_, text, _) = run(&["provenance", "--plugin", "me", "-o", "json"]).await;
    let own: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(own[0]["generation"], 1);
    assert!(own[0]["call_id"].as_str().expect("call").starts_with("me-1-"), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn records_of_changes_are_bounded() {
    let daemon = Options::new()
        .rogue("me", &asking(&["kv:write"], ""))
        .config("provenance_records = 20")
        .start()
        .await;
    daemon.serving("me").await;
    for n in 0..200 {
        op(&daemon, "set", "k", json!(n)).await;
    }
    let records = provenance(&daemon, "").await;
    assert!((20..=90).contains(&records.len()), "{}", records.len());
    daemon.stop().await;
}

/// A message travels in a header: a long one must not cost the channel.
#[tokio::test]
async fn long_names_and_what_nobody_can_read_again_are_refused_and_nothing_else_breaks() {
    let daemon = with_me().await;
    let (kind, text) =
        refused(&daemon, "me", json!({"op": "get", "key": "a".repeat(200_000)})).await;
    assert_eq!(kind, "InvalidArgument");
    assert!(text.len() < 1100, "{}", text.len());
    let (kind, _) = refused(&daemon, "me", json!({"op": "get", "key": "é".repeat(100_000)})).await;
    assert_eq!(kind, "InvalidArgument");
    op(&daemon, "set", "still", json!("there")).await;
    assert_eq!(op(&daemon, "get", "still", Value::Null).await, "there");
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    for value in ["1e999", &deep] {
        let (code, _, error) = daemon.cli(&["kv", "set", "me", "odd", value, "--binary"]).await;
        assert_eq!(code, 0, "bytes are bytes: {error}");
        let url = "http://localhost/v1/kv/me/odd";
        let socket = daemon.socket.display().to_string();
        let (status, _) =
            stockade_tests::curl(&["-X", "PUT", "-d", value, "--unix-socket", &socket, url]).await;
        assert_eq!(status, 422);
    }
    daemon.stop().await;
}

/// A page ends by its bytes long before its rows: an export must not end with it.
#[tokio::test]
async fn an_export_of_large_values_is_whole() {
    let options = asking(&["kv:read", "kv:write"], "");
    let daemon = Options::new().alone().rogue("me", &options).start().await;
    daemon.serving("me").await;
    for n in 0..12 {
        op(&daemon, "set_bytes", &format!("k{n:02}"), json!(1_000_000)).await;
    }
    let mut stream = DataClient::new(daemon.channel())
        .max_decoding_message_size(64 << 20)
        .list_values(ListValuesRequest { plugin: "me".into(), values: true, ..Default::default() })
        .await
        .expect("values")
        .into_inner();
    let mut keys = Vec::new();
    while let Some(value) = stream.message().await.expect("value") {
        assert_eq!(value.data.len(), 1_000_000);
        keys.push(value.key);
    }
    let all: Vec<String> = (0..12).map(|n| format!("k{n:02}")).collect();
    assert_eq!(keys, all);
    daemon.stop().await;
}
