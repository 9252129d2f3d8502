//! Raw system calls on request, in a forked child: the abuse tests say which,
//! and read what the kernel answered.

use std::{collections::HashMap, ffi::CString, ptr};

use serde_json::Value;
use stockade_plugin_sdk::prelude::*;

use crate::tools::Rogue;

/// `calls`: each `[number, argument…]`. An argument is a number, a text (its
/// address), `{"ret": i}` (what call i returned), `{"bytes": […]}` (their
/// address) or `{"out": n}` (the address of n zeroed bytes, given back as text).
/// The number `"int80"` makes the next one a call by the 32-bit table.
#[derive(Deserialize, JsonSchema)]
struct Attack {
    calls: Vec<Vec<Value>>,
}

/// What the kernel answered.
#[derive(Serialize, JsonSchema)]
struct Answers {
    /// A result, or minus the errno; None = not reached.
    results: Vec<Option<i64>>,
    /// The `out` buffers, up to their first NUL.
    out: Vec<String>,
    /// What ended the child.
    signal: Option<i32>,
}

pub fn add(tools: &mut Tools<Rogue>) {
    tools
        .add("attack", "Makes system calls in a child", |_, args: Attack, _| attack(&args.calls))
        .add("here", "Makes system calls in a thread of this very process", |_, a: Attack, _| {
            let mut memory = Memory::new();
            let calls = prepare(&a.calls, &mut memory);
            std::thread::spawn(move || {
                let mut results = Vec::new();
                for call in &calls {
                    results.push(Some(make(
                        call,
                        &results.iter().flatten().copied().collect::<Vec<_>>(),
                    )));
                }
                results
            })
            .join()
            .map_err(|_| Error::new("Panic", "the thread panicked"))
        });
}

const NOT_REACHED: i64 = i64::MIN;

#[derive(Clone, Copy)]
enum Argument {
    Number(u64),
    Result(usize),
}

struct Call {
    compat: bool,
    number: i64,
    arguments: [Argument; 6],
}

/// What arguments point to. The `out` buffers are shared with the child.
struct Memory {
    texts: Vec<CString>,
    bytes: Vec<Vec<u8>>,
    out: Vec<(usize, usize)>,
}

// The addresses stay valid: nothing is moved once it is prepared.
unsafe impl Send for Call {}

impl Memory {
    fn new() -> Self {
        Memory { texts: Vec::new(), bytes: Vec::new(), out: Vec::new() }
    }
}

fn shared(bytes: usize) -> *mut u8 {
    let (access, flags) =
        (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS);
    unsafe { libc::mmap(ptr::null_mut(), bytes.max(1), access, flags, -1, 0).cast() }
}

fn prepare(calls: &[Vec<Value>], memory: &mut Memory) -> Vec<Call> {
    let mut prepared = Vec::new();
    for call in calls {
        let compat = call[0] == "int80";
        let call = if compat { &call[1..] } else { call };
        let mut arguments = [Argument::Number(0); 6];
        for (place, value) in arguments.iter_mut().zip(&call[1..]) {
            *place = argument(value, memory);
        }
        let number = call[0].as_i64().expect("a number of a call");
        prepared.push(Call { compat, number, arguments });
    }
    prepared
}

fn argument(value: &Value, memory: &mut Memory) -> Argument {
    if let Some(number) = value.as_i64() {
        return Argument::Number(number as u64);
    }
    if let Some(number) = value.as_u64() {
        return Argument::Number(number);
    }
    if let Some(text) = value.as_str() {
        memory.texts.push(CString::new(text).expect("no NUL"));
        return Argument::Number(memory.texts.last().expect("text").as_ptr() as u64);
    }
    let fields: HashMap<String, Value> = serde_json::from_value(value.clone()).expect("argument");
    if let Some(index) = fields.get("ret").and_then(Value::as_u64) {
        return Argument::Result(index as usize);
    }
    if let Some(size) = fields.get("out").and_then(Value::as_u64) {
        let address = shared(size as usize + 1) as usize;
        memory.out.push((address, size as usize));
        return Argument::Number(address as u64);
    }
    let bytes: Vec<u8> = serde_json::from_value(fields["bytes"].clone()).expect("bytes");
    memory.bytes.push(bytes);
    Argument::Number(memory.bytes.last().expect("bytes").as_ptr() as u64)
}

fn make(call: &Call, results: &[i64]) -> i64 {
    let a = call.arguments.map(|argument| match argument {
        Argument::Number(number) => number,
        Argument::Result(index) => results[index] as u64,
    });
    if call.compat {
        return by_the_32_bit_table(call.number);
    }
    let result = unsafe { libc::syscall(call.number, a[0], a[1], a[2], a[3], a[4], a[5]) };
    if result == -1 { -i64::from(unsafe { *libc::__errno_location() }) } else { result }
}

#[cfg(target_arch = "x86_64")]
fn by_the_32_bit_table(number: i64) -> i64 {
    let result: i64;
    unsafe {
        std::arch::asm!("int 0x80", inlateout("rax") number => result,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _);
    }
    i64::from(result as i32)
}

#[cfg(not(target_arch = "x86_64"))]
fn by_the_32_bit_table(_: i64) -> i64 {
    -i64::from(libc::ENOSYS)
}

fn attack(calls: &[Vec<Value>]) -> Result<Answers> {
    let mut memory = Memory::new();
    let prepared = prepare(calls, &mut memory);
    let results = unsafe {
        let place = shared(prepared.len() * 8).cast::<i64>();
        std::slice::from_raw_parts_mut(place, prepared.len())
    };
    results.fill(NOT_REACHED);
    let child = unsafe { libc::fork() };
    if child == 0 {
        unsafe {
            // What kills it is the kernel's word, not a crash of the plugin.
            for signal in [libc::SIGSYS, libc::SIGSEGV, libc::SIGBUS] {
                libc::signal(signal, libc::SIG_DFL);
            }
            libc::alarm(10);
        }
        for (index, call) in prepared.iter().enumerate() {
            let answer = make(call, results);
            results[index] = answer;
        }
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    unsafe { libc::waitpid(child, &mut status, 0) };
    let text = |(address, size): &(usize, usize)| {
        let bytes = unsafe { std::slice::from_raw_parts(*address as *const u8, *size) };
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    };
    Ok(Answers {
        results: results.iter().map(|r| (*r != NOT_REACHED).then_some(*r)).collect(),
        out: memory.out.iter().map(text).collect(),
        signal: libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status)),
    })
}
