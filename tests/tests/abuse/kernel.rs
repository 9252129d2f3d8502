//! Parts of the kernel that nobody needs who only computes something.

use libc::{
    CLONE_NEWNS, CLONE_NEWUSER, CLONE_PARENT, EACCES, ENOSYS, EPERM, S_IFCHR, SIGCHLD, SYS_add_key,
    SYS_bpf, SYS_chroot, SYS_clone, SYS_clone3, SYS_getpid, SYS_io_uring_setup, SYS_ioctl,
    SYS_keyctl, SYS_mknod, SYS_mmap, SYS_mount, SYS_mprotect, SYS_open, SYS_open_by_handle_at,
    SYS_perf_event_open, SYS_personality, SYS_reboot, SYS_setns, SYS_shmget, SYS_unshare,
    SYS_userfaultfd,
};
use serde_json::json;

use crate::prison::{OPEN, Prison, STANDARD, STRICT, Who, everybody};

/// 66
#[tokio::test]
async fn namespaces_cannot_be_nested() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        prison.refuses("unshare", json!([[SYS_unshare, CLONE_NEWUSER]]), EPERM, EPERM).await;
        let clone = |flags: i32| json!([[SYS_clone, flags | SIGCHLD, 0, 0, 0, 0]]);
        prison.refuses("clone", clone(CLONE_NEWUSER), EPERM, EPERM).await;
        prison.refuses("clone mounts", clone(CLONE_NEWUSER | CLONE_NEWNS), EPERM, EPERM).await;
        prison.refuses("a sibling", clone(CLONE_PARENT), EPERM, EPERM).await;
        // flags = CLONE_NEWUSER, exit_signal = SIGCHLD, the rest 0.
        let mut bytes = [0u8; 64];
        bytes[3] = 0x10;
        bytes[32] = SIGCHLD as u8;
        let clone3 = json!([[SYS_clone3, {"bytes": bytes.to_vec()}, 64]]);
        prison.refuses("clone3", clone3, ENOSYS, ENOSYS).await;
        prison.end().await;
    }
}

/// 67
#[tokio::test]
async fn mounts_and_roots_stay_as_they_are() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let tmp = |plugin: &str| prison.daemon.data(plugin).join("node").display().to_string();
        let chroot = json!([[SYS_chroot, "/"]]);
        let setns = json!([[SYS_open, "/proc/self/ns/uts", 0], [SYS_setns, {"ret": 0}, 0]]);
        let mount = json!([[SYS_mount, "none", "/proc", "tmpfs", 0, 0]]);
        if who == Who::Root {
            prison.refuses("chroot", chroot, EPERM, EPERM).await;
            prison.refuses("setns", setns, EPERM, EPERM).await;
            let node = |plugin: &str| json!([[SYS_mknod, tmp(plugin), S_IFCHR | 0o600, 0x103]]);
            assert_eq!(prison.attack(OPEN, node(OPEN)).await.last(), 0);
            for plugin in [STANDARD, STRICT] {
                assert_eq!(prison.attack(plugin, node(plugin)).await.last(), -i64::from(EACCES));
            }
        } else {
            prison.refuses_without_control("chroot", chroot, EPERM, EPERM).await;
            prison.refuses_without_control("setns", setns, EPERM, EPERM).await;
        }
        prison.refuses_without_control("mount", mount, EPERM, EPERM).await;
        prison.end().await;
    }
}

