//! Identity is the channel: whatever a process says of itself, it is whose channel
//! it is.

use serde_json::{Value, json};
use stockade_tests::Options;

use crate::actor::{ALL, answer, asking};

#[tokio::test]
async fn a_forged_identity_changes_nothing() {
    let daemon = Options::new()
        .rogue("victim", &asking(&ALL, "concurrency = 4"))
        .rogue("forger", &asking(&["kv:read"], "args = [\"--raw\", \"forge\"]"))
        .start()
        .await;
    daemon.serving("victim").await;
    daemon.serving("forger").await;
    answer(&daemon, "victim", json!({"op": "set", "key": "secret", "value": "theirs"})).await;
    // A call of the victim is in flight, with a workspace of its own.
    let sleeping = {
        let client = daemon.client();
        tokio::spawn(async move { client.call("victim", "sleep", json!({"n": 2000})).await })
    };
    daemon.until("victim", |health| health.in_flight > 0).await;
    let report = daemon.call("forger", "forge", json!({})).await.unwrap();
    let tries = report.as_object().expect("report");
    assert!(tries.len() >= 6, "{report}");
    for (what, got) in tries {
        let fine = got == "denied" || got == "nothing" || got == "refused";
        assert!(fine, "{what}: {got}");
    }
    assert_eq!(answer(&daemon, "victim", json!({"op": "get", "key": "secret"})).await, "theirs");
    let (_, text, _) = daemon.cli(&["provenance", "--plugin", "victim", "-o", "json"]).await;
    let records: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(records.as_array().expect("list").len(), 1, "only what it did itself: {text}");
    sleeping.await.expect("sleep");
    daemon.stop().await;
}
