//! Texts of any length: names, paths, reasons, tracebacks, what is to be watched.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use serde_json::json;
use stockade_proto::v1::{
    LogLine, ReadLogsRequest, WatchEventsRequest, events_client::EventsClient,
};
use stockade_tests::{Client, Http, Options, eventually, give_to_test_user, manifest, write_file};

use crate::scene::{BUFFERED, MIB, ONCE, QUICK, a_while, attacked, down, raw, under_attack};

/// Finding 2: a path of a document of very many parts.
#[tokio::test]
async fn a_path_without_end_is_refused() {
    let more = "concurrency = 4\n[permissions]\nrequest = [\"session:read\", \"session:write\"]";
    let daemon = attacked(Options::new().rogue("x", more)).await;
    daemon.serving("x").await;
    // A short one is looked up.
    assert!(daemon.call("x", "deep_path", json!({"n": 20})).await.ok);
    under_attack(&daemon, 128 * MIB, async {
        let mut asked = 0;
        for parts in [25_000, 60_000, 100_000, 2_000_000] {
            let outcome = daemon.call("x", "deep_path", json!({"n": parts})).await;
            assert_eq!(outcome.failed(), ("InvalidArgument", ""), "{}", outcome.error);
            asked += 1;
        }
        asked
    })
    .await;
    daemon.stop().await;
}

/// What operators can read of a plugin, all of it.
async fn told(client: &Client, plugin: &str) -> usize {
    let logs = client.logs(plugin).await;
    let longest = logs.iter().map(|line| line.text.len()).max().unwrap_or(0);
    assert!(longest <= 16 << 10, "a line of {longest} bytes");
    let mut size: usize = logs.iter().map(|line| line.text.len()).sum();
    let request = WatchEventsRequest { plugins: Vec::new(), last: 1000, follow: false };
    let mut events = EventsClient::new(client.channel())
        .watch_events(request)
        .await
        .expect("events")
        .into_inner();
    while let Some(event) = events.message().await.expect("event") {
        assert!(event.message.len() <= 16 << 10, "an event of {} bytes", event.message.len());
        size += event.message.len();
    }
    for command in ["permissions", "metrics"] {
        let (code, text, error) = client.cli(&[command, plugin, "-o", "json"]).await;
        assert_eq!(code, 0, "{error}");
        size += text.len();
    }
    size + client.log().len()
}

/// Finding 3: what is refused may have a name of 8 MB; nothing keeps it.
#[tokio::test]
async fn long_names_of_what_is_refused_are_not_kept() {
    let daemon = attacked(Options::new().rogue("x", QUICK)).await;
    daemon.serving("x").await;
    let kinds =
        ["plugin", "tool", "provider", "event", "key", "entity", "metric", "permission", "log"];
    under_attack(&daemon, 128 * MIB, async {
        let mut asked = 0;
        for kind in kinds {
            let n = if kind == "plugin" { 60 } else { 5 };
            let args = json!({"kind": kind, "n": n, "bytes": 8_000_000});
            let outcome = daemon.call("x", "long_names", args).await;
            assert!(outcome.ok, "{kind}: {} {}", outcome.error_type, outcome.error);
            asked += n;
        }
        asked
    })
    .await;
    let told = told(&daemon, "x").await;
    assert!(told < 4 << 20, "operators are told {told} bytes");
    daemon.stop().await;
}

/// Finding 3, in calls: names that clients choose, and errors that tools raise.
#[tokio::test]
async fn long_names_and_errors_of_calls_are_cut() {
    let daemon = attacked(Options::new().rogue("x", QUICK)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 128 * MIB, async {
        let args = json!({"kind": "error", "n": 1, "bytes": 900_000});
        for _ in 0..30 {
            let outcome = daemon.call("x", "long_names", args.clone()).await;
            assert_eq!(outcome.error_type, "ValueError");
            assert!(outcome.error.len() <= 8 << 10, "{} bytes", outcome.error.len());
        }
        for _ in 0..5 {
            let name = "x".repeat(8_000_000);
            for (plugin, tool) in [("x", &*name), (&*name, "t")] {
                let request = stockade_proto::v1::CallRequest {
                    plugin: plugin.to_owned(),
                    tool: tool.to_owned(),
                    ..Default::default()
                };
                let refused = daemon.tools().call(request).await.expect_err("refused");
                assert!(refused.message().len() <= 8 << 10, "{:?}", refused.code());
            }
        }
        40
    })
    .await;
    let told = told(&daemon, "x").await;
    assert!(told < 4 << 20, "operators are told {told} bytes");
    daemon.stop().await;
}

