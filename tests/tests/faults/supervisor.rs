//! The supervisor itself (faults 46 to 51).

use std::time::{Duration, Instant};

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Options, ancestor, eventually, manifest};

use crate::scene::QUICK;

/// Fault 46.
#[tokio::test]
async fn a_killed_daemon_leaves_no_process_and_loses_no_count() {
    let rogue = || Options::new().rogue("rogue", QUICK);
    let daemon = rogue().start().await;
    daemon.serving("rogue").await;
    for _ in 0..25 {
        daemon.call("rogue", "pid", json!({})).await.unwrap();
    }
    daemon.call("rogue", "raise", json!({"text": "x"})).await;
    daemon.call("rogue", "exit", json!({"n": 7})).await;
    daemon.serving("rogue").await;
    daemon.call("rogue", "orphans", json!({"n": 3})).await.unwrap();
    daemon.admin().stop_plugin(daemon.action("good")).await.expect("stop");
    let folder = daemon.kill().await;
    // Nothing survived (kill() checks); what was acknowledged did.
    let daemon = rogue().alone().start_in(folder).await;
    let health = daemon.serving("rogue").await;
    assert_eq!((health.success_count, health.error_count), (26, 2));
    assert_eq!(health.last_exit.expect("exit").cause, "exit_code");
    assert_eq!(health.generation, 3, "generations go on");
    assert_eq!(daemon.crashes("rogue").await[0].cause, "exit_code");
    let good = daemon.health("good").await;
    assert_eq!((good.state(), good.substate.as_str()), (PluginState::Loaded, "STOPPED"));
    daemon.stop().await;
}

/// Fault 47.
#[tokio::test]
async fn a_daemon_killed_while_starting_and_killing_leaves_nothing() {
    // In the middle of many starts.
    for delay in [0, 3, 10, 30] {
        let mut options = Options::new().alone();
        for n in 0..12 {
            options = options.rogue(&format!("p{n}"), "args = [\"--before\", \"sleep:20\"]");
        }
        let daemon = options.start().await;
        tokio::time::sleep(Duration::from_millis(delay)).await;
        drop(daemon.kill().await);
    }
    // In the middle of a stop that hangs, with orphans about.
    let more = "args = [\"--before\", \"ignore-term\", \"--hang-in-shutdown\"]";
    let daemon = Options::new().rogue("rogue", more).start().await;
    daemon.serving("rogue").await;
    daemon.call("rogue", "orphans", json!({"n": 4})).await.unwrap();
    daemon.admin().stop_plugin(daemon.action_now("rogue")).await.expect("stop");
    daemon.state("rogue", PluginState::Loaded, "STOPPING").await;
    drop(daemon.kill().await);
}

/// Fault 48.
#[tokio::test]
async fn damaged_state_files_are_put_aside_and_told() {
    let daemon = Options::new().rogue("rogue", QUICK).start().await;
    daemon.serving("rogue").await;
    daemon.call("rogue", "exit", json!({"n": 1})).await;
    daemon.serving("rogue").await;
    let folder = daemon.kill().await;
    let state = folder.path().join("state");
    for file in ["stockade.db", "counters"] {
        std::fs::write(state.join(file), vec![0x5a; 5000]).expect("damage");
    }
    for side in ["stockade.db-wal", "stockade.db-shm"] {
        let _ = std::fs::remove_file(state.join(side));
    }
    let daemon = Options::new().rogue("rogue", QUICK).start_in(folder).await;
    daemon.serving("rogue").await;
    assert_eq!(daemon.crashes("rogue").await, []);
    let request = stockade_proto::v1::GetDaemonRequest {};
    let said = daemon.admin().get_daemon(request).await.expect("daemon").into_inner().problems;
    assert_eq!(said.iter().filter(|problem| problem.contains("damaged")).count(), 2, "{said:?}");
    let kept = std::fs::read_dir(daemon.root.join("state")).expect("state").flatten();
    let kept = kept.filter(|e| e.file_name().to_string_lossy().contains(".corrupt-")).count();
    assert_eq!(kept, 2);
    daemon.stop().await;
}

