//! Hang and kill (faults 12 to 22).

use std::time::Duration;

use serde_json::json;
use stockade_proto::v1::{CallRequest, PluginHealth, PluginState};
use stockade_tests::{Options, eventually, left_in};

use crate::scene::{QUICK, Scene};

/// Fault 12.
#[tokio::test]
async fn a_plugin_that_never_shakes_hands_is_killed_and_told() {
    let more = "args = [\"--before\", \"hang\"]\n[timeouts]\nhandshake = \"300ms\"\n\
                [restart]\nmax_deaths = 0\nexhausted = \"hold\"";
    let scene = Scene::unready(more).await;
    let health = scene.daemon.state("rogue", PluginState::Failed, "EXHAUSTED").await;
    let exit = health.last_exit.expect("exit");
    assert_eq!(exit.cause, "startup_timeout");
    assert!(
        exit.reason.starts_with("No handshake in 300ms; last phase spawned."),
        "{}",
        exit.reason
    );
    scene.end().await;
}

/// Fault 13.
#[tokio::test]
async fn slow_loading_with_progress_lives_and_without_dies() {
    // Seventy steps of at least 100 ms take longer than what a start without progress
    // may; a single one does not, however busy the machine is.
    let timeouts = "[timeouts]\ninit = \"5s\"\n[restart]\nmax_deaths = 0\nexhausted = \"hold\"";
    let daemon = Options::new()
        .bystander()
        .rogue("slow", &format!("args = [\"--slow-init\", \"70\"]\n{timeouts}"))
        .rogue("stuck", &format!("args = [\"--in-init\", \"hang\"]\n{timeouts}"))
        .start()
        .await;
    let health = daemon.until("slow", |health| health.progress.is_some()).await;
    assert!(health.progress.expect("progress").ends_with("% loading"));
    let stuck = daemon.state("stuck", PluginState::Failed, "EXHAUSTED").await;
    let exit = stuck.last_exit.expect("exit");
    assert_eq!(exit.cause, "startup_timeout");
    assert!(exit.reason.contains("last phase init. Raise timeouts.init"), "{}", exit.reason);
    let slow = daemon.serving("slow").await;
    assert_eq!((slow.restarts, slow.generation), (0, 1));
    daemon.stop().await;
}

/// Fault 14.
#[tokio::test]
async fn a_stopped_process_is_caught_by_the_watchdog() {
    let ping = QUICK.replace("[timeouts]", "[timeouts]\nping = \"100ms\"\nping_misses = 2");
    let scene = Scene::new(&ping).await;
    let outcome = scene.call("stop_self", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "watchdog"));
    assert!(outcome.error.starts_with("No answer to pings for "), "{}", outcome.error);
    scene.recovers_from("watchdog").await;
    // Stopped by hand, and then stopped by an operator.
    let pid = scene.daemon.serving("rogue").await.pid.expect("pid");
    unsafe { libc::kill(pid as i32, libc::SIGSTOP) };
    scene.daemon.admin().stop_plugin(scene.daemon.action("rogue")).await.expect("stop");
    scene.daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    scene.end().await;
}

/// A plugin whose tools dead-lock the runtime is not healthy; one whose tools
/// are merely busy is.
#[tokio::test]
async fn serving_pings_judge_only_while_a_slot_is_free() {
    let ping = QUICK.replace("[timeouts]", "[timeouts]\nping = \"500ms\"\nping_misses = 3");
    let scene = Scene::new(&ping).await;
    // All slots busy in a blocking tool, for many pings: nothing happens.
    let outcome = scene.call("sleep", json!({"n": 6000})).await;
    assert_eq!(outcome.unwrap(), 6000);
    assert_eq!(scene.daemon.serving("rogue").await.restarts, 0);
    // The reader itself is blocked: even transport pings go unanswered.
    let outcome = scene.call("block_runtime", json!({"n": 20_000})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "watchdog"));
    scene.recovers_from("watchdog").await;
    scene.end().await;
}