/// Finding 7: starts that fail with very long texts, or want very much watched,
/// within the limit of a message and beyond it.
#[tokio::test]
async fn what_a_failed_start_says_is_bounded() {
    let daemon = attacked(Options::new()).await;
    let bombs = ["watch-bomb:100000", "watch-bomb:8000000", "text-bomb:900", "text-bomb:60000"];
    under_attack(&daemon, 256 * MIB, async {
        for (n, bomb) in bombs.iter().enumerate() {
            let name = format!("x{n}");
            let more = raw(bomb, &format!("{ONCE}\n[limits]\nmemory = \"2GiB\""));
            daemon.write_plugin(&name, &manifest(&name, &more));
        }
        daemon.reload().await;
        for n in 0..bombs.len() {
            let health = down(&daemon, &format!("x{n}")).await;
            let reason = health.reason.expect("reason");
            assert!(reason.len() <= 8 << 10, "a reason of {} bytes", reason.len());
        }
        // What is watched is looked at every second.
        a_while().await;
        bombs.len() as u64
    })
    .await;
    let list = Http::unix(&daemon.socket).await.expect("connect").get("/v1/plugins").await;
    let size = list.expect("list").size;
    assert!(size < 128 << 10, "the list has {size} bytes");
    let state = daemon.root.join("state");
    let kept = ["stockade.db", "stockade.db-wal"]
        .map(|file| std::fs::metadata(state.join(file)).map_or(0, |metadata| metadata.len()));
    assert!(kept.iter().sum::<u64>() < 8 * MIB, "{kept:?}");
    assert!(daemon.log().len() < 1 << 20, "a log of {} bytes", daemon.log().len());
    daemon.stop().await;
}

/// Finding 7: what a plugin wants watched tells it nothing of the host's files. Its
/// own are watched: that is the control.
#[tokio::test]
async fn a_file_of_the_host_is_not_watched_for_a_plugin() {
    let daemon = Options::new().start().await;
    let foreign = daemon.root.join("foreign/file");
    write_file(&foreign, "one");
    let own = daemon.data("own").join("model");
    for (name, path) in [("spy", &foreign), ("own", &own)] {
        let more = raw(&format!("watch:{}", path.display()), QUICK);
        daemon.write_plugin(name, &manifest(name, &more));
    }
    give_to_test_user(&daemon.root);
    daemon.reload().await;
    let (spy, before) = (down(&daemon, "spy").await, down(&daemon, "own").await);
    write_file(&foreign, "another one");
    write_file(&own, "the model");
    eventually("the plugin's own file is noticed", || async {
        let now = daemon.health("own").await;
        (now.generation > before.generation).then_some(())
    })
    .await;
    a_while().await;
    let now = daemon.health("spy").await;
    assert_eq!(now.generation, spy.generation, "it was started again: {now:?}");
    daemon.stop().await;
}

/// What many followers have not read is kept once.
#[tokio::test]
async fn old_lines_that_nobody_reads_are_not_copied_for_each() {
    let daemon = attacked(Options::new().rogue("x", QUICK).config(BUFFERED)).await;
    daemon.serving("x").await;
    let text = "x".repeat(1900);
    for _ in 0..1000 {
        assert!(daemon.call("x", "log", json!({"text": text})).await.ok);
    }
    under_attack(&daemon, 48 * MIB, async {
        let mut open = Vec::new();
        for _ in 0..8 {
            let apart = daemon.apart().await;
            for _ in 0..50 {
                open.push(follow(&apart).await);
            }
        }
        open.len() as u64
    })
    .await;
    daemon.stop().await;
}

async fn follow(client: &Client) -> tonic::Streaming<LogLine> {
    let request = ReadLogsRequest { plugin: "x".into(), last: 0, follow: true };
    EventsClient::new(client.channel()).read_logs(request).await.expect("stream").into_inner()
}

/// Who followed and went away has left nothing behind, though nothing happens that would
/// find out.
#[tokio::test]
async fn followers_that_are_gone_are_forgotten() {
    let daemon = attacked(Options::new().rogue("x", QUICK).config(BUFFERED)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 48 * MIB, async {
        let apart = daemon.apart().await;
        for n in 0..20_000 {
            drop(follow(&apart).await);
            let request = WatchEventsRequest { plugins: Vec::new(), last: 0, follow: n % 2 == 0 };
            let events = EventsClient::new(apart.channel()).watch_events(request).await;
            drop(events.expect("stream"));
        }
        20_000
    })
    .await;
    daemon.stop().await;
}

/// Many who follow a plugin that prints a lot, whether they read it or not.
#[tokio::test]
async fn followers_take_their_turn() {
    let daemon = attacked(Options::new().rogue("x", QUICK).config(BUFFERED)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 160 * MIB, async {
        let (mut waiting, read) = (Vec::new(), Arc::new(AtomicU64::new(0)));
        for n in 0..8 {
            let apart = daemon.apart().await;
            for _ in 0..120 {
                let mut lines = follow(&apart).await;
                match n % 2 {
                    0 => {
                        let read = read.clone();
                        tokio::spawn(async move {
                            while let Ok(Some(_)) = lines.message().await {
                                read.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    }
                    _ => waiting.push(lines),
                }
            }
        }
        for _ in 0..12 {
            assert!(daemon.call("x", "lines", json!({"n": 500})).await.ok);
        }
        let read = read.load(Ordering::Relaxed);
        assert!(read > 10_000, "those who read have got {read} lines");
        waiting.len() as u64
    })
    .await;
    daemon.stop().await;
}
