//! Which system calls a plugin may not make. A list of what is refused: what a
//! library may meet fails with EPERM (or ENOSYS where it then goes another way);
//! what only an attack asks for is a SIGSYS, which the plugin's own handler
//! reports by name.

use std::os::fd::OwnedFd;

use libc::{
    CLONE_NEWCGROUP, CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWTIME,
    CLONE_NEWUSER, CLONE_NEWUTS, CLONE_PARENT,
};
use stockade_proto::launch::{Network, Sandbox};

use crate::{
    Failure, at,
    bpf::{self, Condition, Rule, Verdict},
    sys,
};

const REFUSED: Verdict = Verdict::Fail(libc::EPERM);
const UNKNOWN: Verdict = Verdict::Fail(libc::ENOSYS);

/// Never meant by anybody who only computes something.
const TRAPPED: &[i64] = &[
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
];

const DENIED: &[i64] = &[
    // Mounts and roots.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    OPEN_TREE_ATTR,
    // Namespaces.
    libc::SYS_unshare,
    libc::SYS_setns,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_migrate_pages,
    libc::SYS_move_pages,
    // Files without a path.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // Parts of the kernel with a long record.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_fanotify_init,
    // The machine.
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_syslog,
    libc::SYS_vhangup,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ustat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_sysfs,
    // Memory and queues that outlive their maker and belong to no file.
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_shmctl,
    libc::SYS_msgget,
    libc::SYS_msgsnd,
    libc::SYS_msgrcv,
    libc::SYS_msgctl,
    libc::SYS_semget,
    libc::SYS_semop,
    libc::SYS_semtimedop,
    libc::SYS_semctl,
];

/// open_tree_attr, Linux 6.15; the same number everywhere.
const OPEN_TREE_ATTR: i64 = 467;

const NEW_NAMESPACES: u32 = (CLONE_NEWNS
    | CLONE_NEWPID
    | CLONE_NEWUSER
    | CLONE_NEWIPC
    | CLONE_NEWNET
    | CLONE_NEWUTS
    | CLONE_NEWCGROUP
    | CLONE_NEWTIME) as u32;

const WRITE_AND_EXECUTE: u32 = (libc::PROT_WRITE | libc::PROT_EXEC) as u32;
const EXECUTE: u32 = libc::PROT_EXEC as u32;
const ANONYMOUS: u32 = libc::MAP_ANONYMOUS as u32;

const UNIX_ONLY: &[u32] = &[libc::AF_UNIX as u32];
const WITH_INTERNET: &[u32] = &[
    libc::AF_UNIX as u32,
    libc::AF_INET as u32,
    libc::AF_INET6 as u32,
    // getaddrinfo asks for the machine's addresses by it.
    libc::AF_NETLINK as u32,
];

/// Applies the filter to this thread and everything that it will start.
/// `no_new_privs` must be set. With `program`, only that descriptor can be
/// executed from now on.
pub(crate) fn restrict(sandbox: &Sandbox, program: Option<i32>) -> Result<(), Failure> {
    sys::install_filter(&bpf::assemble(&rules(sandbox, program))).map_err(at("seccomp"))
}

/// Lets everything pass, after somebody has looked at these calls and at those
/// that [`restrict`] refuses.
pub(crate) fn listen(calls: &[u32]) -> Result<OwnedFd, Failure> {
    let calls = calls.iter().map(|call| i64::from(*call));
    let calls = calls.chain(TRAPPED.iter().chain(DENIED).copied());
    let rules: Vec<Rule> =
        calls.map(|call| Rule { call, conditions: Vec::new(), verdict: Verdict::Notify }).collect();
    sys::install_listener(&bpf::assemble(&rules)).map_err(at("trace"))
}

