//! Other processes: looking into them, signalling, slowing them down; becoming
//! somebody else.

use std::collections::BTreeSet;

use libc::{
    ENOENT, EPERM, ESRCH, O_RDONLY, PRIO_PROCESS, PTRACE_ATTACH, RLIMIT_CORE, SYS_kill, SYS_open,
    SYS_pidfd_getfd, SYS_pidfd_open, SYS_prlimit64, SYS_process_vm_readv, SYS_ptrace, SYS_read,
    SYS_sched_setaffinity, SYS_setpriority, SYS_setuid,
};
use serde_json::json;
use stockade_tests::{Options, eventually, left_in};

use crate::prison::{OPEN, Prison, STANDARD, STRICT, Who, everybody};

/// 61, 64, 73
#[tokio::test]
async fn other_processes_are_out_of_reach() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let victim = prison.victim();
        let pid = victim.pid();
        let environ = format!("/proc/{pid}/environ");
        // Between fork and exec it has none.
        eventually("the victim runs", || async {
            std::fs::read(&environ).ok().filter(|text| text.len() > 10).map(drop)
        })
        .await;
        let read =
            json!([[SYS_open, environ, O_RDONLY], [SYS_read, {"ret": 0}, {"out": 4096}, 4095]]);
        let control = prison.attack(OPEN, read.clone()).await;
        assert!(control.out[0].len() > 10, "{who:?}: {control:?}");
        for plugin in [STANDARD, STRICT] {
            let answers = prison.attack(plugin, read.clone()).await;
            assert_eq!(answers.results[0], Some(-i64::from(ENOENT)), "{who:?} {plugin}");
        }
        prison.refuses("signal", json!([[SYS_kill, pid, 0]]), ESRCH, ESRCH).await;
        prison.refuses("pidfd", json!([[SYS_pidfd_open, pid, 0]]), ESRCH, ESRCH).await;
        let affinity =
            json!([[SYS_sched_setaffinity, pid, 8, {"bytes": [1, 0, 0, 0, 0, 0, 0, 0]}]]);
        prison.refuses("affinity", affinity, ESRCH, ESRCH).await;
        let nice = json!([[SYS_setpriority, PRIO_PROCESS, pid, 19]]);
        prison.refuses("priority", nice, EPERM, EPERM).await;
        let limit = json!([[SYS_prlimit64, pid, RLIMIT_CORE, {"bytes": [0,0,0,0,0,0,0,0, 0,0,0,0,0,0,0,0]}, 0]]);
        prison.refuses("limits", limit, EPERM, EPERM).await;
        let memory = json!([[SYS_process_vm_readv, pid, 0, 0, 0, 0, 0]]);
        prison.refuses("memory", memory, EPERM, EPERM).await;
        prison
            .refuses("ptrace", json!([[SYS_ptrace, PTRACE_ATTACH, pid, 0, 0]]), EPERM, EPERM)
            .await;
        let descriptor = json!([[SYS_pidfd_getfd, 0, 0, 0]]);
        prison.refuses_without_control("descriptors", descriptor, EPERM, EPERM).await;
        drop(victim);
        prison.end().await;
    }
}

/// 68
#[tokio::test]
async fn nobody_becomes_root() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let calls = json!([[SYS_setuid, 0]]);
        if who == Who::Root {
            prison.refuses("root", calls, EPERM, EPERM).await;
        } else {
            // In a user namespace 0 is nobody at all.
            prison.refuses_without_control("root", calls, libc::EINVAL, libc::EINVAL).await;
        }
        prison.end().await;
    }
}

/// Every thread of the plugin, as the kernel tells it.
#[tokio::test]
async fn every_thread_is_confined() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let mut users = BTreeSet::new();
        for plugin in [STANDARD, STRICT] {
            prison.daemon.call(plugin, "threads", json!({"n": 3})).await.unwrap();
            let pid = prison.daemon.health(plugin).await.pid.expect("pid");
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("threads");
            let mut count = 0;
            for thread in threads.flatten() {
                let status = std::fs::read_to_string(thread.path().join("status")).expect("status");
                let field = |name: &str| {
                    let line = status.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default()
                        .split_whitespace()
                        .next()
                        .unwrap_or_default()
                        .to_owned()
                };
                assert_eq!(field("NoNewPrivs:"), "1");
                assert_eq!(field("Seccomp:"), "2");
                for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
                    assert_eq!(field(set), "0000000000000000", "{who:?} {plugin} {set}");
                }
                if who == Who::Root {
                    users.insert(field("Uid:"));
                    assert_ne!(field("Uid:"), "0");
                }
                count += 1;
            }
            assert!(count > 3, "{count} threads");
            // Namespaces of its own.
            for name in ["mnt", "pid", "ipc", "uts", "cgroup", "net"] {
                let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
                assert_ne!(of(&pid.to_string()), of("self"), "{who:?} {plugin} {name}");
            }
        }
        if who == Who::Root {
            assert_eq!(users.len(), 2, "a user for each plugin: {users:?}");
        }
        prison.end().await;
    }
}

/// A tree of 40 processes that left session and parent is gone with the plugin.
#[tokio::test]
async fn a_tree_of_forty_goes_down_as_one() {
    for plugin in ["none", "standard"] {
        let daemon = Options::new()
            .rogue("rogue", &format!("[sandbox]\nprofile = \"{plugin}\""))
            .config("allow_unsandboxed = true\n")
            .start()
            .await;
        daemon.serving("rogue").await;
        daemon.call("rogue", "orphans", json!({"n": 40})).await.unwrap();
        let sleeps =
            || left_in(&daemon.root).iter().filter(|name| name.ends_with(" sleep")).count();
        // Those that have not executed it yet are there, too.
        eventually("forty", || async { (sleeps() == 40).then_some(()) }).await;
        daemon.call("rogue", "exit", json!({"n": 1})).await;
        daemon.until("rogue", |health| health.generation > 1).await;
        assert_eq!(sleeps(), 0, "gone before the successor was started");
        daemon.stop().await;
    }
}