/// Fault 49.
#[tokio::test]
async fn a_second_daemon_on_the_same_state_refuses() {
    let daemon = Options::new().start().await;
    let (plugins, state) = (daemon.root.join("plugins"), daemon.root.join("state"));
    let (plugins, state) = (plugins.display().to_string(), state.display().to_string());
    let other = daemon.root.join("other.sock").display().to_string();
    let args = ["serve", "--listen", "none", "--socket", &other];
    let (code, _, text) =
        daemon.cli(&[&args[..], &["--plugins", &plugins, "--state-dir", &state]].concat()).await;
    assert_eq!(code, 1);
    let said = format!("is in use by another stockade daemon (pid {})", daemon.pid());
    assert!(text.contains(&said), "{text}");
    // And one on the same socket, with a state of its own.
    let socket = daemon.socket.display().to_string();
    let state = daemon.root.join("state2").display().to_string();
    let args = ["serve", "--listen", "none", "--socket", &socket, "--state-dir", &state];
    let (code, _, text) = daemon.cli(&[&args[..], &["--plugins", &plugins]].concat()).await;
    assert_eq!(code, 1);
    assert!(text.contains("another daemon answers on it"), "{text}");
    daemon.stop().await;
}

/// Fault 50.
#[tokio::test]
async fn sigterm_ends_within_the_time_out_whatever_hangs() {
    let more = "args = [\"--before\", \"ignore-term\", \"--hang-in-shutdown\"]\nconcurrency = 4\n\
                [timeouts]\nstop = \"300ms\"";
    let daemon = Options::new().rogue("a", more).rogue("b", more).start().await;
    for name in ["a", "b"] {
        daemon.serving(name).await;
    }
    let client = daemon.client();
    let call = tokio::spawn(async move { client.call("a", "sleep", json!({"n": 600_000})).await });
    daemon.until("a", |health| health.in_flight == 1).await;
    let asked = Instant::now();
    daemon.stop().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(20), "not by shutdown_timeout, which is 30 s: {took:?}");
    let _ = call.await;
    // A time-out shorter than the plugins': what is left goes with the daemon.
    let more = more.replace("300ms", "60s");
    let daemon =
        Options::new().rogue("a", &more).config("shutdown_timeout = \"300ms\"").start().await;
    daemon.serving("a").await;
    let asked = Instant::now();
    daemon.stop().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(15), "the plugin may take a minute: {took:?}");
}

/// Fault 51.
#[tokio::test]
async fn a_bad_configuration_on_reload_keeps_the_old_one() {
    let daemon = Options::new()
        .bystander()
        .rogue("rogue", "")
        .config("[plugin.rogue.timeouts]\ncall = \"300ms\"\ncancel_grace = \"100ms\"")
        .start()
        .await;
    daemon.serving("rogue").await;
    let outcome = daemon.call("rogue", "wait", json!({"n": 60_000})).await;
    assert_eq!(outcome.error, "Tool wait ran past 300ms and was cancelled.");
    std::fs::write(daemon.root.join("stockade.toml"), "max_starting = \"many\"\n").expect("write");
    let reloaded = daemon.reload().await;
    let said = "configuration not taken: ";
    assert!(reloaded.problems.iter().any(|problem| problem.starts_with(said)), "{reloaded:?}");
    daemon.signal(libc::SIGHUP);
    stockade_tests::eventually("SIGHUP says so too", || async {
        daemon.log().contains("configuration not taken").then_some(())
    })
    .await;
    let outcome = daemon.call("rogue", "wait", json!({"n": 60_000})).await;
    assert_eq!(outcome.error, "Tool wait ran past 300ms and was cancelled.");
    let request = stockade_proto::v1::GetDaemonRequest {};
    let said = daemon.admin().get_daemon(request).await.expect("daemon").into_inner().problems;
    assert!(said.iter().any(|problem| problem.contains("max_starting")), "{said:?}");
    daemon.stop().await;
}

