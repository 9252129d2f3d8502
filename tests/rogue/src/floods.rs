//! Tools that ask, write or keep more than is good for the daemon.

use std::{
    io::Write as _,
    ptr, thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json, value::RawValue};
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
struct Flood {
    /// Which request to the host, and what its value is made of.
    kind: String,
    of: String,
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
        .add(
            "flood",
            "Asks the host n things at once; how many were done",
            |_, args: Flood, ctx| {
                let value = &*value_of(&args.of, args.bytes)?;
                let kind = args.kind.as_str();
                Ok(thread::scope(|scope| {
                    let asked: Vec<_> = (0..args.n)
                        .map(|n| {
                            let one = move || one_of(kind, n, value, ctx);
                            // The log tells why, for whoever wonders.
                            scope.spawn(move || one().inspect_err(|why| eprintln!("{why}")).is_ok())
                        })
                        .collect();
                    asked.into_iter().filter_map(|one| one.join().ok()).filter(|done| *done).count()
                }))
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

/// JSON of about so many bytes; of `deep`, so many arrays within each other.
fn value_of(of: &str, bytes: usize) -> Result<Box<RawValue>> {
    let many = |one: &str| format!("[{}{one}]", format!("{one},").repeat(bytes / (one.len() + 1)));
    let text = match of {
        "deep" => format!("{}{}", "[".repeat(bytes), "]".repeat(bytes)),
        "nests" => many("[0]"),
        "objects" => many("{}"),
        // The same as {"a":1}, with much between.
        "spaces" => format!("{{{}\"a\":1}}", " ".repeat(bytes)),
        "text" => format!("\"{}\"", "x".repeat(bytes)),
        other => return Err(Error::new("NoSuchValue", other)),
    };
    Ok(RawValue::from_string(text)?)
}

fn one_of(kind: &str, n: u64, value: &RawValue, ctx: &Context) -> Result<()> {
    let key = format!("k{n}");
    match kind {
        "flag" => ctx.entity("session/1").set_flag(&key, value).or_raise().wait().map(drop),
        "flag_of_own" => {
            ctx.entity(&format!("session/{n}")).set_flag("a", value).or_raise().wait().map(drop)
        }
        "entity" => ctx.entity("session/1").get::<Value>("").or_raise().wait().map(drop),
        "emit" => ctx.events().emit("x", value).or_raise().wait().map(drop),
        "set" => ctx.kv().set(&key, value).or_raise().wait(),
        "get" => ctx.kv().get::<Value>("k0").or_raise().wait().map(drop),
        "swap" => ctx.kv().compare_and_set("k0", Some(value), Some(&1)).or_raise().wait().map(drop),
        "unlike" => {
            ctx.kv().compare_and_set("k0", Some(value), Some(&2)).or_raise().wait().map(drop)
        }
        // Little is set; what is expected says the same at length.
        "padded" => {
            let key = format!("{key}.{}", value.get().len());
            ctx.kv().set(&key, &json!({"a": 1})).or_raise().wait()?;
            let swapped = ctx.kv().compare_and_set(&key, Some(value), Some(&json!({"a": 2})));
            match swapped.or_raise().wait()? {
                true => Ok(()),
                false => Err(Error::new("NotSwapped", key)),
            }
        }
        // One key too many, again and again.
        "too_many" => {
            let end = Instant::now() + Duration::from_secs(2);
            for more in 0.. {
                if Instant::now() > end {
                    break;
                }
                let key = format!("{key}.{more}");
                let _ = ctx.kv().set(&key, value).or_raise().wait();
            }
            Ok(())
        }
        "list" => ctx.kv().list("zzz", "").or_raise().wait().map(drop),
        "providers" => ctx.host().providers().wait().map(drop),
        "log" => {
            let text = "\u{300}".repeat(2000);
            let fields: Vec<(String, String)> =
                (0..64).map(|n| (format!("f{n}"), text.clone())).collect();
            let fields: Vec<(&str, &str)> =
                fields.iter().map(|(key, text)| (key.as_str(), text.as_str())).collect();
            ctx.host().log(Level::Warn, "x", &fields).wait()
        }
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

/// With `--configurations N`, so many parts of the simulation's configuration; with
/// `--stuck 1`, one that never answers; with
/// `--conditions N`, so many conditions that are described at length; with
/// `--objects N` each of so many objects, and an effect with as many default parameters.
fn configurations(tools: &mut Tools<Rogue>) {
    let args: Vec<String> = std::env::args().collect();
    let number = |flag: &str| {
        let wanted = args.windows(2).find(|pair| pair[0] == flag);
        wanted.and_then(|pair| pair[1].parse::<usize>().ok()).unwrap_or(0)
    };
    let objects = number("--objects");
    let many: Value = vec![json!({}); objects].into();
    for n in 0..number("--configurations") {
        let many = many.clone();
        tools.simulation_config(&format!("c{n}"), "One of many", n as i32, move |_, base, _| {
            let keys = base.as_object().map(serde_json::Map::len);
            Ok(json!({"keys": keys, format!("c{n}"): many}))
        });
    }
    for _ in 0..number("--stuck") {
        tools.simulation_config("stuck", "Never answers", 0, |_, _, _| {
            std::thread::sleep(std::time::Duration::from_secs(3600));
            Ok(json!({}))
        });
    }
    for n in 0..number("--conditions") {
        let description = "d".repeat(3600);
        tools.condition(&format!("c{n}"), &description, &[], |_, _: Value, _: &_| Ok(true));
    }
    if objects > 0 {
        tools.effect("e", "Does nothing", &json!({"many": many}), |_, _: Value, _: Value, _| Ok(1));
    }
}
