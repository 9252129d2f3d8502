//! The raw system calls of the launcher: the only unsafe code of this crate.
#![allow(unsafe_code)]

use std::{
    ffi::{CStr, CString},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr,
};

use rustix::{
    io::{Errno, Result},
    process::Pid,
};

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 { Err(last_error()) } else { Ok(result) }
}

/// `dup2` without close-on-exec: `fd` is also `place` from now on.
pub(crate) fn place(fd: &OwnedFd, place: i32) -> Result<()> {
    // SAFETY: dup2 takes plain integers; `place` is one of 0, 3, 4, 5, which no
    // Rust object of this process owns (0 was only ever borrowed).
    check(unsafe { libc::dup2(fd.as_raw_fd(), place) }).map(drop)
}

/// Closes every descriptor above `last` except those of `keep`, which ascend.
pub(crate) fn close_all_but(last: i32, keep: &[i32]) -> Result<()> {
    let close_range = |from: i32, to: u32| {
        // SAFETY: close_range takes plain integers. The descriptors closed were
        // inherited or are copies whose owners have been dropped.
        match unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) } {
            0 => Ok(()),
            _ => Err(last_error()),
        }
    };
    let mut from = last + 1;
    for fd in keep {
        if from < *fd {
            close_range(from, *fd as u32 - 1)?;
        }
        from = fd + 1;
    }
    close_range(from, u32::MAX)
}

/// Closes a descriptor that no Rust object owns.
pub(crate) fn close(fd: i32) {
    // SAFETY: the caller names 1..5, laid by `place` or inherited; nothing in
    // this process uses them after this call.
    unsafe { libc::close(fd) };
}

/// The process id of the parent, 0 across a pid namespace.
pub(crate) fn parent_pid() -> u32 {
    // SAFETY: getppid has no arguments and cannot fail.
    unsafe { libc::getppid() as u32 }
}

/// Orphaned descendants become children of this process.
pub(crate) fn become_subreaper() -> Result<()> {
    // SAFETY: prctl with integer arguments only.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// SIGKILL for this process when its parent dies.
pub(crate) fn die_with_parent() -> Result<()> {
    // SAFETY: prctl with integer arguments only.
    check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) }).map(drop)
}

/// No exec below gains privileges from here on.
pub(crate) fn no_new_privs() -> Result<()> {
    // SAFETY: prctl with integer arguments only.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// The name that `ps` shows.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: the pointer is to a NUL-terminated string that outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Sets soft and hard limit; a hard limit below the wish is kept, not an error.
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for both calls, which write or read it
    // and keep no reference.
    unsafe {
        check(libc::getrlimit(resource as libc::__rlimit_resource_t, &mut limit))?;
        let hard = hard.min(limit.rlim_max);
        let limit = libc::rlimit { rlim_cur: soft.min(hard), rlim_max: hard };
        check(libc::setrlimit(resource as libc::__rlimit_resource_t, &limit)).map(drop)
    }
}

/// This process gets at least this nice value: who started the daemon at a greater one
/// meant its plugins, too.
pub(crate) fn set_nice(nice: i32) -> Result<()> {
    use rustix::process::{getpriority_process, setpriority_process};
    match getpriority_process(None)? < nice {
        true => setpriority_process(None, nice),
        false => Ok(()),
    }
}

/// Every signal back to its default, the mask empty. `signal()` refuses 32 and
/// 33, which glibc's posix_spawn leaves ignored; the raw call does not.
pub(crate) fn reset_signals() {
    let default = [0u64; 4];
    for signal in 1..=64 {
        // SAFETY: the kernel's sigaction is 32 bytes (handler, flags, restorer,
        // mask), all zero means SIG_DFL; 8 is the size of its signal set.
        // SIGKILL and SIGSTOP are refused, which is right.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null::<u64>(),
                8usize,
            );
        }
    }
    let empty = 0u64;
    // SAFETY: the kernel reads 8 bytes of `empty`.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &empty as *const u64,
            ptr::null::<u64>(),
            8usize,
        );
    }
}

