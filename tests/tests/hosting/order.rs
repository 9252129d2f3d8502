//! Plugins that require other plugins: who starts first, who ends first, and what is
//! said when they cannot.

use stockade_proto::v1::PluginState;
use stockade_tests::Options;

fn requiring(others: &str, more: &str) -> String {
    format!("{more}\n[requires]\nplugins = {others}")
}

#[tokio::test]
async fn a_plugin_starts_after_what_it_requires_and_ends_before_it() {
    let daemon = Options::new()
        .rogue(
            "c",
            &format!(
                "{}\n[timeouts]\nstop = \"1s\"",
                requiring("[\"b\", \"a\"]", "args = [\"--hang-in-shutdown\"]")
            ),
        )
        .rogue("b", &requiring("[\"a\"]", ""))
        .rogue("a", "args = [\"--slow-init\", \"5\"]")
        .start()
        .await;
    for plugin in ["a", "b", "c"] {
        daemon.serving(plugin).await;
    }
    let log = daemon.log();
    let loaded = |plugin: &str| log.find(&format!("Loaded plugin: {plugin} ")).expect("loaded");
    assert!(loaded("a") < loaded("b") && loaded("b") < loaded("c"), "{log}");
    // c takes its time to end; those that it needs are there until it is gone.
    let pid = async |plugin: &str| daemon.health(plugin).await.pid.expect("pid");
    let (c, others) = (pid("c").await, [pid("a").await, pid("b").await]);
    let there = |pid: u32| std::path::Path::new(&format!("/proc/{pid}")).exists();
    daemon.signal(libc::SIGTERM);
    let (asked, mut looks) = (std::time::Instant::now(), 0);
    while there(c) {
        let others = others.map(there);
        // c may have gone between the two looks.
        assert!(others == [true, true] || !there(c), "{others:?}");
        looks += 1;
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let took = asked.elapsed();
    assert!(took.as_millis() >= 400 && looks > 0, "it hung in its shutdown: {took:?}, {looks}");
    let mut daemon = daemon;
    assert_eq!(daemon.ended().await, Some(0));
    daemon.wait_gone();
}

#[tokio::test]
async fn what_is_missing_disabled_or_circular_makes_it_unavailable_with_that_reason() {
    let daemon = Options::new()
        .rogue("wants", &requiring("[\"nobody\"]", ""))
        .rogue("x", &requiring("[\"y\"]", ""))
        .rogue("y", &requiring("[\"x\"]", ""))
        .rogue("off", "")
        .rogue("needs", &requiring("[\"off\"]", ""))
        .config("[plugin.off]\nenabled = false")
        .start()
        .await;
    for (plugin, reason) in [
        ("wants", "Missing dependency: nobody"),
        ("x", "Circular dependency detected: x -> y -> x"),
        ("y", "Circular dependency detected: y -> x -> y"),
        ("needs", "Plugin 'needs' depends on 'off' which is disabled"),
    ] {
        let health = daemon
            .until(plugin, |health| {
                health.state() == PluginState::Unavailable && health.reason.is_some()
            })
            .await;
        let told = health.reason.expect("reason");
        assert!(told.starts_with(reason), "{plugin}: {told}");
    }
    // It heals when the other is there.
    daemon.write_plugin("nobody", &stockade_tests::manifest("nobody", ""));
    daemon.reload().await;
    daemon.serving("wants").await;
    daemon.stop().await;
}
