//! Resources (faults 41 to 44, 81).

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Options, eventually, open_files, small_disk};

use crate::scene::{QUICK, Scene};

/// Fault 41, briefly here; `make soak` does ten thousand.
#[tokio::test]
async fn restarts_let_nothing_grow() {
    let restarts: u32 =
        std::env::var("STOCKADE_SOAK_RESTARTS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    // A budget of deaths that all of them fit into.
    let budget = format!("max_deaths = {}", restarts.saturating_add(1000));
    let scene = Scene::new(&QUICK.replace("max_deaths = 1000", &budget)).await;
    let pid = scene.daemon.pid();
    let round = async |n: u32| {
        for _ in 0..n {
            let outcome = scene.call("exit", json!({"n": 1})).await;
            assert_eq!(outcome.failed(), ("WorkerCrashed", "exit_code"));
            // A call waits for the start that follows.
            eventually("serves again", || async {
                scene.call("pid", json!({})).await.ok.then_some(())
            })
            .await;
        }
    };
    round(20).await;
    let before = (open_files(pid), threads(pid), resident(pid));
    // Every twentieth of the way it is told where things stand.
    let mut done = 0;
    while done < restarts {
        let next = (restarts / 20).max(1).min(restarts - done);
        round(next).await;
        done += next;
        println!(
            "{done} of {restarts} restarts: {} KiB, {} descriptors, {} threads",
            resident(pid) / 1024,
            open_files(pid),
            threads(pid)
        );
    }
    let deaths = scene.daemon.health("rogue").await.restarts;
    assert_eq!(deaths, u64::from(restarts) + 20, "every one of them was a restart");
    eventually("descriptors are back", || async {
        (open_files(pid) <= before.0 + 2).then_some(())
    })
    .await;
    let after = (threads(pid), resident(pid));
    // Blocking threads come and go; they are bounded by the starts at once.
    assert!(after.0 <= before.1 + 8, "threads: {} → {}", before.1, after.0);
    assert!(after.1 < before.2 + (16 << 20), "memory: {} → {}", before.2, after.1);
    scene.end().await;
}

fn status(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with(name)).expect("line");
    line.split_whitespace().nth(1).expect("value").parse().expect("number")
}

fn threads(pid: u32) -> u64 {
    status(pid, "Threads:")
}

fn resident(pid: u32) -> u64 {
    status(pid, "VmRSS:") * 1024
}

/// Fault 42: children outlive whatever thread asked for them.
#[tokio::test]
async fn plugins_outlive_the_threads_that_started_them() {
    let scene = Scene::new(QUICK).await;
    let first = scene.daemon.serving("rogue").await.pid;
    // tokio's blocking threads retire after ten seconds of rest.
    tokio::time::sleep(std::time::Duration::from_secs(12)).await;
    let health = scene.daemon.serving("rogue").await;
    assert_eq!((health.pid, health.generation), (first, 1));
    scene.end().await;
}

/// Fault 43.
#[tokio::test]
async fn a_plugin_sees_exactly_what_it_should() {
    let daemon = Options::new()
        .bystander()
        .rogue("rogue", &format!("env = {{ MY = \"own\" }}\n{QUICK}"))
        .env("SECRET_TOKEN", "canary")
        .start()
        .await;
    let seen = daemon.call("rogue", "surroundings", json!({})).await.unwrap();
    let texts = |key: &str| -> Vec<String> {
        seen[key]
            .as_array()
            .expect(key)
            .iter()
            .map(|v| v.as_str().expect("text").to_owned())
            .collect()
    };
    // 0 null, 1 and 2 pipes, 3 and 4 sockets, 5 the notice pipe; the rest is
    // the SDK's own runtime and the directory that lists them.
    let kinds = texts("descriptors");
    assert_eq!(kinds[..6], ["0 /dev/null", "1 pipe", "2 pipe", "3 socket", "4 socket", "5 pipe"]);
    for other in &kinds[6..] {
        let known = ["anon_inode", "socket", "pipe"].iter().any(|kind| other.ends_with(kind));
        assert!(known || other.contains("/proc/"), "{other}");
    }
    assert_eq!(
        texts("environment"),
        [
            "HOME",
            "LANG",
            "LOGNAME",
            "MY",
            "OMP_NUM_THREADS",
            "OPENBLAS_NUM_THREADS",
            "PATH",
            "TMPDIR",
            "USER"
        ]
    );
    assert_eq!(seen["blocked_signals"], "0000000000000000");
    // Rust's runtime ignores SIGPIPE itself; nothing else is inherited.
    assert_eq!(seen["ignored_signals"], "0000000000001000");
    assert_eq!(seen["umask"], "0022");
    assert_eq!(seen["no_new_privs"], "1");
    assert_eq!(seen["session_is_own"], true);
    assert_eq!(seen["oom_score_adj"], "500");
    // The daemon may be ahead of its plugins, no plugin is ahead of anybody.
    let (daemons, own) =
        unsafe { (libc::getpriority(libc::PRIO_PROCESS, daemon.pid()), libc::nice(0)) };
    assert!(daemons <= own, "the daemon is at {daemons}, this test at {own}");
    assert_eq!(seen["nice"], own.max(0));
    assert_eq!(seen["working_directory"], daemon.directory("rogue").display().to_string());
    let own = daemon.call("rogue", "self", json!({})).await.unwrap();
    assert_eq!(own, "rogue 1.2.3 1");
    daemon.stop().await;
}

