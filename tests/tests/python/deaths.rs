//! Python plugins that misbehave: each costs its own calls and is named.

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Daemon, Options, eventually, left_in, open_files};

const SOURCE: &str = r#"
import ctypes, faulthandler, gc, os, signal, subprocess, sys, threading, time

libc = ctypes.CDLL(None)

def in_the_depths(address):
    ctypes.string_at(address)

class Plugin:
    def __init__(self):
        self.children = []

    def pid(self):
        return os.getpid()

    def segfault(self):
        in_the_depths(0)

    def segfault_in_thread(self):
        thread = threading.Thread(target=in_the_depths, args=(0,))
        thread.start()
        thread.join()

    def abort(self):
        libc.abort()

    def os_exit(self, code: int):
        os._exit(code)

    def sys_exit(self, code: int):
        sys.exit(code)

    def recurse_in_c(self):
        sys.setrecursionlimit(10 ** 9)
        class A:
            def __repr__(self):
                return repr([self])
        return repr(A())

    def eat(self, megabytes: int):
        return len(bytearray(megabytes << 20))

    def sleep_holding_the_lock(self, seconds: int):
        # PyDLL keeps the interpreter's lock.
        ctypes.PyDLL(None).usleep(seconds * 1_000_000)

    def hold_the_lock_later(self):
        def hold():
            time.sleep(0.2)
            ctypes.PyDLL(None).sleep(3600)
        threading.Thread(target=hold, daemon=True).start()

    def sleep_deaf(self, seconds: float):
        def deep_in_the_tool():
            time.sleep(seconds)
        deep_in_the_tool()

    def print_flood(self, lines: int):
        for i in range(lines):
            print("x" * 200, i)
        return lines

    def close_outputs(self):
        os.close(1)
        os.close(2)
        print("into nothing")
        return True

    def close_everything(self):
        os.closerange(3, 256)
        time.sleep(600)

    def replace_signals(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGSEGV, signal.SIGABRT):
            signal.signal(number, lambda *_: None)
        signal.signal = None
        return True

    def own_faulthandler(self):
        faulthandler.disable()
        faulthandler.enable()

    def outlive(self):
        def later():
            for _ in range(20):
                print("still here")
                time.sleep(0.01)
            self.children.append("done")
        threading.Thread(target=later).start()
        return True

    def outlived(self):
        return "done" in self.children

    def leave_children(self, n: int):
        for _ in range(n):
            if os.fork() == 0:
                os.setsid()
                if os.fork():
                    os._exit(0)
                time.sleep(3600)
                os._exit(0)
        return n

    def fork_and_return(self):
        return "child" if os.fork() == 0 else "parent"

    def fork_bomb(self):
        while True:
            try:
                os.fork()
            except OSError:
                time.sleep(0.01)

    def grow(self):
        held = []
        while True:
            held.append(bytearray(b"x" * (8 << 20)))

    def raise_deep(self, n: int):
        return self.raise_deep(n - 1) if n else 1 / 0

    def multiprocess(self):
        import multiprocessing
        with multiprocessing.get_context("spawn").Pool(2) as pool:
            return pool.map(abs, [-1, -2])
"#;

const QUICK: &str = "
[timeouts]
cancel_grace = \"500ms\"
stop = \"2s\"
[restart]
backoff_min = \"10ms\"
backoff_max = \"50ms\"
max_deaths = 1000
";

async fn rogue(more: &str) -> Daemon {
    let run = if more.starts_with('[') { String::new() } else { more.to_owned() };
    let tables = if run.is_empty() { more } else { "" };
    // A table of `more` goes into the one that is there.
    let quick = match tables.strip_prefix("[timeouts]\n") {
        Some(keys) => QUICK.replace("[timeouts]\n", &format!("[timeouts]\n{keys}\n")),
        None => format!("{QUICK}{tables}"),
    };
    let daemon = Options::new()
        .bystander()
        .python("rogue", &format!("{run}\n{quick}"), SOURCE)
        .start()
        .await;
    daemon.serving("rogue").await;
    daemon
}