fn rules(sandbox: &Sandbox, program: Option<i32>) -> Vec<Rule> {
    let mut rules = Rules(Vec::new());
    for call in TRAPPED {
        rules.always(*call, Verdict::Trap);
    }
    for call in DENIED {
        rules.always(*call, REFUSED);
    }
    // Its flags lie in memory, where a filter cannot look; glibc then uses clone.
    rules.always(libc::SYS_clone3, UNKNOWN);
    // A parent's parent is the launcher, whose children are not the plugin's.
    rules.when(libc::SYS_clone, [Condition::AnyBit(0, NEW_NAMESPACES | CLONE_PARENT as u32)]);
    for command in [libc::TIOCSTI as u32, libc::TIOCLINUX as u32] {
        rules.when(libc::SYS_ioctl, [Condition::Masked(1, u32::MAX, command)]);
    }
    // Its own limits and priority only.
    rules.when(libc::SYS_prlimit64, [Condition::Not(0, 0)]);
    rules.when(libc::SYS_setpriority, [Condition::Not(0, libc::PRIO_PROCESS)]);
    rules.when(libc::SYS_setpriority, [Condition::Not(1, 0)]);
    rules.when(libc::SYS_ioprio_set, [Condition::Not(1, 0)]);
    rules.when(libc::SYS_personality, [Condition::NotIn(0, &[0, u32::MAX])]);
    if !sandbox.namespaces {
        // Others are visible: they must not be slowed down.
        for call in [
            libc::SYS_sched_setaffinity,
            libc::SYS_sched_setscheduler,
            libc::SYS_sched_setparam,
            libc::SYS_sched_setattr,
        ] {
            rules.when(call, [Condition::Not(0, 0)]);
        }
    }
    sockets(&mut rules, sandbox);
    if !sandbox.gpu {
        // Memory that no limit counts and no mount keeps from being executed.
        rules.always(libc::SYS_memfd_create, UNKNOWN);
        rules.always(libc::SYS_memfd_secret, UNKNOWN);
    }
    if !sandbox.jit {
        rules.when(libc::SYS_mmap, [Condition::AllBits(2, WRITE_AND_EXECUTE)]);
        rules
            .when(libc::SYS_mmap, [Condition::AnyBit(2, EXECUTE), Condition::AnyBit(3, ANONYMOUS)]);
        rules.when(libc::SYS_mprotect, [Condition::AnyBit(2, EXECUTE)]);
        rules.when(libc::SYS_pkey_mprotect, [Condition::AnyBit(2, EXECUTE)]);
    }
    if let Some(program) = program {
        rules.always(libc::SYS_execve, REFUSED);
        rules.when(libc::SYS_execveat, [Condition::Not(0, program as u32)]);
        rules.when(libc::SYS_execveat, [Condition::NoBit(4, libc::AT_EMPTY_PATH as u32)]);
    }
    rules.0
}

fn sockets(rules: &mut Rules, sandbox: &Sandbox) {
    // Others load a module of the kernel, or carry datagrams.
    rules.when(libc::SYS_socketpair, [Condition::NotIn(0, UNIX_ONLY)]);
    // Without a root of its own every socket with a path can be reached.
    let isolated = sandbox.sealed || !sandbox.namespaces;
    if isolated && sandbox.network() == Network::None {
        for call in [libc::SYS_socket, libc::SYS_connect, libc::SYS_bind] {
            rules.always(call, REFUSED);
        }
        // A datagram socket (a raw one is the same) can send to any path, without
        // a connect.
        for kind in [libc::SOCK_DGRAM, libc::SOCK_RAW] {
            rules.when(libc::SYS_socketpair, [Condition::Masked(1, 0xf, kind as u32)]);
        }
        return;
    }
    let families = match sandbox.network() {
        Network::None => UNIX_ONLY,
        Network::Loopback | Network::Host => WITH_INTERNET,
    };
    rules.when(libc::SYS_socket, [Condition::NotIn(0, families)]);
}

struct Rules(Vec<Rule>);

impl Rules {
    fn always(&mut self, call: i64, verdict: Verdict) {
        self.0.push(Rule { call, conditions: Vec::new(), verdict });
    }

    fn when<const N: usize>(&mut self, call: i64, conditions: [Condition; N]) {
        self.0.push(Rule { call, conditions: conditions.into(), verdict: REFUSED });
    }
}