/// Fault 39: a supervisor that was itself suspended judges nobody.
#[tokio::test]
async fn a_suspended_supervisor_fires_no_watchdog() {
    // A single miss kills; a plugin of a busy machine answers within two seconds.
    let ping = QUICK.replace("[timeouts]", "[timeouts]\nping = \"2s\"\nping_misses = 1");
    let scene = Scene::new(&ping).await;
    let Scene { daemon, .. } = &scene;
    let before = daemon.health("rogue").await;
    daemon.signal(libc::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(8)).await;
    daemon.signal(libc::SIGCONT);
    // Two pings later it is still the same process.
    let up = before.uptime_seconds.expect("up") + 8.0 + 2.0 * 4.0;
    let after = daemon.until("rogue", |now| now.uptime_seconds.is_some_and(|s| s > up)).await;
    assert_eq!((after.pid, after.restarts), (before.pid, 0));
    scene.end().await;
}

/// Fault 15.
#[tokio::test]
async fn a_plugin_that_ignores_sigterm_is_killed() {
    let more = format!("args = [\"--before\", \"ignore-term\", \"--hang-in-shutdown\"]\n{QUICK}");
    let scene = Scene::new(&more).await;
    scene.daemon.admin().stop_plugin(scene.daemon.action("rogue")).await.expect("stop");
    let health = scene.daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    let exit = health.last_exit.expect("exit");
    assert_eq!(exit.cause, "stop_timeout");
    assert_eq!(exit.reason, "Ignored SIGTERM for 1s; killed.");
    assert_eq!(health.error_count, 0);
    scene.end().await;
}

/// The shutdown hook runs, and a stop is no failure.
#[tokio::test]
async fn a_stop_runs_the_hook_and_is_no_failure() {
    let scene = Scene::new(QUICK).await;
    scene.daemon.admin().stop_plugin(scene.daemon.action("rogue")).await.expect("stop");
    let health = scene.daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    assert_eq!(health.last_exit.expect("exit").cause, "operator_stop");
    assert_eq!((health.reason, health.error_count), (None, 0));
    assert_eq!(scene.daemon.crashes("rogue").await, []);
    let logs = scene.daemon.logs("rogue").await;
    assert!(logs.iter().any(|line| line.text == "shut down in order" && line.level == "info"));
    let outcome = scene.call("pid", json!({})).await;
    assert_eq!(outcome.failed(), ("PluginUnavailable", ""));
    assert_eq!(outcome.retry_after_ms, 0);
    scene.daemon.admin().start_plugin(scene.daemon.action("rogue")).await.expect("start");
    scene.call("pid", json!({})).await.unwrap();
    scene.end().await;
}

/// Fault 16.
#[tokio::test]
async fn children_that_left_session_and_parent_die_too() {
    let scene = Scene::new(QUICK).await;
    scene.call("orphans", json!({"n": 5})).await.unwrap();
    let sleeps = |left: Vec<String>| left.iter().filter(|name| name.ends_with(" sleep")).count();
    let root = scene.daemon.root.clone();
    assert_eq!(sleeps(left_in(&root)), 5);
    scene.call("exit", json!({"n": 1})).await;
    scene.recovers_from("exit_code").await;
    assert_eq!(sleeps(left_in(&root)), 0, "gone before the successor was started");
    // The same at an ordinary stop.
    scene.call("orphans", json!({"n": 3})).await.unwrap();
    scene.daemon.admin().stop_plugin(scene.daemon.action("rogue")).await.expect("stop");
    scene.daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    assert_eq!(sleeps(left_in(&root)), 0);
    scene.end().await;
}

/// Fault 17.
#[tokio::test]
async fn a_fork_bomb_is_bounded() {
    // Starved by its own children it may miss pings for long: the number of processes
    // is to be what it is ended for, not that.
    let more = QUICK.replace("[timeouts]", "[timeouts]\nping = \"60s\"");
    let scene = Scene::new(&format!("{more}\n[limits]\nprocesses = 50")).await;
    let outcome = scene.call("fork_bomb", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "process_limit"));
    assert!(outcome.error.contains("limits.processes = 50"), "{}", outcome.error);
    scene.recovers_from("process_limit").await;
    scene.end().await;
}

