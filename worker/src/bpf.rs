//! Assembles a seccomp filter: rules in, classic BPF out.
//!
//! The program loads the number of the call, compares it with each rule's, and
//! answers with the first rule whose conditions hold; otherwise the call is
//! allowed. Calls by another architecture's table answer ENOSYS.

use libc::{sock_filter, sock_fprog};

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It fails with this error.
    Fail(i32),
    /// SIGSYS: the process's own handler names the call.
    Trap,
    /// It waits until the listener has answered.
    Notify,
}

/// About the low 32 bits of an argument (all that the kernel reads of those
/// that are asked about).
#[derive(Clone, Debug)]
pub(crate) enum Condition {
    /// One of these bits is set.
    AnyBit(u32, u32),
    /// All of these bits are set.
    AllBits(u32, u32),
    /// None of these bits is set.
    NoBit(u32, u32),
    /// The bits of the mask have this value.
    Masked(u32, u32, u32),
    /// It is not this.
    Not(u32, u32),
    /// It is none of these.
    NotIn(u32, &'static [u32]),
}

/// One call, when all conditions hold.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) call: i64,
    pub(crate) conditions: Vec<Condition>,
    pub(crate) verdict: Verdict,
}

// Offsets in the kernel's `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

#[cfg(target_arch = "x86_64")]
const OURS: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const OURS: u32 = 0xc000_00b7;

/// Calls of the x32 table carry this bit.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const AND: u16 = (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const ANY_SET: u16 = (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn step(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn branch(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

fn answer(verdict: Verdict) -> sock_filter {
    let action = match verdict {
        Verdict::Fail(errno) => libc::SECCOMP_RET_ERRNO | (errno as u32 & 0xffff),
        Verdict::Trap => libc::SECCOMP_RET_TRAP,
        Verdict::Notify => libc::SECCOMP_RET_USER_NOTIF,
    };
    step(RETURN, action)
}

/// A whole filter.
pub(crate) fn assemble(rules: &[Rule]) -> Vec<sock_filter> {
    let foreign = answer(Verdict::Fail(libc::ENOSYS));
    let mut program = vec![step(LOAD, ARCHITECTURE), branch(EQUAL, OURS, 1, 0), foreign];
    program.push(step(LOAD, NUMBER));
    #[cfg(target_arch = "x86_64")]
    program.extend([branch(ANY_SET, X32, 0, 1), foreign]);
    for rule in rules {
        let body = body(rule);
        program.push(branch(EQUAL, rule.call as u32, 0, body.len() as u8));
        program.extend(body);
    }
    program.push(step(RETURN, libc::SECCOMP_RET_ALLOW));
    program
}

/// The conditions and the answer; the number is loaded again where a condition
/// does not hold.
fn body(rule: &Rule) -> Vec<sock_filter> {
    let mut parts: Vec<Vec<sock_filter>> = rule.conditions.iter().map(condition).collect();
    parts.push(vec![answer(rule.verdict)]);
    if rule.conditions.is_empty() {
        return parts.concat();
    }
    // A condition that fails jumps over the rest, to the reload.
    let mut left = 0;
    for part in parts.iter_mut().rev() {
        let len = part.len();
        for (index, one) in part.iter_mut().enumerate() {
            let to_end = (len - index - 1 + left) as u8;
            if one.jt == FAILS {
                one.jt = to_end;
            }
            if one.jf == FAILS {
                one.jf = to_end;
            }
        }
        left += len;
    }
    let mut body = parts.concat();
    body.push(step(LOAD, NUMBER));
    body
}

/// A jump to the end of the rule; resolved when its length is known.
const FAILS: u8 = u8::MAX;

fn condition(condition: &Condition) -> Vec<sock_filter> {
    let load = |argument: u32| step(LOAD, ARGUMENTS + 8 * argument);
    match *condition {
        Condition::AnyBit(argument, mask) => {
            vec![load(argument), branch(ANY_SET, mask, 0, FAILS)]
        }
        Condition::NoBit(argument, mask) => {
            vec![load(argument), branch(ANY_SET, mask, FAILS, 0)]
        }
        Condition::AllBits(argument, mask) => {
            vec![load(argument), step(AND, mask), branch(EQUAL, mask, 0, FAILS)]
        }
        Condition::Masked(argument, mask, value) => {
            vec![load(argument), step(AND, mask), branch(EQUAL, value, 0, FAILS)]
        }
        Condition::Not(argument, value) => {
            vec![load(argument), branch(EQUAL, value, FAILS, 0)]
        }
        Condition::NotIn(argument, values) => {
            let mut code = vec![load(argument)];
            code.extend(values.iter().map(|value| branch(EQUAL, *value, FAILS, 0)));
            code
        }
    }
}

/// As the kernel takes it; valid as long as `program` lives.
pub(crate) fn as_kernel_wants(program: &[sock_filter]) -> sock_fprog {
    sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() }
}