/// The limits that every plugin gets without asking.
#[tokio::test]
async fn a_plugin_has_limits_by_default() {
    let daemon = Options::new().bystander().start().await;
    let plugin = daemon.serving("good").await.pid.expect("pid");
    let limits = std::fs::read_to_string(format!("/proc/{plugin}/limits")).expect("limits");
    let line = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).expect("limit");
        line.split_whitespace().find(|word| word.parse::<u64>().is_ok()).map(str::to_owned)
    };
    assert_eq!(line("Max data size"), Some((4u64 << 30).to_string()), "RLIMIT_DATA by default");
    assert_eq!(line("Max open files"), Some("1024".to_owned()));
    assert_eq!(line("Max core file size"), Some("0".to_owned()));
    daemon.stop().await;
}

/// Fault 44: at its descriptor limit the daemon stays up and says so.
#[tokio::test]
async fn a_daemon_out_of_descriptors_stays_up_and_says_so() {
    let mut options = Options::new().bystander();
    for n in 0..30 {
        options = options.rogue(&format!("p{n:02}"), "activation = \"on_demand\"");
    }
    let daemon = options.start().await;
    // As few as it has, and some more: not enough for thirty plugins.
    let limit = open_files(daemon.pid()) + 80;
    let mut prlimit = std::process::Command::new("prlimit");
    prlimit.args(["--pid", &daemon.pid().to_string(), &format!("--nofile={limit}")]);
    assert!(stockade_tests::as_test_user(&mut prlimit).status().expect("prlimit").success());
    let mut refused = None;
    for n in 0..30 {
        let name = format!("p{n:02}");
        let outcome = daemon.call_with(&name, "pid", json!({}), &[], 3000).await;
        if !outcome.ok {
            refused = Some(name);
            break;
        }
    }
    let refused = refused.expect("some plugin finds no descriptors");
    let health = daemon
        .until(&refused, |health| {
            health.last_error.as_ref().is_some_and(|error| error.starts_with("Could not start: "))
        })
        .await;
    assert_eq!(health.state(), PluginState::Failed);
    // Those that run go on.
    daemon.call("good", "ping", json!({"text": "x"})).await.unwrap();
    daemon.stop().await;
}

/// Fault 44: a state directory that cannot be written.
#[tokio::test]
async fn a_full_disk_is_said_and_survived() {
    let folder = tempfile::tempdir().expect("folder");
    let state = folder.path().join("state");
    std::fs::create_dir(&state).expect("state");
    let Some(disk) = small_disk(&state, "2m") else { return };
    let daemon = Options::new().bystander().rogue("rogue", QUICK).start_in(folder).await;
    daemon.serving("rogue").await;
    // Fill it to the last byte.
    let mut filler = std::fs::File::create(state.join("filler")).expect("filler");
    let block = [0u8; 4096];
    while std::io::Write::write_all(&mut filler, &block).is_ok() {}
    for _ in 0..50 {
        daemon.call("rogue", "words_then_exit", json!({"text": "x".repeat(2000)})).await;
        daemon.serving("rogue").await;
    }
    daemon.call("good", "ping", json!({"text": "x"})).await.unwrap();
    let request = stockade_proto::v1::GetDaemonRequest {};
    let said = daemon.admin().get_daemon(request).await.expect("daemon").into_inner().problems;
    assert!(said.iter().any(|problem| problem.contains("Free its disk")), "{said:?}");
    daemon.signal(libc::SIGTERM);
    let mut daemon = daemon;
    assert_eq!(daemon.ended().await, Some(0));
    daemon.wait_gone();
    drop(disk);
}