/// Blocks SIGCHLD and returns a non-blocking descriptor that becomes readable
/// with it.
pub(crate) fn block_and_watch_sigchld() -> Result<OwnedFd> {
    // SAFETY: `set` is initialised by sigemptyset before it is read; signalfd
    // returns a new descriptor that nobody else owns.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &set, ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Empties the signal descriptor.
pub(crate) fn drain(signals: &OwnedFd) {
    let mut buffer = [0u8; 128];
    while matches!(rustix::io::read(signals, &mut buffer), Ok(n) if n > 0) {}
}

/// As [`fork`], with the child in new namespaces. glibc's fork handlers do not
/// run; a process of one thread has no use for them.
pub(crate) fn fork_into(namespaces: libc::c_int) -> Result<Option<Pid>> {
    // SAFETY: without CLONE_VM and with a null stack the child has a copy of
    // everything and goes on here, as after fork; this process has one thread.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone, namespaces | libc::SIGCHLD, 0usize, 0usize, 0usize, 0usize)
    };
    Ok(Pid::from_raw(check(pid as libc::c_int)?))
}

/// A cgroup namespace whose root is the present cgroup.
pub(crate) fn own_cgroup_view() -> Result<()> {
    // SAFETY: unshare takes an integer; this flag touches no memory.
    check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }).map(drop)
}

/// None in the child, the child's pid in the parent.
pub(crate) fn fork() -> Result<Option<Pid>> {
    // SAFETY: this process has one thread, so the child may use all of std.
    let pid = check(unsafe { libc::fork() })?;
    Ok(Pid::from_raw(pid))
}

/// Ends this process without running destructors.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// Returns only on failure, with the reason.
pub(crate) fn exec(path: &CStr, argv: &[CString], env: &[CString]) -> Errno {
    with_pointers(argv, env, |argv, env| {
        // SAFETY: all pointers are to NUL-terminated strings that outlive the
        // call, both arrays end with a null pointer.
        unsafe { libc::execve(path.as_ptr(), argv, env) };
    })
}

/// Both lists as the kernel wants them; the error of what `call` did.
fn with_pointers(
    argv: &[CString],
    env: &[CString],
    call: impl FnOnce(*const *const libc::c_char, *const *const libc::c_char),
) -> Errno {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    call(argv.as_ptr(), env.as_ptr());
    last_error()
}

/// Opens the program at the lowest descriptor that the plugin can never have:
/// RLIMIT_NOFILE (`open_files`, or what the daemon has) ends just below it.
/// Close-on-exec: the exec is its last use.
pub(crate) fn seal_program(path: &CStr, open_files: u64) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    let file = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a valid rlimit for the three calls; dup3 takes plain
    // integers, and nothing owns `place`, which is above all that is open.
    unsafe {
        check(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit))?;
        let place = open_files.min(limit.rlim_max.saturating_sub(1)) as i32;
        limit.rlim_cur = limit.rlim_max;
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
        let fd = OwnedFd::from_raw_fd(check(libc::dup3(file.as_raw_fd(), place, libc::O_CLOEXEC))?);
        let limit = libc::rlimit { rlim_cur: place as u64, rlim_max: place as u64 };
        check(libc::setrlimit(libc::RLIMIT_NOFILE, &limit))?;
        Ok(fd)
    }
}

/// Executes what [`seal_program`] opened; returns only on failure.
pub(crate) fn exec_sealed(program: &OwnedFd, argv: &[CString], env: &[CString]) -> Errno {
    with_pointers(argv, env, |argv, env| {
        // SAFETY: as for `exec`; an empty path with AT_EMPTY_PATH means the
        // descriptor itself.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                program.as_raw_fd(),
                c"".as_ptr(),
                argv,
                env,
                libc::AT_EMPTY_PATH,
            )
        };
    })
}