/// A file at the socket's path is not the daemon's to remove.
#[tokio::test]
async fn a_file_in_the_place_of_the_socket_is_kept() {
    let daemon = Options::new().start().await;
    let (file, state) = (daemon.root.join("precious"), daemon.root.join("state2"));
    std::fs::write(&file, "data").expect("file");
    let [file, state, plugins] =
        [file, state, daemon.root.join("plugins")].map(|path| path.display().to_string());
    let args = ["serve", "--listen", "none", "--socket", &file, "--state-dir", &state];
    let (code, _, text) = daemon.cli(&[&args[..], &["--plugins", &plugins]].concat()).await;
    assert_eq!(code, 1, "{text}");
    assert!(text.contains("which is no socket"), "{text}");
    assert_eq!(std::fs::read_to_string(file).expect("kept"), "data");
    daemon.stop().await;
}

/// What is laid over a plugin that does not exist is told: its name may be mistyped.
#[tokio::test]
async fn settings_for_a_plugin_that_does_not_exist_are_told() {
    let config = "[plugin.god.limits]\nmemory = \"1GiB\"\n[plugin.good.limits]\nmemory = \"1GiB\"";
    let daemon = Options::new().config(config).start().await;
    let request = stockade_proto::v1::GetDaemonRequest {};
    let said = daemon.admin().get_daemon(request).await.expect("daemon").into_inner().problems;
    let told = "[plugin.god] of the configuration is for nobody: there is no plugin god";
    assert_eq!(said, [told]);
    daemon.stop().await;
}

/// A directory that is there before its manifest is a plugin as soon as that has come.
#[tokio::test]
async fn a_directory_becomes_a_plugin_when_its_manifest_comes() {
    let daemon = Options::new().rogue("first", "").start().await;
    daemon.serving("first").await;
    std::fs::create_dir(daemon.root.join("plugins/late")).expect("directory");
    // The daemon has looked, and found nothing in it.
    daemon.write_plugin("next", &manifest("next", ""));
    daemon.serving("next").await;
    daemon.write_plugin("late", &manifest("late", ""));
    daemon.serving("late").await;
    daemon.stop().await;
}

/// What only a restart can take is named by the reload, not passed over.
#[tokio::test]
async fn what_needs_a_restart_is_named_by_the_reload() {
    let daemon = Options::new().port().config("log_lines = 500").start().await;
    let file = daemon.root.join("stockade.toml");
    std::fs::write(&file, "log_lines = 600\nmax_connections = 7\n").expect("write");
    let named =
        "max_connections, log_lines: changed in stockade.toml, in force after a restart only";
    assert_eq!(daemon.reload().await.problems, [named]);
    assert_eq!(daemon.reload().await.problems, [named], "it is still not in force");
    // What is in force already is no change.
    std::fs::write(&file, "log_lines = 500\n").expect("write");
    assert!(daemon.reload().await.problems.is_empty());
    daemon.stop().await;
}

/// A launcher that is killed takes its plugin along, and so does an init; orphans are
/// not left.
#[tokio::test]
async fn a_killed_launcher_leaves_nothing_and_the_plugin_comes_back() {
    let daemon = Options::new().bystander().rogue("rogue", QUICK).start().await;
    for name in ["stockade-init", "stockade-launch"] {
        let health = daemon.serving("rogue").await;
        daemon.call("rogue", "orphans", json!({"n": 3})).await.unwrap();
        let sleeps = || daemon.left().iter().filter(|one| one.ends_with(" sleep")).count();
        eventually("three sleep", || async { (sleeps() == 3).then_some(()) }).await;
        let victim = ancestor(health.pid.expect("pid"), name).expect(name);
        unsafe { libc::kill(victim as i32, libc::SIGKILL) };
        daemon.until("rogue", |now| now.generation > health.generation).await;
        daemon.serving("rogue").await;
        assert_eq!(sleeps(), 0, "{name}: {:?}", daemon.left());
    }
    daemon.stop().await;
}

/// The harness itself: what outlives its daemon is found, wherever it is, so that the
/// ends of all other tests can fail.
#[tokio::test]
async fn what_a_daemon_would_leave_behind_is_found() {
    let mut daemon = Options::new().alone().rogue("rogue", QUICK).start().await;
    let plugin = daemon.serving("rogue").await.pid.expect("pid");
    let launcher = ancestor(plugin, "stockade-launch").expect("launcher");
    // Held, the one cannot clean up and the other cannot notice its hang-up.
    for held in [launcher, plugin] {
        unsafe { libc::kill(held as i32, libc::SIGSTOP) };
    }
    daemon.signal(libc::SIGKILL);
    assert_eq!(daemon.ended().await, None);
    let left = daemon.left();
    for name in ["stockade-launch", "stockade-init", "rogue"] {
        let found = left.iter().filter(|one| one.ends_with(&format!(" {name}"))).count();
        assert_eq!(found, 1, "{name}: {left:?}");
    }
    unsafe { libc::kill(launcher as i32, libc::SIGCONT) };
    daemon.wait_gone();
}