/// 69
#[tokio::test]
async fn dangerous_calls_are_refused() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let zeros = json!({"bytes": vec![0; 120]});
        let ring = json!([[SYS_io_uring_setup, 4, zeros]]);
        prison.refuses("io_uring", ring, EPERM, EPERM).await;
        let key = json!([[SYS_add_key, "user", "name", "x", 1, -3]]);
        prison.refuses("add_key", key, EPERM, EPERM).await;
        prison.refuses("keyctl", json!([[SYS_keyctl, 0, -3, 1]]), EPERM, EPERM).await;
        let shm = json!([[SYS_shmget, 0, 4096, 0o1600]]);
        prison.refuses("shared memory", shm, EPERM, EPERM).await;
        prison.refuses("userfaultfd", json!([[SYS_userfaultfd, 1]]), EPERM, EPERM).await;
        let randomize = json!([[SYS_personality, 0x0040000]]);
        prison.refuses("no randomisation", randomize, EPERM, EPERM).await;
        for (what, call) in [("bpf", SYS_bpf), ("perf", SYS_perf_event_open)] {
            let calls = json!([[call, 0, zeros, 120, 0, 0]]);
            prison.refuses_without_control(what, calls, EPERM, EPERM).await;
        }
        let handle = json!([[SYS_open_by_handle_at, 0, zeros, 0]]);
        prison.refuses_without_control("handles", handle, EPERM, EPERM).await;
        for (what, command) in [("TIOCSTI", 0x5412), ("TIOCLINUX", 0x541c)] {
            let calls = json!([[SYS_ioctl, 0, command, "x"]]);
            prison.refuses_without_control(what, calls, EPERM, EPERM).await;
        }
        prison.end().await;
    }
}

/// 70
#[tokio::test]
#[cfg(target_arch = "x86_64")]
async fn other_tables_of_calls_are_not_there() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        // getpid, by the 32-bit table and by the x32 one.
        let int80 = json!([["int80", 20]]);
        prison.refuses("int80", int80, ENOSYS, ENOSYS).await;
        let x32 = json!([[0x4000_0000 + SYS_getpid]]);
        prison.refuses_without_control("x32", x32, ENOSYS, ENOSYS).await;
        prison.end().await;
    }
}

/// What only an attack asks for ends the process, and is named.
#[tokio::test]
async fn a_call_that_is_a_crime_is_named() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        for plugin in [STANDARD, STRICT] {
            let answers = prison.attack(plugin, json!([[SYS_reboot, 0, 0, 0, 0]])).await;
            assert_eq!(answers.signal, Some(i64::from(libc::SIGSYS)), "{answers:?}");
            let args = json!({"calls": [[SYS_reboot, 0, 0, 0, 0]]});
            let outcome = prison.daemon.call(plugin, "here", args).await;
            assert_eq!(outcome.failed(), ("WorkerCrashed", "sandbox"), "{outcome:?}");
            assert!(outcome.error.contains("Blocked system call reboot"), "{}", outcome.error);
            let health = prison.daemon.death(plugin, "sandbox").await;
            assert_eq!(health.last_exit.expect("exit").signal.as_deref(), Some("SIGSYS"));
        }
        let args = json!([[SYS_reboot, 0, 0, 0, 0]]);
        assert_eq!(prison.attack(OPEN, args).await.signal, None, "the control");
        prison.end().await;
    }
}

/// `jit = false`: memory is writable or executable, never both, and cannot be
/// made so through /proc either.
#[tokio::test]
async fn without_jit_no_code_is_made() {
    const WRITE_EXECUTE: i32 = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    const PRIVATE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    let execute = libc::PROT_READ | libc::PROT_EXEC;
    for who in everybody() {
        let prison = Prison::with(who, "jit = false").await;
        let both = json!([[SYS_mmap, 0, 4096, WRITE_EXECUTE, PRIVATE, -1, 0]]);
        prison.refuses("both at once", both, EPERM, EPERM).await;
        let anonymous = json!([[SYS_mmap, 0, 4096, execute, PRIVATE, -1, 0]]);
        prison.refuses("anonymous code", anonymous, EPERM, EPERM).await;
        let later = json!([
            [SYS_mmap, 0, 4096, libc::PROT_WRITE, PRIVATE, -1, 0],
            [SYS_mprotect, {"ret": 0}, 4096, execute]
        ]);
        prison.refuses("one after the other", later, EPERM, EPERM).await;
        let memory = json!([[SYS_open, "/proc/self/mem", libc::O_RDWR]]);
        prison.refuses("by /proc", memory, libc::EACCES, libc::EACCES).await;
        prison.end().await;
        let prison = Prison::new(who).await;
        let both = json!([[SYS_mmap, 0, 4096, WRITE_EXECUTE, PRIVATE, -1, 0]]);
        assert!(prison.attack(STANDARD, both).await.last() > 0, "with it code can be made");
        prison.end().await;
    }
}
