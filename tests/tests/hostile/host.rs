//! What a plugin asks of its host: large values, and many at the same moment.

use serde_json::{Value, json};
use stockade_tests::{Daemon, Options};

use crate::scene::{BUFFERED, MIB, QUICK, attacked, timed, under_attack};

const ALL: &str = "concurrency = 4\nqueue = { size = 100, timeout = \"60s\" }\n\
                   [permissions]\nrequest = [\"session:read\", \"session:write\", \"kv:read\", \
                   \"kv:write\", \"event:emit\", \"log:emit\"]";

async fn flooding(config: &str) -> Daemon {
    let all = format!("{ALL}\n{QUICK}");
    let daemon =
        attacked(Options::new().config(BUFFERED).config(config).rogue("x", &all).rogue("y", &all))
            .await;
    for name in ["x", "y"] {
        daemon.serving(name).await;
    }
    daemon
}

async fn flood(daemon: &Daemon, plugin: &str, kind: &str, of: &str, n: u64, bytes: usize) -> u64 {
    let args = json!({"kind": kind, "of": of, "n": n, "bytes": bytes});
    daemon.call(plugin, "flood", args).await.unwrap().as_u64().expect("a number")
}

async fn ask(daemon: &Daemon, plugin: &str, op: &str, key: &str, value: Value) -> Value {
    let args = json!({"op": op, "key": key, "value": value, "mode": "raise"});
    daemon.call(plugin, "host", args).await.unwrap()
}

/// A value that makes a document deeper than can be read again is refused; what others have
/// written stays.
#[tokio::test]
async fn nobody_makes_a_document_unreadable() {
    let daemon = flooding("").await;
    ask(&daemon, "y", "flag", "session/1", json!({"name": "kept", "value": 7})).await;
    for depth in 100..140 {
        let set = flood(&daemon, "x", "flag", "deep", 1, depth).await;
        assert_eq!(set, u64::from(depth <= 125), "{depth} deep");
        let kept = ask(&daemon, "y", "entity", "session/1", json!("flags.kept")).await;
        assert_eq!(kept, json!(7), "{depth} deep");
    }
    daemon.stop().await;
}

/// Documents of very many values, written and read many times at once.
#[tokio::test]
async fn values_of_documents_are_paid_for() {
    let daemon = flooding("").await;
    under_attack(&daemon, 320 * MIB, async {
        let mut asked = 0;
        for (kind, of, bytes) in [
            ("flag", "nests", 900_000),
            ("flag_of_own", "nests", 900_000),
            ("flag_of_own", "nests", 100_000),
            ("flag", "text", 900_000),
            ("entity", "text", 1),
        ] {
            flood(&daemon, "x", kind, of, 24, bytes).await;
            asked += 24;
        }
        asked
    })
    .await;
    daemon.stop().await;
}

/// Very many requests at the same moment, each no larger than what is done at once.
#[tokio::test]
async fn many_small_requests_at_once_are_answered_one_after_the_other() {
    let daemon = flooding("").await;
    assert_eq!(flood(&daemon, "x", "set", "text", 1, 900_000).await, 1);
    under_attack(&daemon, 256 * MIB, async {
        let mut done = 0;
        for (kind, of, bytes) in [
            ("emit", "objects", 65_000),
            ("emit", "nests", 65_000),
            ("log", "text", 1),
            ("get", "text", 1),
            ("list", "text", 1),
        ] {
            for _ in 0..3 {
                done += flood(&daemon, "x", kind, of, 60, bytes).await;
            }
        }
        done
    })
    .await;
    daemon.stop().await;
}

/// The changes of one plugin do not wait for all those of another one.
#[tokio::test]
async fn changes_are_made_in_turn() {
    let daemon = flooding("").await;
    assert_eq!(flood(&daemon, "x", "set", "nests", 1, 900_000).await, 1);
    let client = daemon.client();
    let flooded = tokio::spawn(async move {
        let args = json!({"kind": "swap", "of": "objects", "n": 24, "bytes": 900_000});
        client.call("x", "flood", args).await
    });
    let mut slowest = std::time::Duration::ZERO;
    let mut set = 0;
    while !flooded.is_finished() {
        let (_, took) = timed(ask(&daemon, "y", "set", "a", json!(1))).await;
        slowest = slowest.max(took);
        set += 1;
    }
    let outcome = flooded.await.expect("joined");
    assert!(outcome.ok && set > 0, "{} {}", outcome.error_type, outcome.error);
    // One change of the other one is in the way, perhaps, and one of this plugin's turns.
    assert!(slowest < std::time::Duration::from_secs(2), "{slowest:?} of {set}");
    daemon.stop().await;
}

/// What takes long is done where nobody waits for it: texts that have to be compared,
/// large documents, and the books of a plugin whose changes are refused.
#[tokio::test]
async fn dear_changes_are_made_aside() {
    let full = "[plugin.x.quota]\nkeys = 500";
    let daemon = flooding(full).await;
    assert_eq!(flood(&daemon, "x", "set", "nests", 1, 900_000).await, 1);
    assert_eq!(flood(&daemon, "x", "flag", "objects", 1, 250_000).await, 1);
    for (kind, of, n, bytes) in [
        ("unlike", "nests", 48, 900_001),
        ("flag", "objects", 48, 250_001),
        ("too_many", "text", 16, 20_000),
    ] {
        let client = daemon.client();
        let flooded = tokio::spawn(async move {
            let args = json!({"kind": kind, "of": of, "n": n, "bytes": bytes});
            client.call("x", "flood", args).await
        });
        let mut all = Vec::new();
        while !flooded.is_finished() {
            let (_, took) = timed(ask(&daemon, "y", "set", "a", json!(1))).await;
            all.push(took);
        }
        let outcome = flooded.await.expect("joined");
        assert!(outcome.ok, "{} {}", outcome.error_type, outcome.error);
        all.sort();
        let (count, slowest) = (all.len(), all.last().copied().unwrap_or_default());
        let middle = all.get(count / 2).copied().unwrap_or_default();
        eprintln!("{kind}: {count} changes, {middle:?} in the middle, {slowest:?} the slowest");
        assert!(count >= 5, "{kind}: the attack was over after {count} changes");
        assert!(middle < std::time::Duration::from_millis(100), "{kind}: {middle:?}");
        assert!(slowest < std::time::Duration::from_millis(500), "{kind}: {slowest:?}");
    }
    daemon.stop().await;
}

/// A small value does not keep the large message that it came in, and what waits to be
/// written is paid for.
#[tokio::test]
async fn small_values_of_large_messages_are_kept_small() {
    let daemon = flooding("").await;
    under_attack(&daemon, 256 * MIB, async {
        let mut done = 0;
        for round in 0..8 {
            done += flood(&daemon, "x", "padded", "spaces", 48, 900_000 + round).await;
        }
        assert!(done >= 200, "{done} were swapped");
        done
    })
    .await;
    daemon.stop().await;
}
