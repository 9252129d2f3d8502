//! Identity is the channel: whatever a process says of itself, it is whose channel
//! it is.

use serde_json::json;
use stockade_proto::v1::{CallRequest, ListProvenanceRequest};
use stockade_tests::{Options, eventually};

use crate::actor::{ALL, answer, asking, data};

/// The forger may everything that the victim may: what stops it is whose channel it
/// is, not a permission that it lacks.
#[tokio::test]
async fn a_forged_identity_changes_nothing() {
    let daemon = Options::new()
        .rogue("victim", &asking(&ALL, "concurrency = 4\nargs = [\"--hear\", \"*\"]"))
        .rogue("forger", &asking(&ALL, "args = [\"--raw\", \"forge\"]"))
        .start()
        .await;
    daemon.serving("victim").await;
    daemon.serving("forger").await;
    answer(&daemon, "victim", json!({"op": "set", "key": "secret", "value": "theirs"})).await;
    // A call of the victim is in flight, with a workspace of its own.
    let mut client = daemon.tools();
    let sleeping = tokio::spawn(async move {
        let request = CallRequest {
            plugin: "victim".into(),
            tool: "wait".into(),
            args: "{\"n\": 600000}".into(),
            workspace: "theirs".into(),
            ..CallRequest::default()
        };
        client.call(request).await.map(drop)
    });
    daemon.until("victim", |health| health.in_flight > 0).await;
    let report = daemon.call("forger", "forge", json!({})).await.unwrap();
    assert!(daemon.health("victim").await.in_flight > 0, "it was in flight all the time");
    let tries = report.as_object().expect("report");
    let mut seen = std::collections::BTreeMap::new();
    for (what, got) in tries {
        let (kind, _) = what.split_once(':').unwrap_or((what.as_str(), ""));
        *seen.entry(kind).or_insert(0) += 1;
        let right = match kind {
            // Its own namespace, in which there is nothing yet.
            "read" => "nothing",
            "list" => "",
            "foreign" | "operators" => "refused",
            // It may write: into its own namespace.
            "write" | "flag" => "written",
            "emit" => "emitted",
            "its own value" => "read \"forged\"",
            other => panic!("an attempt of an unknown kind: {other}"),
        };
        assert_eq!(got, right, "{what}");
    }
    let kinds: Vec<(&str, i32)> = seen.into_iter().collect();
    let all = [
        ("emit", 5),
        ("flag", 4),
        ("foreign", 6),
        ("its own value", 1),
        ("list", 1),
        ("operators", 1),
        ("read", 10),
        ("write", 10),
    ];
    assert_eq!(kinds, all, "every attempt was made: {report}");
    // The control: the victim's value is there, and as it was.
    assert_eq!(answer(&daemon, "victim", json!({"op": "get", "key": "secret"})).await, "theirs");
    // Who did what is told by the channel, too: never the victim, nor its call, nor
    // its call's workspace.
    let records = async |plugin: &str| {
        let request = ListProvenanceRequest { plugin: plugin.to_owned(), ..Default::default() };
        let reply = data(&daemon).list_provenance(request).await.expect("provenance");
        reply.into_inner().records
    };
    let victims = records("victim").await;
    assert_eq!(victims.len(), 1, "only what it did itself: {victims:?}");
    assert_eq!(victims[0].key, "plugin:victim:secret");
    let forgers = records("forger").await;
    assert_eq!(forgers.len(), 14, "ten values and four flags: {forgers:?}");
    for record in &forgers {
        assert_eq!(record.actor, "plugin:forger");
        assert_ne!(record.workspace, "theirs", "{record:?}");
        assert!(record.key.contains("forger") || record.key.contains("session/1"), "{record:?}");
    }
    let calls: std::collections::BTreeSet<&str> =
        forgers.iter().map(|record| record.call_id.as_str()).filter(|id| !id.is_empty()).collect();
    assert!(calls.len() <= 1, "its own call is the only one that it can be: {forgers:?}");
    // Events say who emitted them.
    let heard = eventually("five events are heard", || async {
        let heard = daemon.call("victim", "heard", json!({})).await.unwrap();
        let heard: Vec<String> = serde_json::from_value(heard).expect("texts");
        (heard.len() >= 5).then_some(heard)
    })
    .await;
    for event in &heard {
        assert!(event.starts_with("plugin:forger:said plugin:forger "), "{heard:?}");
    }
    sleeping.abort();
    daemon.stop().await;
}
