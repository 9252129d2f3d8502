//! What was acknowledged is there after anything: SIGKILL in mid-write, a full
//! disk, a file that another process holds.

use std::collections::HashMap;

use rusqlite::Connection;
use serde_json::json;
use stockade_proto::v1::GetDaemonRequest;
use stockade_tests::{Daemon, Options, eventually, small_disk};

use crate::actor::{answer, ask, asking, refused};

fn writer() -> Options {
    Options::new()
        .alone()
        .rogue("w", &asking(&["kv:read", "kv:write", "log:emit"], ""))
        .config("log_lines = 100000\nprovenance_records = 100")
        // Enough for thousands of lives.
        .config("[quota]\nwrites = 1000000\nkeys = 1000000\nbytes = \"1GiB\"")
}

/// The last number that the plugin was told is stored, per key.
async fn acknowledged(daemon: &Daemon) -> HashMap<u64, u64> {
    let mut last = HashMap::new();
    for line in daemon.logs("w").await {
        if let Some(n) = line.text.strip_prefix("acknowledged ").and_then(|n| n.parse::<u64>().ok())
        {
            last.insert(n % 100, n);
        }
    }
    last
}

/// What is stored is nobody's to read but the daemon's, under the usual umask.
#[tokio::test]
async fn the_databases_are_private() {
    use std::os::unix::fs::MetadataExt as _;
    let daemon = writer().start().await;
    daemon.serving("w").await;
    ask(&daemon, "w", json!({"op": "set", "key": "k", "value": 1})).await;
    let folder = daemon.kill().await;
    let files = std::fs::read_dir(folder.path().join("state")).expect("state");
    let mut looked = 0;
    for file in files.map(|file| file.expect("file")) {
        if file.file_name().to_string_lossy().contains(".db") {
            let mode = file.metadata().expect("metadata").mode() & 0o777;
            assert_eq!(mode, 0o600, "{}: {mode:o}", file.path().display());
            looked += 1;
        }
    }
    assert!(looked >= 2, "{looked} files");
}