/// How the main process ended and what it used.
pub(crate) struct WaitResult {
    pub(crate) status: i32,
    pub(crate) max_rss_kib: u64,
    pub(crate) user_usec: u64,
    pub(crate) system_usec: u64,
}

/// One ended child; None when there is none (yet).
fn wait_any(flags: libc::c_int) -> Option<(Pid, WaitResult)> {
    let mut status = 0;
    // SAFETY: zeroed is a valid rusage; wait4 writes both out-parameters.
    let (pid, usage) = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let pid = libc::wait4(-1, &mut status, flags, &mut usage);
        (pid, usage)
    };
    let usec = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
    let result = WaitResult {
        status,
        max_rss_kib: usage.ru_maxrss as u64,
        user_usec: usec(usage.ru_utime),
        system_usec: usec(usage.ru_stime),
    };
    Pid::from_raw(pid.max(0)).map(|pid| (pid, result))
}

/// Reaps every ended child; Some when `main` was one of them.
pub(crate) fn reap(main: Pid) -> Option<WaitResult> {
    let mut result = None;
    while let Some((pid, ended)) = wait_any(libc::WNOHANG) {
        if pid == main {
            result = Some(ended);
        }
    }
    result
}

/// Waits for the end of `main`, reaping everything else meanwhile.
pub(crate) fn wait_for(main: Pid) -> WaitResult {
    loop {
        if let Some((pid, result)) = wait_any(0)
            && pid == main
        {
            return result;
        }
    }
}

/// Reaps every ended child.
pub(crate) fn reap_all() {
    let mut status = 0;
    // SAFETY: `status` outlives the call, which writes it.
    while unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) } > 0 {}
}

/// Adds restrictions (MOUNT_ATTR_*) to a mount, and to those below it when
/// `recursive`.
pub(crate) fn restrict_mount(mounted: &OwnedFd, attributes: u64, recursive: bool) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    let change =
        libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    // SAFETY: the path is empty and NUL-terminated; the kernel reads one
    // mount_attr of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mounted.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &change,
            size_of::<libc::mount_attr>(),
        )
    };
    check(result as libc::c_int).map(drop)
}

/// Forgets the capabilities that an exec could bring back. Without
/// CAP_SETPCAP they stay, and no_new_privs keeps them from being used.
pub(crate) fn clear_capability_bounds() {
    for capability in 0..64 {
        // SAFETY: prctl with integer arguments only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            return;
        }
    }
}

/// Brings the loopback device of this network namespace up.
pub(crate) fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: zeroed is a valid ifreq; "lo" and its NUL fit into the name, and
    // the kernel only reads the request.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request)).map(drop)
    }
}

/// Installs a seccomp filter for this thread.
pub(crate) fn install_filter(program: &[libc::sock_filter]) -> Result<()> {
    let program = crate::bpf::as_kernel_wants(program);
    // SAFETY: the kernel copies the program, which outlives the call, and only
    // reads it.
    check(unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program, 0, 0)
    })
    .map(drop)
}

/// The same with a listener for the calls that are to be told of.
pub(crate) fn install_listener(program: &[libc::sock_filter]) -> Result<OwnedFd> {
    let program = crate::bpf::as_kernel_wants(program);
    // SAFETY: the kernel copies the program, which outlives the call; the new
    // descriptor belongs to nobody else.
    unsafe {
        let fd = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        );
        Ok(OwnedFd::from_raw_fd(check(fd as libc::c_int)?))
    }
}

/// The kernel's version of Landlock.
pub(crate) fn landlock_abi() -> Result<u32> {
    const VERSION: libc::c_int = 1;
    // SAFETY: with this flag the kernel reads no attributes.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<libc::c_void>(),
            0usize,
            VERSION,
        )
    };
    check(abi as libc::c_int).map(|abi| abi as u32)
}
