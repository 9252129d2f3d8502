//! What a plugin sends without being asked: tracebacks, pongs, lines of output.

use serde_json::json;
use stockade_tests::Options;

use crate::scene::{MIB, QUICK, attacked, raw, under_attack};

/// Finding 4: failures of calls that nobody made, 15,000 a second, each with a
/// traceback of 16 KiB.
#[tokio::test]
async fn tracebacks_of_no_call_are_not_queued() {
    let more = raw("tracebacks", &format!("{QUICK}\n[limits]\nmemory = \"1GiB\""));
    let daemon = attacked(Options::new().rogue("x", &more)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 64 * MIB, async {
        // It is killed for it, or the caller's deadline ends the call.
        let outcome = daemon.call_with("x", "t", json!({}), &[], 4000).await;
        assert!(["WorkerCrashed", "TimeoutError"].contains(&outcome.failed().0), "{outcome:?}");
        1
    })
    .await;
    daemon.stop().await;
}

/// Messages that come in frames of one byte, as fast as a process can write them, are
/// nobody else's matter.
#[tokio::test]
async fn frames_of_one_byte_slow_nobody_down() {
    for (mode, ends) in [("crumbs", None), ("crumbs-to-host", Some(json!(42)))] {
        let more = raw(mode, &format!("[timeouts]\nping = \"60s\"\n{QUICK}"));
        let daemon = attacked(Options::new().rogue("x", &more)).await;
        daemon.serving("x").await;
        under_attack(&daemon, 64 * MIB, async {
            let outcome = daemon.call_with("x", "t", json!({}), &[], 4000).await;
            match ends {
                Some(result) => assert_eq!(outcome.unwrap(), result),
                // A message that had broken something would have ended the process.
                None => assert_eq!(outcome.failed().0, "TimeoutError", "{outcome:?}"),
            }
            1
        })
        .await;
        daemon.stop().await;
    }
}

/// Finding 16: lines of one byte, as fast as four plugins can write them.
#[tokio::test]
async fn lines_of_one_byte_slow_nobody_down() {
    let names = ["a", "b", "c", "d"];
    let options = names.iter().fold(Options::new(), |options, name| options.rogue(name, QUICK));
    let daemon = attacked(options).await;
    for name in names {
        daemon.serving(name).await;
    }
    under_attack(&daemon, 64 * MIB, async {
        let writing = names.map(|name| {
            let client = daemon.client();
            tokio::spawn(async move { client.call(name, "lines", json!({"n": 4000})).await })
        });
        let mut blocks = 0;
        for one in writing {
            blocks += one.await.expect("join").unwrap().as_u64().expect("blocks");
        }
        blocks
    })
    .await;
    // The drops are counted.
    let logs = daemon.logs("a").await;
    assert!(logs.iter().map(|line| line.dropped).sum::<u64>() > 0, "{} lines", logs.len());
    daemon.stop().await;
}

/// Finding 23: one pong with the largest number there is does not answer the pings
/// to come. Without it: faults/hang.rs.
#[tokio::test]
async fn a_pong_does_not_answer_later_pings() {
    let ping = "[timeouts]\nping = \"100ms\"\nping_misses = 2";
    let more = raw("early-pong", &format!("{ping}\n{QUICK}"));
    let daemon = Options::new().bystander().rogue("x", &more).start().await;
    daemon.serving("x").await;
    // In the call it stops itself.
    let outcome = daemon.call("x", "t", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "watchdog"));
    daemon.death("x", "watchdog").await;
    daemon.serving("x").await;
    daemon.stop().await;
}
