//! Memory hogs of every kind cost one call.

use serde_json::json;
use stockade_tests::Options;

/// 72, without cgroups: the guard.
#[tokio::test]
async fn hogs_of_every_kind_are_stopped() {
    let limits = "[limits]\nmemory = \"200MiB\"\n[restart]\nbackoff_min = \"10ms\"\n\
                  backoff_max = \"50ms\"\nmax_deaths = 1000\n";
    let daemon = Options::new().bystander().rogue("rogue", limits).start().await;
    daemon.serving("rogue").await;
    for (kind, mib) in [("anonymous", 600), ("shared", 600)] {
        let before = daemon.serving("rogue").await.generation;
        let outcome = daemon.call("rogue", "hog", json!({"kind": kind, "mib": mib})).await;
        assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_own"), "{kind}: {outcome:?}");
        assert!(outcome.error.contains("memory = 200MiB"), "{}", outcome.error);
        daemon.until("rogue", |health| health.generation > before).await;
    }
    // Two file systems of half the limit each: one fills up, both together are
    // over it with the plugin itself.
    let outcome = daemon.call("rogue", "hog", json!({"kind": "tmpfs", "mib": 600})).await;
    assert!(outcome.error.contains("os error 28"), "{outcome:?}");
    let outcome = daemon.call("rogue", "hog", json!({"kind": "both tmpfs", "mib": 600})).await;
    assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_own"), "{outcome:?}");
    daemon.until("rogue", |health| health.generation == 4).await;
    daemon.serving("rogue").await;
    let outcome = daemon.call("rogue", "hog", json!({"kind": "memfd", "mib": 600})).await;
    assert!(outcome.error.contains("os error 38"), "{outcome:?}");
    daemon.stop().await;
}

/// Memory that resident sizes do not show, or show as a file's; and a child that
/// works while the plugin's main process sleeps.
#[tokio::test]
async fn hogs_that_hide_are_found() {
    let limits = "[limits]\nmemory = \"200MiB\"\n[restart]\nbackoff_min = \"10ms\"\n\
                  backoff_max = \"50ms\"\nmax_deaths = 1000\n";
    let daemon = Options::new().bystander().rogue("rogue", limits).start().await;
    for (n, kind) in ["copied pages", "page tables", "child"].into_iter().enumerate() {
        daemon.until("rogue", |health| health.generation == n as u64 + 1).await;
        daemon.serving("rogue").await;
        let outcome = daemon.call("rogue", "hog", json!({"kind": kind, "mib": 600})).await;
        if kind == "child" {
            // The call is over; the child grows later, while nobody calls.
            assert!(outcome.ok, "{outcome:?}");
        } else {
            assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_own"), "{kind}: {outcome:?}");
        }
        let death = daemon.until("rogue", |health| health.generation == n as u64 + 2).await;
        assert_eq!(death.last_exit.expect("exit").cause, "oom_own", "{kind}");
    }
    daemon.stop().await;
}

/// What is mapped of a scratch file counts once: two thirds of the limit in
/// /dev/shm, mapped by two processes, are fine.
#[tokio::test]
async fn shared_memory_is_counted_once() {
    let limits = "[limits]\nmemory = \"300MiB\"\n";
    let daemon = Options::new().rogue("rogue", limits).start().await;
    daemon.serving("rogue").await;
    let outcome = daemon.call("rogue", "hog", json!({"kind": "mapped", "mib": 140})).await;
    assert!(outcome.ok, "{outcome:?}");
    assert_eq!(daemon.health("rogue").await.generation, 1);
    daemon.stop().await;
}

/// 100 kills, and each is named for what it was.
#[tokio::test]
async fn a_hundred_memory_kills_are_a_hundred_memory_kills() {
    let limits = "[limits]\nmemory = \"64MiB\"\n[restart]\nbackoff_min = \"1ms\"\n\
                  backoff_max = \"2ms\"\nmax_deaths = 1000\n";
    let daemon = Options::new().rogue("rogue", limits).start().await;
    for n in 0..100 {
        let before = daemon.serving("rogue").await.generation;
        let kind = if n % 2 == 0 { "anonymous" } else { "shared" };
        let outcome = daemon.call("rogue", "hog", json!({"kind": kind, "mib": 250})).await;
        assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_own"), "{n}: {outcome:?}");
        daemon.until("rogue", |health| health.generation > before).await;
    }
    let crashes = daemon.crashes("rogue").await;
    assert!(crashes.iter().all(|crash| crash.cause == "oom_own"));
    daemon.stop().await;
}