/// Fault 18: a tracer that does not let go stands for a driver that hangs.
#[tokio::test]
async fn what_survives_sigkill_is_unkillable_and_not_started_again() {
    let scene = Scene::new(QUICK).await;
    let pid = scene.daemon.serving("rogue").await.pid.expect("pid");
    let hold = Tracer::hold_at_exit(pid);
    unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    // Dead to the world but not gone: its death is not reported.
    scene.daemon.admin().stop_plugin(scene.daemon.action_now("rogue")).await.expect("stop");
    scene.daemon.state("rogue", PluginState::Failed, "UNKILLABLE").await;
    // Where it is stuck is looked up then.
    let reason = format!("Process {pid} is stuck in the kernel (");
    let told = |health: &PluginHealth| {
        health.reason.as_ref().is_some_and(|told| told.starts_with(&reason))
    };
    let health = scene.daemon.until("rogue", told).await;
    let generation = health.generation;
    scene.daemon.admin().start_plugin(scene.daemon.action_now("rogue")).await.expect("start");
    let health = scene.daemon.health("rogue").await;
    assert_eq!((health.generation, health.substate.as_str()), (generation, "UNKILLABLE"));
    drop(hold);
    // Once it is gone it is started again.
    scene.daemon.serving("rogue").await;
    scene.end().await;
}

/// A process that traces another and keeps it from exiting.
struct Tracer {
    child: std::process::Child,
}