async fn recovers(daemon: &Daemon, cause: &str) {
    daemon.death("rogue", cause).await;
    // Its death before this one may have had the same cause: what counts is that it works.
    eventually("it works again", || async {
        daemon.call("rogue", "pid", json!({})).await.result.as_u64()
    })
    .await;
}

#[tokio::test]
async fn crashes_are_named_with_tool_and_python_stack() {
    let daemon = rogue("").await;
    let descriptors = open_files(daemon.pid());
    for (tool, signal, frame) in [
        ("segfault", "SIGSEGV", "in in_the_depths"),
        ("segfault_in_thread", "SIGSEGV", "in in_the_depths"),
        ("abort", "SIGABRT", "in abort"),
        ("recurse_in_c", "SIGSEGV", "in __repr__"),
    ] {
        let outcome = daemon.call("rogue", tool, json!({})).await;
        assert_eq!(outcome.failed(), ("WorkerCrashed", "crash"), "{tool}: {outcome:?}");
        let start = format!("Crashed with {signal} after ");
        assert!(outcome.error.starts_with(&start), "{}", outcome.error);
        assert!(outcome.error.contains(&format!(" in tool {tool}")), "{}", outcome.error);
        recovers(&daemon, "crash").await;
        let crash = &daemon.crashes("rogue").await[0];
        assert!(crash.traceback.contains(frame), "{tool}: {}", crash.traceback);
    }
    let lines = daemon.logs("rogue").await;
    assert!(lines.iter().any(|line| line.text.contains("Segmentation fault")));
    eventually("the descriptors are back", || async {
        (open_files(daemon.pid()) <= descriptors + 2).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn exits_are_told_as_they_were_and_sys_exit_is_an_error() {
    let daemon = rogue("").await;
    let outcome = daemon.call("rogue", "os_exit", json!({"code": 9})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "exit_code"));
    assert!(outcome.error.starts_with("Exited 9 after "), "{}", outcome.error);
    recovers(&daemon, "exit_code").await;
    let outcome = daemon.call("rogue", "sys_exit", json!({"code": 9})).await;
    assert_eq!((outcome.error_type.as_str(), outcome.error.as_str()), ("SystemExit", "9"));
    assert_eq!(daemon.health("rogue").await.generation, 2, "it lives");
    daemon.stop().await;
}

#[tokio::test]
async fn a_call_killed_for_its_deadline_leaves_its_stack() {
    for (tool, args, frame) in [
        ("sleep_deaf", json!({"seconds": 600}), "in deep_in_the_tool"),
        ("sleep_holding_the_lock", json!({"seconds": 600}), "in sleep_holding_the_lock"),
    ] {
        let daemon = rogue("[timeouts]\ncall = \"300ms\"").await;
        let outcome = daemon.call("rogue", tool, args).await;
        assert_eq!(outcome.failed(), ("TimeoutError", "call_timeout"), "{outcome:?}");
        recovers(&daemon, "call_timeout").await;
        let crash = &daemon.crashes("rogue").await[0];
        assert!(crash.traceback.contains(frame), "{tool}: {crash:?}");
        daemon.stop().await;
    }
}

#[tokio::test]
async fn busy_in_c_is_judged_by_the_call_and_dead_locked_while_idle_by_the_ping() {
    let pings = "[timeouts]\nping = \"100ms\"\nping_misses = 3\ncall = \"60s\"";
    let daemon = rogue(pings).await;
    // Ten times the patience of the pings, in C, with the lock held.
    let outcome = daemon.call("rogue", "sleep_holding_the_lock", json!({"seconds": 6})).await;
    assert!(outcome.ok, "{outcome:?}");
    assert_eq!(daemon.health("rogue").await.generation, 1);
    daemon.call("rogue", "hold_the_lock_later", json!({})).await.unwrap();
    let health = daemon.death("rogue", "watchdog").await;
    let reason = health.last_exit.expect("exit").reason;
    assert!(reason.contains("while idle"), "{reason}");
    recovers(&daemon, "watchdog").await;
    daemon.stop().await;
}

#[tokio::test]
async fn too_much_memory_is_an_error_or_a_kill_and_told_apart() {
    let limits = "[limits]\nmemory = \"256MiB\"\ndata = \"1GiB\"\n";
    let daemon = rogue(limits).await;
    let outcome = daemon.call("rogue", "eat", json!({"megabytes": 4096})).await;
    assert_eq!(outcome.error_type, "MemoryError", "{outcome:?}");
    assert_eq!(daemon.health("rogue").await.generation, 1, "a raised MemoryError kills nobody");
    let outcome = daemon.call("rogue", "grow", json!({})).await;
    assert_eq!(outcome.failed(), ("MemoryLimitExceeded", "oom_own"), "{outcome:?}");
    recovers(&daemon, "oom_own").await;
    daemon.stop().await;
}

#[tokio::test]
async fn outputs_may_flood_and_close() {
    let daemon = rogue("").await;
    let flood = daemon.call("rogue", "print_flood", json!({"lines": 50_000})).await;
    assert_eq!(flood.unwrap(), 50_000);
    assert_eq!(daemon.call("rogue", "close_outputs", json!({})).await.error_type, "OSError");
    for _ in 0..3 {
        daemon.call("rogue", "pid", json!({})).await.unwrap();
    }
    assert_eq!(daemon.health("rogue").await.generation, 1);
    daemon.stop().await;
}

#[tokio::test]
async fn closed_channels_are_a_broken_protocol() {
    let daemon = rogue("").await;
    let outcome = daemon.call("rogue", "close_everything", json!({})).await;
    assert_eq!(outcome.error_type, "WorkerCrashed", "{outcome:?}");
    daemon.until("rogue", |health| health.restarts == 1).await;
    daemon.serving("rogue").await;
    daemon.stop().await;
}

#[tokio::test]
async fn replaced_signal_handlers_stop_neither_a_stop_nor_a_crash_report() {
    let source = SOURCE.replace(
        "        self.children = []",
        "        self.children = []\n        self.replace_signals()",
    );
    let daemon = Options::new().bystander().python("rogue", QUICK, &source).start().await;
    daemon.serving("rogue").await;
    let outcome = daemon.call("rogue", "segfault", json!({})).await;
    assert_eq!(outcome.error_type, "WorkerCrashed", "{outcome:?}");
    assert_eq!(outcome.cause, "crash", "{outcome:?}");
    daemon.serving("rogue").await;
    let (code, _, err) = daemon.cli(&["stop", "rogue"]).await;
    assert_eq!(code, 0, "{err}");
    daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    daemon.stop().await;
}

#[tokio::test]
async fn its_own_faulthandler_goes_to_its_stderr() {
    let daemon = rogue("").await;
    daemon.call("rogue", "own_faulthandler", json!({})).await.unwrap();
    let outcome = daemon.call("rogue", "segfault", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "crash"));
    recovers(&daemon, "crash").await;
    let crash = &daemon.crashes("rogue").await[0];
    assert!(crash.stderr_tail.contains("in in_the_depths"), "{crash:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_thread_may_outlive_its_call() {
    let daemon = rogue("").await;
    daemon.call("rogue", "outlive", json!({})).await.unwrap();
    eventually("the thread is done", || async {
        let done = daemon.call("rogue", "outlived", json!({})).await.unwrap();
        (done == true).then_some(())
    })
    .await;
    assert_eq!(daemon.health("rogue").await.generation, 1);
    // At a stop nobody waits for such a thread.
    daemon.call("rogue", "outlive", json!({})).await.unwrap();
    let (code, _, err) = daemon.cli(&["stop", "rogue"]).await;
    assert_eq!(code, 0, "{err}");
    daemon.state("rogue", PluginState::Loaded, "STOPPED").await;
    daemon.stop().await;
}

#[tokio::test]
async fn children_die_with_the_plugin() {
    let daemon = rogue("").await;
    daemon.call("rogue", "leave_children", json!({"n": 5})).await.unwrap();
    let outcome = daemon.call("rogue", "segfault", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "crash"));
    recovers(&daemon, "crash").await;
    eventually("one process of the plugin is left", || async {
        let python = left_in(&daemon.directory("rogue"));
        (python.len() <= 1).then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_forked_child_that_returns_is_no_second_plugin() {
    let daemon = rogue("").await;
    for _ in 0..3 {
        let outcome = daemon.call("rogue", "fork_and_return", json!({})).await;
        assert_eq!(outcome.unwrap(), "parent");
    }
    assert_eq!(daemon.health("rogue").await.generation, 1);
    daemon.stop().await;
}

#[tokio::test]
async fn multiprocessing_works() {
    let daemon = rogue("").await;
    let outcome = daemon.call("rogue", "multiprocess", json!({})).await;
    assert_eq!(outcome.unwrap(), json!([1, 2]));
    daemon.stop().await;
}

#[tokio::test]
async fn a_fork_bomb_is_over_and_named() {
    let daemon = rogue("[limits]\nprocesses = 40\n").await;
    let outcome = daemon.call("rogue", "fork_bomb", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "process_limit"), "{outcome:?}");
    recovers(&daemon, "process_limit").await;
    daemon.stop().await;
}

#[tokio::test]
async fn errors_in_a_row_are_told_with_the_last_traceback() {
    let daemon = rogue("").await;
    for _ in 0..5 {
        let outcome = daemon.call("rogue", "raise_deep", json!({"n": 3})).await;
        assert_eq!(outcome.error_type, "ZeroDivisionError");
        assert_eq!(outcome.error, "division by zero");
    }
    recovers(&daemon, "tool_errors").await;
    let crash = &daemon.crashes("rogue").await[0];
    assert!(crash.traceback.contains("in raise_deep"), "{crash:?}");
    assert!(!crash.traceback.contains("_contract.py"), "our own frames: {}", crash.traceback);
    daemon.stop().await;
}

#[tokio::test]
async fn a_lock_held_by_one_of_two_calls_is_no_dead_lock() {
    let more = format!(
        "concurrency = 2\n{}",
        QUICK
            .replace("[timeouts]", "[timeouts]\nping = \"100ms\"\nping_misses = 3\ncall = \"60s\"")
    );
    let daemon = Options::new().bystander().python("rogue", &more, SOURCE).start().await;
    daemon.serving("rogue").await;
    let outcome = daemon.call("rogue", "sleep_holding_the_lock", json!({"seconds": 4})).await;
    assert!(outcome.ok, "{outcome:?}");
    assert_eq!(daemon.health("rogue").await.generation, 1);
    daemon.stop().await;
}

/// A forked child's own files get nothing of the host's.
#[tokio::test]
async fn a_crash_in_a_forked_child_stays_out_of_its_files() {
    let source = "
import ctypes, os
class Plugin:
    def fork(self, directory: str):
        child = os.fork()
        if child == 0:
            files = [open(os.path.join(directory, str(n)), 'w') for n in range(4)]
            ctypes.string_at(0)
        return os.waitpid(child, 0)[1]
";
    let daemon = Options::new().bystander().python("forks", "", source).start().await;
    daemon.serving("forks").await;
    let folder = daemon.data("forks").display().to_string();
    let status = daemon.call("forks", "fork", json!({"directory": folder})).await.unwrap();
    assert_eq!(status.as_i64().expect("status") & 0x7f, 11, "the child died of its fault");
    for n in 0..4 {
        let text = std::fs::read_to_string(daemon.data("forks").join(n.to_string())).expect("file");
        assert_eq!(text, "");
    }
    assert_eq!(daemon.health("forks").await.generation, 1);
    daemon.stop().await;
}
