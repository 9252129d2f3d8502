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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program as the kernel does; the action.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let load = |offset: u32| match offset {
            NUMBER => number,
            ARCHITECTURE => architecture,
            offset => arguments[((offset - ARGUMENTS) / 8) as usize] as u32,
        };
        let (mut at, mut register) = (0, 0u32);
        loop {
            let step = &program[at];
            at += 1;
            let taken = match step.code {
                LOAD => {
                    register = load(step.k);
                    continue;
                }
                AND => {
                    register &= step.k;
                    continue;
                }
                RETURN => return step.k,
                EQUAL => register == step.k,
                ANY_SET => register & step.k != 0,
                other => panic!("code {other}"),
            };
            at += usize::from(if taken { step.jt } else { step.jf });
        }
    }

    const FAILS_WITH_1: u32 = libc::SECCOMP_RET_ERRNO | 1;
    const ALLOWED: u32 = libc::SECCOMP_RET_ALLOW;

    fn rule(call: i64, conditions: Vec<Condition>) -> Rule {
        Rule { call, conditions, verdict: Verdict::Fail(1) }
    }

    fn verdict(rules: &[Rule], number: u32, arguments: [u64; 6]) -> u32 {
        run(&assemble(rules), OURS, number, arguments)
    }

    #[test]
    fn each_condition_decides_as_it_says() {
        let cases: [(Condition, u64, u64); 6] = [
            (Condition::AnyBit(1, 0b110), 0b010, 0b001),
            (Condition::AllBits(1, 0b110), 0b111, 0b010),
            (Condition::NoBit(1, 0b110), 0b001, 0b010),
            (Condition::Masked(1, 0xf, 2), 0x802, 0x803),
            (Condition::Not(1, 7), 8, 7),
            (Condition::NotIn(1, &[1, 2, 10]), 3, 10),
        ];
        for (condition, holds, fails) in cases {
            let rules = [rule(5, vec![condition.clone()]), rule(6, vec![])];
            let with = |value: u64| [0, value, 0, 0, 0, 0];
            assert_eq!(verdict(&rules, 5, with(holds)), FAILS_WITH_1, "{condition:?}");
            assert_eq!(verdict(&rules, 5, with(fails)), ALLOWED, "{condition:?}");
            // What comes after a rule that did not apply is reached.
            assert_eq!(verdict(&rules, 6, with(fails)), FAILS_WITH_1, "{condition:?}");
            assert_eq!(verdict(&rules, 7, with(holds)), ALLOWED, "{condition:?}");
        }
    }

    #[test]
    fn all_conditions_of_a_rule_must_hold_and_one_rule_is_enough() {
        let both = [rule(5, vec![Condition::AnyBit(2, 4), Condition::AnyBit(3, 32)])];
        assert_eq!(verdict(&both, 5, [0, 0, 4, 32, 0, 0]), FAILS_WITH_1);
        assert_eq!(verdict(&both, 5, [0, 0, 4, 0, 0, 0]), ALLOWED);
        assert_eq!(verdict(&both, 5, [0, 0, 0, 32, 0, 0]), ALLOWED);
        let either = [rule(5, vec![Condition::Not(0, 0)]), rule(5, vec![Condition::Not(1, 0)])];
        assert_eq!(verdict(&either, 5, [0, 1, 0, 0, 0, 0]), FAILS_WITH_1);
        assert_eq!(verdict(&either, 5, [0, 0, 0, 0, 0, 0]), ALLOWED);
    }

    #[test]
    fn other_tables_are_not_there() {
        let program = assemble(&[]);
        let absent = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        assert_eq!(run(&program, 0x4000_0003, 20, [0; 6]), absent, "i386");
        assert_eq!(run(&program, OURS, 39, [0; 6]), ALLOWED);
        #[cfg(target_arch = "x86_64")]
        assert_eq!(run(&program, OURS, X32 | 39, [0; 6]), absent);
    }
}