impl Tracer {
    fn hold_at_exit(pid: u32) -> Self {
        // PTRACE_SEIZE with PTRACE_O_TRACEEXIT on every thread, then sleep.
        let script = format!(
            "import ctypes, os, time, sys\n\
             libc = ctypes.CDLL(None, use_errno=True)\n\
             libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]\n\
             for tid in os.listdir('/proc/{pid}/task'):\n\
             \x20   assert libc.ptrace(0x4206, int(tid), 0, 0x40) == 0, ctypes.get_errno()\n\
             print('held', flush=True)\n\
             time.sleep(600)\n"
        );
        let mut child = std::process::Command::new("python3")
            .args(["-c", &script])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("python3");
        let mut line = String::new();
        let out = child.stdout.take().expect("stdout");
        std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).expect("line");
        assert_eq!(line.trim(), "held");
        Tracer { child }
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Fault 19.
#[tokio::test]
async fn an_exit_that_races_the_kill_is_told_as_an_exit() {
    // The tool crashes in the middle of the grace, before the kill.
    let more = "[timeouts]\ncall = \"2s\"\ncancel_grace = \"50s\"\n[restart]\nmax_deaths = 1000\n\
                backoff_min = \"10ms\"\nbackoff_max = \"20ms\"";
    let scene = Scene::new(&format!("concurrency = 2\n{more}")).await;
    let slow = scene.daemon.client();
    let sleeping =
        tokio::spawn(async move { slow.call("rogue", "sleep", json!({"n": 60_000})).await });
    scene.daemon.until("rogue", |health| health.in_flight == 1).await;
    // Past the call's time, which began before.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert!(!sleeping.is_finished(), "it is in its grace");
    scene.call("exit", json!({"n": 42})).await;
    let outcome = sleeping.await.expect("join");
    assert_eq!(outcome.failed(), ("WorkerCrashed", "exit_code"));
    assert!(outcome.error.starts_with("Exited 42 after "), "{}", outcome.error);
    scene.recovers_from("exit_code").await;
    scene.end().await;
}

/// Fault 20.
#[tokio::test]
async fn a_stop_is_obeyed_while_starting_backing_off_and_being_killed() {
    let scene =
        Scene::unready("args = [\"--before\", \"hang\"]\n[timeouts]\nstop = \"500ms\"").await;
    scene.daemon.until("rogue", |health| health.pid.is_some()).await;
    scene.daemon.admin().stop_plugin(scene.daemon.action("rogue")).await.expect("stop");
    scene.daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    scene.end().await;

    let more = "args = [\"--before\", \"exit:1\"]\n[restart]\nbackoff_min = \"50s\"";
    let scene = Scene::unready(more).await;
    let health = scene.daemon.state("rogue", PluginState::Failed, "BACKOFF").await;
    assert!(health.next_retry_at.is_some());
    scene.daemon.admin().stop_plugin(scene.daemon.action("rogue")).await.expect("stop");
    scene.daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    scene.end().await;

    let more = "[timeouts]\ncall = \"100ms\"\ncancel_grace = \"10ms\"";
    let scene = Scene::new(more).await;
    let pid = scene.daemon.serving("rogue").await.pid.expect("pid");
    let hold = Tracer::hold_at_exit(pid);
    let client = scene.daemon.client();
    let call =
        tokio::spawn(async move { client.call("rogue", "sleep", json!({"n": 60_000})).await });
    scene.daemon.state("rogue", PluginState::Failed, "KILLING").await;
    scene.daemon.admin().stop_plugin(scene.daemon.action_now("rogue")).await.expect("stop");
    drop(hold);
    scene.daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    assert_eq!(call.await.expect("join").failed(), ("TimeoutError", "call_timeout"));
    scene.end().await;
}

/// Fault 21.
#[tokio::test]
async fn a_call_past_its_time_out_is_cancelled_then_killed() {
    let more = "[timeouts]\ncall = \"2s\"\ncancel_grace = \"2s\"\n[restart]\nmax_deaths = 99\n\
                backoff_min = \"10ms\"";
    let scene = Scene::new(&format!("concurrency = 2\n{more}")).await;
    // Cooperative: told, obeyed, nothing dies.
    let outcome = scene.call("wait", json!({"n": 60_000})).await;
    assert_eq!(outcome.failed(), ("TimeoutError", ""));
    assert_eq!(outcome.error, "Tool wait ran past 2s and was cancelled.");
    assert_eq!(scene.call("cancelled", json!({})).await.unwrap(), true);
    assert_eq!(scene.daemon.serving("rogue").await.restarts, 0);
    // Deaf: killed, and the call beside it is told why.
    let client = scene.daemon.client();
    let neighbour = tokio::spawn(async move {
        // In the middle of the other's grace: its own time is not over then.
        client.until("rogue", |health| health.in_flight == 1).await;
        tokio::time::sleep(Duration::from_millis(3000)).await;
        client.call("rogue", "sleep", json!({"n": 60_000})).await
    });
    let outcome = scene.call("sleep", json!({"n": 60_000})).await;
    assert_eq!(outcome.failed(), ("TimeoutError", "call_timeout"));
    let start = "Tool sleep ran past 2s; killed after 2s.";
    assert!(outcome.error.starts_with(start), "{}", outcome.error);
    assert_eq!(neighbour.await.expect("join").failed(), ("WorkerCrashed", "call_timeout"));
    scene.recovers_from("call_timeout").await;
    scene.end().await;
}

/// Fault 22, and: a caller's own deadline never kills.
#[tokio::test]
async fn a_client_that_goes_cancels_its_call_and_nothing_more() {
    let scene = Scene::new(&format!("concurrency = 2\n{QUICK}")).await;
    let request = CallRequest {
        plugin: "rogue".into(),
        tool: "wait".into(),
        args: "{\"n\": 60000}".into(),
        ..CallRequest::default()
    };
    let mut client = scene.daemon.tools();
    let call = tokio::spawn(async move { client.call(request).await.map(drop) });
    scene.daemon.until("rogue", |health| health.in_flight == 1).await;
    assert_eq!(scene.daemon.health("rogue").await.state(), PluginState::Running);
    call.abort();
    scene.daemon.until("rogue", |health| health.in_flight == 0).await;
    assert_eq!(scene.call("cancelled", json!({})).await.unwrap(), true);
    // The caller's deadline: answered at once, the slot stays the tool's.
    let outcome = scene.daemon.call_with("rogue", "sleep", json!({"n": 5000}), &[], 100).await;
    assert_eq!(outcome.failed(), ("TimeoutError", ""));
    assert_eq!(outcome.error, "Tool sleep did not answer within the caller's deadline.");
    assert_eq!(scene.daemon.health("rogue").await.in_flight, 1);
    eventually("the tool returns", || async {
        (scene.daemon.health("rogue").await.in_flight == 0).then_some(())
    })
    .await;
    assert_eq!(scene.daemon.serving("rogue").await.restarts, 0);
    scene.end().await;
}