/// 60 times, or `STOCKADE_KILLS` (2,000 in `make soak`): the daemon dies in mid-write.
#[tokio::test]
async fn acknowledged_writes_survive_sigkill_at_any_moment() {
    let kills: u32 =
        std::env::var("STOCKADE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let mut daemon = writer().start().await;
    for n in 0..kills {
        daemon.serving("w").await;
        let client = daemon.client();
        let prefix = format!("r{n}:");
        let writing = {
            let (client, prefix) = (client.clone(), prefix.clone());
            tokio::spawn(async move {
                let mut tools = client.tools();
                let request = stockade_proto::v1::CallRequest {
                    plugin: "w".into(),
                    tool: "write_on".into(),
                    args: json!({"op": "", "key": prefix}).to_string().into(),
                    ..Default::default()
                };
                let _ = tools.call(request).await;
            })
        };
        // At some other moment each time, but never before the first.
        let enough = 5 + (n as usize * 7) % 40;
        eventually("some writes", || async {
            (acknowledged(&daemon).await.values().max().copied().unwrap_or(0) as usize >= enough)
                .then_some(())
        })
        .await;
        let known = acknowledged(&daemon).await;
        let folder = daemon.kill().await;
        writing.abort();
        let file = folder.path().join("state/data.db");
        let connection = Connection::open(&file).expect("open");
        let verdict: String =
            connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("check");
        assert_eq!(verdict, "ok", "kill {n}");
        drop(connection);
        daemon = writer().start_in(folder).await;
        daemon.serving("w").await;
        for (slot, number) in known {
            let key = format!("{prefix}{slot}");
            let kept = answer(&daemon, "w", json!({"op": "get", "key": key})).await;
            assert!(
                kept.as_u64() >= Some(number),
                "kill {n}: {key} is {kept}, {number} was acknowledged"
            );
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_file_that_another_process_holds_is_an_error_and_then_well_again() {
    let daemon = writer().start().await;
    daemon.serving("w").await;
    let set = |n: u32| json!({"op": "set", "key": "k", "value": n});
    answer(&daemon, "w", set(1)).await;
    let other = Connection::open(daemon.root.join("state/data.db")).expect("open");
    other.execute_batch("BEGIN IMMEDIATE").expect("lock");
    let outcome = ask(&daemon, "w", set(2)).await;
    assert_eq!(outcome.failed().0, "StoreLocked", "{}", outcome.error);
    assert!(outcome.error.contains("locked by another process"), "{}", outcome.error);
    assert_eq!(answer(&daemon, "w", json!({"op": "get", "key": "k"})).await, 1, "reading goes on");
    let problems =
        daemon.admin().get_daemon(GetDaemonRequest {}).await.expect("daemon").into_inner().problems;
    assert!(problems.iter().any(|one| one.contains("locked")), "operators are told: {problems:?}");
    other.execute_batch("ROLLBACK").expect("unlock");
    answer(&daemon, "w", set(3)).await;
    assert_eq!(answer(&daemon, "w", json!({"op": "get", "key": "k"})).await, 3);
    daemon.stop().await;
}

#[tokio::test]
async fn a_damaged_file_is_put_aside() {
    let daemon = writer().start().await;
    daemon.serving("w").await;
    answer(&daemon, "w", json!({"op": "set", "key": "k", "value": 1})).await;
    let folder = daemon.kill().await;
    let state = folder.path().join("state");
    for log in ["data.db-wal", "data.db-shm"] {
        std::fs::remove_file(state.join(log)).expect("the log, from which it would be well again");
    }
    std::fs::write(state.join("data.db"), vec![0x55; 8192]).expect("damage");
    let daemon = writer().start_in(folder).await;
    daemon.serving("w").await;
    answer(&daemon, "w", json!({"op": "set", "key": "k", "value": 2})).await;
    let kept = std::fs::read_dir(daemon.root.join("state")).expect("state").flatten();
    let aside =
        kept.filter(|file| file.file_name().to_string_lossy().starts_with("data.db.corrupt-"));
    assert_eq!(aside.count(), 1);
    daemon.stop().await;
}

/// A file that is removed while the daemon runs takes nothing more: nothing is
/// acknowledged that would be lost.
#[tokio::test]
async fn a_removed_file_acknowledges_nothing() {
    let daemon = writer().start().await;
    daemon.serving("w").await;
    let set = json!({"op": "set", "key": "k", "value": 1});
    // The last commits are in the log; of the first one, too.
    for file in ["data.db-wal", "data.db", "data.db-wal"] {
        let state = daemon.root.join("state");
        let (here, away) = (state.join(file), state.join("away"));
        std::fs::rename(&here, &away).expect("moved away");
        let (kind, why) = refused(&daemon, "w", set.clone()).await;
        let told = why.contains(&format!("{file} was removed"));
        assert!(kind == "Unavailable" && told, "{kind}: {why}");
        std::fs::rename(&away, &here).expect("put back");
        answer(&daemon, "w", set.clone()).await;
    }
    daemon.stop().await;
}

#[tokio::test]
async fn a_full_disk_is_an_error_to_the_caller_and_then_well_again() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("state");
    let Some(disk) = small_disk(&state, "4m") else { return };
    let daemon = writer().start_in(folder).await;
    daemon.serving("w").await;
    let set = |n: usize| json!({"op": "set", "key": format!("k{n}"), "value": "x".repeat(200_000)});
    let mut stored = 0;
    let refused = loop {
        let outcome = ask(&daemon, "w", set(stored)).await;
        if !outcome.ok {
            break outcome;
        }
        stored += 1;
        assert!(stored < 100, "the disk is never full");
    };
    assert_eq!(refused.error_type, "Unavailable", "{}", refused.error);
    assert!(refused.error.contains("free space on the disk"), "{}", refused.error);
    for n in 0..stored {
        let kept = answer(&daemon, "w", json!({"op": "get", "key": format!("k{n}")})).await;
        assert_eq!(kept.as_str().map(str::len), Some(200_000), "k{n} was acknowledged");
    }
    disk.resize("32m");
    answer(&daemon, "w", set(stored)).await;
    daemon.signal(libc::SIGTERM);
    let mut daemon = daemon;
    assert_eq!(daemon.ended().await, Some(0));
    daemon.wait_gone();
    drop(disk);
}