/// A changed directory is taken over; a broken change is not.
#[tokio::test]
async fn changes_are_picked_up_and_broken_ones_are_not() {
    let daemon = Options::new().bystander().rogue("rogue", QUICK).start().await;
    let pid = daemon.serving("rogue").await.pid;
    daemon.write_plugin("rogue", "name = \"rogue\"\nthis is no TOML");
    let health = daemon.until("rogue", |health| health.pending_change.is_some()).await;
    let why = health.pending_change.clone().expect("why");
    assert!(why.starts_with("Manifest error: plugin.toml:2:"), "{why}");
    assert_eq!((health.state(), health.pid), (PluginState::Initialized, pid), "it runs on");
    let good = manifest("rogue", QUICK).replace("1.2.3", "2.0.0");
    daemon.write_plugin("rogue", &good);
    let health = daemon
        .until("rogue", |health| {
            health.version.as_deref() == Some("2.0.0") && health.state() == PluginState::Initialized
        })
        .await;
    assert_eq!((health.pending_change, health.restarts), (None, 0));
    assert_ne!(health.pid, pid);
    // New, and removed.
    daemon.write_plugin("late", &manifest("late", ""));
    daemon.serving("late").await;
    std::fs::remove_dir_all(daemon.directory("late")).expect("remove");
    stockade_tests::eventually("it is gone", || async {
        let list = daemon.list().await;
        list.plugins.iter().all(|plugin| plugin.name != "late").then_some(())
    })
    .await;
    daemon.stop().await;
}

/// What the operator lays over a plugin is taken over by a reload.
#[tokio::test]
async fn the_configuration_of_a_plugin_can_change_while_it_runs() {
    let daemon = Options::new().bystander().rogue("rogue", QUICK).start().await;
    let config = daemon.root.join("stockade.toml");
    let pid = daemon.serving("rogue").await.pid;
    let short = "[plugin.rogue.timeouts]\ncall = \"150ms\"\ncancel_grace = \"50ms\"\n";
    std::fs::write(&config, short).expect("config");
    assert_eq!(daemon.reload().await.changed, ["rogue"]);
    daemon.until("rogue", |health| health.pid.is_some() && health.pid != pid).await;
    daemon.serving("rogue").await;
    let outcome = daemon.call("rogue", "wait", json!({"n": 60_000})).await;
    assert_eq!(outcome.error, "Tool wait ran past 150ms and was cancelled.");
    std::fs::write(&config, format!("{short}[plugin.rogue]\nenabled = false\n")).expect("config");
    daemon.reload().await;
    daemon.state("rogue", PluginState::Loaded, "DISABLED").await;
    // Not remembered as the operator's wish.
    std::fs::write(&config, "").expect("config");
    daemon.reload().await;
    daemon.serving("rogue").await;
    daemon.stop().await;
}

/// A plugin that writes into its own directory all the time holds up nobody.
#[tokio::test]
async fn a_directory_that_never_rests_blocks_neither_reload_nor_the_end() {
    let daemon = Options::new().bystander().rogue("rogue", QUICK).start().await;
    daemon.serving("rogue").await;
    let noisy = daemon.directory("rogue").join("log");
    let writer = tokio::spawn(async move {
        for n in 0u32.. {
            if std::fs::write(&noisy, n.to_string()).is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    eventually("it is written into all the time", || async {
        let text = std::fs::read_to_string(daemon.directory("rogue").join("log")).ok()?;
        text.parse::<u32>().ok().filter(|n| *n >= 20).map(drop)
    })
    .await;
    let asked = Instant::now();
    daemon.reload().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(15), "the reload took {took:?}");
    let asked = Instant::now();
    daemon.stop().await;
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(20), "the end took {took:?}");
    writer.abort();
}
