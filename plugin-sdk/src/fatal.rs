//! The fatal-signal handler: one frame to the notice pipe before the kernel
//! tears the process down (which takes 65 ms for 1 GiB), then the signal takes
//! its course.
//!
//! Everything here is async-signal-safe: system calls, atomics and a
//! thread-local without a destructor.
#![allow(unsafe_code)]

use std::{
    cell::Cell,
    mem,
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
};

use stockade_proto::{fds, notice};

const SIGNALS: [i32; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGSYS];

/// The process that installed the handler; forked children inherit it.
static OWNER: AtomicI32 = AtomicI32::new(0);
/// The first fatal signal is the cause; what it sets off is not.
static NOTICED: AtomicBool = AtomicBool::new(false);
static mut PREVIOUS: [mem::MaybeUninit<libc::sigaction>; SIGNALS.len()] =
    [const { mem::MaybeUninit::uninit() }; SIGNALS.len()];

thread_local! {
    static CURRENT_CALL: Cell<u64> = const { Cell::new(0) };
}

/// Runs `work` as the given call: a fatal signal on this thread names it.
pub fn during_call<T>(call_id: u64, work: impl FnOnce() -> T) -> T {
    struct Reset(u64);
    impl Drop for Reset {
        fn drop(&mut self) {
            CURRENT_CALL.set(self.0);
        }
    }
    let _reset = Reset(CURRENT_CALL.replace(call_id));
    work()
}

/// Installs the handler over what is there (std's own stack-overflow handler, a
/// language's printer of stacks), which is chained to. Again after plugin code
/// has run: it may have put a handler of its own in place.
pub fn install() {
    OWNER.store(std::process::id() as i32, Ordering::Release);
    for (index, signal) in SIGNALS.into_iter().enumerate() {
        // SAFETY: the action is fully initialised before the call; `PREVIOUS` is
        // written here, before our handler is in place for this signal, and only
        // read by that handler. Called from the main thread alone.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            action.sa_sigaction = handle as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            let mut previous: libc::sigaction = mem::zeroed();
            libc::sigaction(signal, std::ptr::null(), &mut previous);
            if previous.sa_sigaction == action.sa_sigaction {
                continue;
            }
            (&raw mut PREVIOUS[index]).write(mem::MaybeUninit::new(previous));
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Sends `signal` to this very thread, unless nobody handles it: its default
/// would be the end of the process.
pub fn raise_if_handled(signal: i32) {
    // SAFETY: zeroed is a valid sigaction for the kernel to overwrite; both
    // calls take a number and refuse a bad one.
    unsafe {
        let mut action: libc::sigaction = mem::zeroed();
        let known = libc::sigaction(signal, std::ptr::null(), &mut action) == 0;
        if known && ![libc::SIG_DFL, libc::SIG_IGN].contains(&action.sa_sigaction) {
            libc::raise(signal);
        }
    }
}

/// Ends the process at once: no destructors, no waiting for other threads.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: never returns and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

extern "C" fn handle(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo and ucontext for SA_SIGINFO.
    // Only async-signal-safe calls follow; PREVIOUS was written by `install`.
    unsafe {
        let code = (*info).si_code;
        if OWNER.load(Ordering::Acquire) == libc::getpid() && !NOTICED.swap(true, Ordering::AcqRel)
        {
            notify(signal, info, context);
        }
        let Some(index) = SIGNALS.iter().position(|known| *known == signal) else { return };
        let previous = (&raw const PREVIOUS[index]).read();
        libc::sigaction(signal, previous.as_ptr(), std::ptr::null_mut());
        // A fault happens again on return. What was sent (raise, kill, abort) or
        // a blocked system call does not, and is sent again: to the previous handler, and, when that
        // one only steps aside (as std's does), to the kernel.
        if code <= 0 || signal == libc::SIGSYS {
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal);
            libc::signal(signal, libc::SIG_DFL);
            libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal);
        }
    }
}

/// Writes the frame. Blocks never: the pipe is empty but for this one write.
unsafe fn notify(signal: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let mut words = [0u64; notice::WORDS];
    // SAFETY: as for `handle`; si_addr and the syscall number are read from the
    // part of siginfo that belongs to the signal.
    unsafe {
        let code = (*info).si_code;
        words[0] = notice::MAGIC;
        words[1] = signal as u64;
        words[2] = code as i64 as u64;
        if code > 0 && signal != libc::SIGSYS {
            words[3] = (*info).si_addr() as u64;
        }
        if signal == libc::SIGSYS {
            // _sigsys: call address, then the number of the system call.
            words[4] = (info.cast::<u8>().add(24)).cast::<i32>().read_unaligned() as u64;
        }
        words[5] = CURRENT_CALL.get();
        let (_, frames) = words.split_at_mut(7);
        words[6] = backtrace(context, frames) as u64;
        libc::write(fds::NOTICE, words.as_ptr().cast(), notice::BYTES);
        step_aside();
    }
}

/// Resident size from which the kernel's teardown takes noticeably long.
const LARGE_KIB: libc::c_long = 64 * 1024;
/// Long enough for the supervisor to read the notice.
const ASIDE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 400_000 };

/// The supervisor was just woken, most likely on this very processor, which the
/// teardown of a large process would keep for milliseconds.
unsafe fn step_aside() {
    // SAFETY: both calls are async-signal-safe and write only to locals.
    unsafe {
        let mut usage: libc::rusage = mem::zeroed();
        if libc::getrusage(libc::RUSAGE_SELF, &mut usage) == 0 && usage.ru_maxrss > LARGE_KIB {
            libc::nanosleep(&ASIDE, std::ptr::null_mut());
        }
    }
}

/// Follows frame pointers. Memory is read by a system call that fails instead
/// of faulting.
unsafe fn backtrace(context: *mut libc::c_void, frames: &mut [u64]) -> usize {
    // SAFETY: the kernel's ucontext for this thread.
    let (ip, mut fp) = unsafe { registers(context.cast()) };
    let mut count = 0;
    let mut push = |value: u64| {
        if let Some(slot) = frames.get_mut(count) {
            *slot = value;
            count += 1;
            true
        } else {
            false
        }
    };
    push(ip);
    while fp != 0 && fp % 8 == 0 {
        let mut pair = [0u64; 2];
        let local = libc::iovec { iov_base: pair.as_mut_ptr().cast(), iov_len: 16 };
        let remote = libc::iovec { iov_base: fp as *mut _, iov_len: 16 };
        // SAFETY: `local` is 16 bytes of our stack; `remote` may be anything,
        // the kernel checks it.
        let read = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
        if read != 16 || pair[1] == 0 || !push(pair[1]) || pair[0] <= fp {
            break;
        }
        fp = pair[0];
    }
    count
}

/// Instruction and frame pointer at the fault.
#[cfg(target_arch = "x86_64")]
unsafe fn registers(context: *const libc::ucontext_t) -> (u64, u64) {
    // SAFETY: the caller passes the kernel's ucontext.
    let registers = unsafe { &(*context).uc_mcontext.gregs };
    (registers[libc::REG_RIP as usize] as u64, registers[libc::REG_RBP as usize] as u64)
}

/// Instruction and frame pointer at the fault.
#[cfg(target_arch = "aarch64")]
unsafe fn registers(context: *const libc::ucontext_t) -> (u64, u64) {
    // SAFETY: the caller passes the kernel's ucontext.
    let machine = unsafe { &(*context).uc_mcontext };
    (machine.pc, machine.regs[29])
}
