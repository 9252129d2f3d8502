//! Tools that ask, write or keep more than is good for the daemon.

use std::{
    io::Write as _,
    ptr, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stockade_plugin_sdk::prelude::*;

use crate::tools::Rogue;

#[derive(Deserialize, JsonSchema)]
struct Long {
    /// Which request to the host.
    kind: String,
    n: u64,
    bytes: usize,
}

#[derive(Deserialize, JsonSchema)]
struct Amount {
    n: u64,
    #[serde(default)]
    bytes: usize,
}

#[derive(Deserialize, JsonSchema)]
struct Mappings {
    n: usize,
    mib: usize,
    children: usize,
}

pub fn add(tools: &mut Tools<Rogue>) {
    tools
        .add(
            "long_names",
            "Asks the host n times for what has a long name",
            |_, args: Long, ctx| {
                if args.kind == "error" {
                    return Err(Error::new("ValueError", "x".repeat(args.bytes)));
                }
                Ok((0..args.n).filter(|n| long_name(&args, *n, ctx).is_ok()).count())
            },
        )
        .add("deep_path", "Reads a document by a path of n parts", |_, args: Amount, ctx| {
            let session = ctx.entity("session/1");
            // With two keys the documents are hashed, not compared.
            session.set_flag("a", &1).or_raise().wait()?;
            let path = vec!["x"; args.n as usize].join(".");
            session.get::<Value>(&path).or_raise().wait()
        })
        .add("lines", "Writes lines of one byte for n ms", |_, args: Amount, _| {
            let block = b"x\n".repeat(32 << 10);
            let end = Instant::now() + Duration::from_millis(args.n);
            let mut blocks = 0;
            while Instant::now() < end {
                std::io::stdout().lock().write_all(&block)?;
                blocks += 1;
            }
            Ok(blocks)
        })
        .stream("blocks", "Emits n texts of so many bytes", |_, args: Amount, ctx| {
            let text = "x".repeat(args.bytes);
            for _ in 0..args.n {
                ctx.emit(&text)?;
            }
            Ok(args.n)
        })
        .add("mappings", "Children with n mappings each, that stay", |_, args: Mappings, _| {
            Ok(mappings(&args))
        });
    configurations(tools);
}

fn long_name(args: &Long, n: u64, ctx: &Context) -> Result<()> {
    let name = format!("n{n}{}", "x".repeat(args.bytes));
    match args.kind.as_str() {
        "plugin" => ctx.plugin(&name).call("t", &json!({})).or_raise().wait().map(drop),
        "tool" => ctx.plugin("good").call(&name, &json!({})).or_raise().wait().map(drop),
        "provider" => ctx.provider(&name, &json!({})).or_raise().wait().map(drop),
        "event" => ctx.events().emit(&name, &json!({})).or_raise().wait().map(drop),
        "key" => ctx.kv().set(&name, &1).or_raise().wait(),
        "entity" => ctx.entity(&name).get::<Value>("").or_raise().wait().map(drop),
        "metric" => ctx.metrics().counter(&name, 1.0, &[]).or_raise().wait(),
        "permission" => ctx.host().has_permission(&name).wait().map(drop),
        "log" => ctx.host().log(Level::Warn, &name, &[]).wait(),
        other => Err(Error::new("NoSuchKind", other)),
    }
}

/// Page by page with other rights in turn, so that no two become one mapping.
fn mappings(args: &Mappings) -> usize {
    std::mem::forget(vec![1u8; args.mib << 20]);
    for n in 0..args.n {
        let access = if n % 2 == 0 { libc::PROT_READ } else { libc::PROT_READ | libc::PROT_WRITE };
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        unsafe { libc::mmap(ptr::null_mut(), 4096, access, flags, -1, 0) };
    }
    let mut children = 0;
    for _ in 0..args.children {
        match unsafe { libc::fork() } {
            0 => loop {
                unsafe { libc::pause() };
            },
            -1 => break,
            _ => children += 1,
        }
    }
    // Busy for a while, so that the guard looks often.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    children
}

/// With `--configurations N`, so many parts of the simulation's configuration.
fn configurations(tools: &mut Tools<Rogue>) {
    let args: Vec<String> = std::env::args().collect();
    let wanted = args.windows(2).find(|pair| pair[0] == "--configurations");
    let wanted: i32 = wanted.and_then(|pair| pair[1].parse().ok()).unwrap_or(0);
    for n in 0..wanted {
        tools.simulation_config(&format!("c{n}"), "One of many", n, |_, base, _| {
            Ok(json!({"keys": base.as_object().map(serde_json::Map::len)}))
        });
    }
}
