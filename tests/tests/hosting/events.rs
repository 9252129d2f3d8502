//! Events: who hears what, and who loses what.

use std::time::Duration;

use serde_json::{Value, json};
use stockade_proto::v1::{EmitEventRequest, WatchPluginEventsRequest};
use stockade_tests::{Client, Options, eventually};

use crate::actor::{ALL, answer, asking, hosting, refused};

fn hearing(pattern: &str) -> String {
    asking(&ALL, &format!("args = [\"--hear\", \"{pattern}\"]\nconcurrency = 4"))
}

async fn heard(client: &Client, plugin: &str, count: usize) -> Vec<String> {
    eventually(&format!("{plugin} hears {count} events"), || async {
        let heard = client.call(plugin, "heard", json!({})).await;
        let list: Vec<String> = serde_json::from_value(heard.result).ok()?;
        (list.len() >= count).then_some(list)
    })
    .await
}

async fn emit(client: &Client, plugin: &str, name: &str) -> Value {
    answer(client, plugin, json!({"op": "emit", "key": name, "value": {"n": 1}})).await
}

#[tokio::test]
async fn handlers_hear_what_they_asked_for_in_order() {
    let daemon = Options::new()
        .rogue("a", &asking(&ALL, ""))
        .rogue("b", &hearing("plugin:a:*"))
        .rogue("c", &hearing("plugin:a:exact"))
        .rogue("deaf", "args = [\"--hear\", \"*\"]")
        .start()
        .await;
    for plugin in ["a", "b", "c", "deaf"] {
        daemon.serving(plugin).await;
    }
    for n in 0..20 {
        assert_eq!(emit(&daemon, "a", &format!("n{n}")).await, 1);
    }
    assert_eq!(emit(&daemon, "a", "exact").await, 2);
    emit(&daemon, "b", "theirs").await;
    let of_b = heard(&daemon, "b", 21).await;
    assert_eq!(of_b[0], "plugin:a:n0 plugin:a ");
    assert_eq!(of_b[20], "plugin:a:exact plugin:a ");
    assert_eq!(heard(&daemon, "c", 1).await, ["plugin:a:exact plugin:a "]);
    assert_eq!(heard(&daemon, "deaf", 0).await, Vec::<String>::new());
    let (_, text, _) = daemon.cli(&["events", "-o", "jsonl"]).await;
    assert!(text.contains("event handler \\\"hear\\\" was not registered: it needs the permission 'event:subscribe'"), "{text}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_failing_a_slow_and_a_dying_handler_hurt_nobody_else() {
    let daemon = Options::new()
        .bystander()
        .rogue("a", &asking(&ALL, ""))
        .rogue("well", &hearing("*"))
        .rogue("ill", &hearing("plugin:a:*"))
        .start()
        .await;
    for plugin in ["a", "well", "ill"] {
        daemon.serving(plugin).await;
    }
    emit(&daemon, "a", "slow").await;
    for _ in 0..3 {
        emit(&daemon, "a", "bad").await;
    }
    emit(&daemon, "a", "fine").await;
    heard(&daemon, "ill", 2).await;
    let metrics = eventually("its failures are counted", || async {
        let (_, text, _) = daemon.cli(&["metrics", "ill", "-o", "json"]).await;
        let metrics: Value = serde_json::from_str(&text).ok()?;
        (metrics["event_handlers"]["failures"] == 3).then_some(metrics)
    })
    .await;
    assert_eq!(metrics["event_handlers"]["calls"], 5);
    assert_eq!(metrics["health"]["recent_errors"][0]["error_message"], "a bad event");
    // Both die of it; each alone loses what it worked on.
    emit(&daemon, "a", "deadly").await;
    daemon.death("ill", "crash").await;
    daemon.serving("ill").await;
    let records = daemon.crashes("ill").await;
    assert_eq!(records[0].calls[0].tool, "hear", "it is named for what it was");
    emit(&daemon, "a", "later").await;
    assert!(heard(&daemon, "ill", 1).await[0].starts_with("plugin:a:later"));
    daemon.stop().await;
}

#[tokio::test]
async fn who_is_behind_loses_its_own_oldest_and_is_told_how_many() {
    let daemon = Options::new()
        .rogue("a", &asking(&ALL, "concurrency = 4"))
        .rogue("b", &asking(&ALL, "concurrency = 4"))
        .config("[quota]\nevents = 1000000\nrequests = 1000000")
        .start()
        .await;
    daemon.serving("a").await;
    daemon.serving("b").await;
    // A server that does not read.
    let request = WatchPluginEventsRequest { patterns: vec!["plugin:a:flood".into()] };
    let mut lazy = hosting(&daemon).watch_plugin_events(request).await.expect("watch").into_inner();
    let counting = {
        let client = daemon.client();
        tokio::spawn(async move {
            client
                .call_with(
                    "b",
                    "count_events",
                    json!({"n": 20_000, "name": "plugin:a:*"}),
                    &[],
                    60_000,
                )
                .await
        })
    };
    daemon.until("b", |health| health.in_flight == 1).await;
    eventually("b listens", || async { (emit(&daemon, "a", "flood").await == 2).then_some(()) })
        .await;
    let emitters: Vec<_> = (0..4)
        .map(|_| {
            let client = daemon.client();
            tokio::spawn(async move {
                let args = json!({"n": 5000, "name": "flood", "bytes": 1000});
                client.call_with("a", "emit_many", args, &[], 60_000).await.unwrap()
            })
        })
        .collect();
    for emitter in emitters {
        emitter.await.expect("emitter");
    }
    let counted = counting.await.expect("counter").unwrap();
    assert_eq!(counted["dropped"], 0, "b kept up: {counted}");
    let (mut got, mut dropped) = (0, 0);
    while let Ok(Ok(Some(batch))) =
        tokio::time::timeout(Duration::from_secs(2), lazy.message()).await
    {
        got += batch.events.len() as u64;
        dropped += batch.dropped;
    }
    assert!(dropped > 0, "{got} arrived");
    assert!(got + dropped >= 20_000, "{got} + {dropped}");
    daemon.stop().await;
}

#[tokio::test]
async fn servers_emit_and_watch_but_not_as_a_plugin() {
    let daemon = Options::new().rogue("b", &hearing("*")).start().await;
    daemon.serving("b").await;
    let request = WatchPluginEventsRequest { patterns: vec!["plugin:b:*".into()] };
    let mut watch =
        hosting(&daemon).watch_plugin_events(request).await.expect("watch").into_inner();
    let event = |name: &str, payload: &str| EmitEventRequest {
        name: name.into(),
        payload: payload.to_owned().into(),
        workspace: "main".into(),
    };
    let emitted = hosting(&daemon).emit_event(event("session.started", "{\"id\": 1}")).await;
    assert_eq!(emitted.expect("emitted").into_inner().subscribers, 1);
    assert_eq!(heard(&daemon, "b", 1).await, ["session.started host main"]);
    for (name, payload) in [("plugin:b:x", "1"), ("Plugin:b:x", "1"), ("a b", "1"), ("x", "{")] {
        let refused = hosting(&daemon).emit_event(event(name, payload)).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{name}");
    }
    emit(&daemon, "b", "said").await;
    let batch = watch.message().await.expect("stream").expect("batch");
    assert_eq!(
        (batch.events[0].name.as_str(), batch.events[0].source.as_str()),
        ("plugin:b:said", "plugin:b")
    );
    assert_eq!(
        refused(&daemon, "b", json!({"op": "emit", "key": "plugin:a:x"})).await.0,
        "PermissionDenied"
    );
    daemon.stop().await;
}