/// Fault 81: an idle plugin that spins is put behind the others and named, also where
/// three others leave it a quarter of the processor that it wants.
#[tokio::test]
async fn an_idle_plugin_that_spins_is_named() {
    let scene = Scene::new(&format!("args = [\"--spin\"]\n{QUICK}")).await;
    let rogue = scene.daemon.serving("rogue").await.pid.expect("pid");
    only_on_one_processor(rogue);
    let _rivals: Vec<Rival> = (0..3).map(|_| Rival::start()).collect();
    let health = scene.daemon.until("rogue", |health| health.substate == "DEGRADED").await;
    let reason = health.reason.expect("reason");
    assert!(reason.contains("with no call in flight for 10 s: lowered its priority"), "{reason}");
    let pid = health.pid.expect("pid");
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, pid) };
    assert_eq!(nice, 19);
    scene.call("pid", json!({})).await.unwrap();
    scene.end().await;
}

/// A process of the test that spins until it is dropped.
struct Rival(std::process::Child);

impl Rival {
    fn start() -> Self {
        let mut command = std::process::Command::new("sh");
        let child = command.args(["-c", "while :; do :; done"]).spawn().expect("sh");
        only_on_one_processor(child.id());
        Rival(child)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every thread of a process has to share the first processor that the test may use.
fn only_on_one_processor(pid: u32) {
    let size = size_of::<libc::cpu_set_t>();
    let first = unsafe {
        let mut ours: libc::cpu_set_t = std::mem::zeroed();
        assert_eq!(libc::sched_getaffinity(0, size, &mut ours), 0);
        let cpu = (0..libc::CPU_SETSIZE as usize).find(|cpu| libc::CPU_ISSET(*cpu, &ours));
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu.expect("a processor"), &mut one);
        one
    };
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).expect("tasks") {
        let tid = task.expect("task").file_name().to_str().expect("tid").parse().expect("tid");
        let done = unsafe { libc::sched_setaffinity(tid, size, &first) };
        assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
    }
}

/// The operator's ceilings: what all plugins use together, and what a manifest asks for.
#[tokio::test]
async fn the_largest_gives_way_when_all_together_are_too_large() {
    let many = QUICK.replace("[timeouts]", "[limits]\nprocesses = 5000\n[timeouts]");
    let daemon = Options::new()
        .bystander()
        .rogue("small", QUICK)
        .rogue("large", &many)
        .rogue("allowed", &many)
        .config(
            "[limits]\nmemory_total = \"400MiB\"\nprocesses = 300\n\
             [plugin.allowed.limits]\nprocesses = 5000\n",
        )
        .start()
        .await;
    daemon.serving("large").await;
    let small = daemon.serving("small").await;
    assert!(daemon.call("small", "hold", json!({"n": 150})).await.ok);
    let outcome = daemon.call("large", "allocate", json!({"n": 350})).await;
    assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_host"), "{}", outcome.error);
    assert!(outcome.error.contains("memory_total = 400MiB"), "{}", outcome.error);
    daemon.death("large", "oom_host").await;
    daemon.serving("large").await;
    let after = daemon.serving("small").await;
    assert_eq!(after.generation, small.generation, "the smaller one goes on");
    let request = stockade_proto::v1::GetDaemonRequest {};
    let told = daemon.admin().get_daemon(request).await.expect("daemon");
    let problems = told.into_inner().problems;
    let lowered = "plugin large asks for limits.processes = 5000; [limits] of stockade.toml allows \
                   300";
    assert!(problems.iter().any(|problem| problem.contains(lowered)), "{problems:?}");
    let of_allowed = problems.iter().find(|problem| problem.contains("plugin allowed"));
    assert_eq!(of_allowed, None, "its own table gives it what it asks for");
    daemon.stop().await;
}
