//! What a plugin may ask of its host, on request, and what it can register. Each
//! request is as the SDK makes it; what the SDK would not say is in `forge.rs`.

use std::{
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stockade_plugin_sdk::{host::Host, prelude::*};

use crate::tools::Rogue;

#[derive(Deserialize, JsonSchema)]
struct Ask {
    op: String,
    #[serde(default)]
    key: String,
    #[serde(default)]
    value: Value,
    #[serde(default)]
    expected: Option<Value>,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    ttl_ms: u64,
    #[serde(default)]
    workspace: String,
    /// Not on behalf of the call.
    #[serde(default)]
    outside: bool,
}

#[derive(Deserialize, JsonSchema)]
struct Many {
    n: u64,
    #[serde(default)]
    name: String,
    #[serde(default)]
    bytes: usize,
}

macro_rules! ask {
    ($args:expr, $ask:expr) => {{
        let ask = $ask;
        let ask = match $args.mode.as_str() {
            "raise" => ask.or_raise(),
            "warn" => ask.or_warn(),
            "silent" => ask.or_silent(),
            _ => ask,
        };
        json!(ask.in_workspace(&$args.workspace).wait()?)
    }};
}

fn ask(host: &Host, args: &Ask) -> Result<Value> {
    let Ask { op, key, value, expected, ttl_ms, .. } = args;
    let ttl = Duration::from_millis(*ttl_ms);
    Ok(match op.as_str() {
        "get" => ask!(args, host.kv().get::<Value>(key)),
        "get_bytes" => json!(host.kv().get_bytes(key).wait()?.map(|bytes| bytes.len())),
        "set" if *ttl_ms > 0 => ask!(args, host.kv().set(key, value).ttl(ttl).ask()),
        "set" => ask!(args, host.kv().set(key, value).ask()),
        "set_bytes" => {
            let size = value.as_u64().unwrap_or(0) as usize;
            ask!(args, host.kv().set_bytes(key, vec![7; size]).ask())
        }
        "delete" => ask!(args, host.kv().delete(key)),
        "list" => {
            let keys = host.kv().list(key, value.as_str().unwrap_or_default()).wait()?;
            json!({"keys": keys.keys, "more": keys.more})
        }
        "cas" => {
            let value = Some(value).filter(|value| !value.is_null());
            ask!(args, host.kv().compare_and_set(key, expected.as_ref(), value))
        }
        "entity" => {
            let path = value.as_str().unwrap_or_default();
            ask!(args, host.entity(key).get::<Value>(path))
        }
        "flag" => ask!(args, host.entity(key).set_flag(name(value), &value["value"])),
        "relationship" => {
            ask!(args, host.entity(key).update_relationship(name(value), &value["value"]))
        }
        "set_component" => ask!(args, host.entity(key).set_component(name(value), &value["value"])),
        "update_component" => {
            ask!(args, host.entity(key).update_component(name(value), &value["value"]))
        }
        "delete_component" => ask!(args, host.entity(key).delete_component(name(value))),
        "emit" => ask!(args, host.events().emit(key, value)),
        "counter" => ask!(args, host.metrics().counter(key, value.as_f64().unwrap_or(1.0), &[])),
        "has" => ask!(args, host.has_permission(key)),
        "self" => {
            let own = host.get_self().wait()?;
            json!({"plugin": own.plugin, "permissions": own.permissions,
                   "capabilities": own.capabilities})
        }
        "call" => {
            let (plugin, tool) = key.split_once('.').unwrap_or((key, ""));
            let ask = host.plugin(plugin).call(tool, value);
            let ask = if args.mode == "raise" { ask.or_raise() } else { ask };
            ask.wait()?.result
        }
        "provider" => ask!(args, host.provider(key, value)),
        "providers" => {
            let list = host.providers().wait()?;
            json!(list.iter().map(|one| json!([one.name, one.granted])).collect::<Vec<_>>())
        }
        other => return Err(Error::new("NoSuchOp", other)),
    })
}

fn name(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

#[derive(Deserialize)]
struct Boost {
    amount: f64,
    #[serde(default)]
    by: f64,
}

#[derive(Deserialize, JsonSchema)]
struct Double {
    n: i64,
}

/// With `--late N`, what is registered again under a name that is taken counts.
pub fn register(tools: &mut Tools<Rogue>) {
    let wanted = |flag: &str| {
        let args: Vec<String> = std::env::args().collect();
        args.iter()
            .position(|arg| arg == flag)
            .map(|at| args.get(at + 1).cloned().unwrap_or_default())
    };
    tools
        .add("host", "Asks the host", |rogue: &Rogue, args: Ask, ctx| {
            let host = if args.outside { rogue.host.clone() } else { ctx.host() };
            ask(&host, &args)
        })
        .add("heard", "Events that its handler has heard", |rogue, _: (), _| {
            Ok(rogue.heard.lock().expect("heard").clone())
        })
        .add("emit_many", "Emits n events", |_, args: Many, ctx| {
            let payload = "x".repeat(args.bytes);
            for n in 0..args.n {
                ctx.events().emit(&args.name, &json!({"n": n, "x": payload})).wait()?;
            }
            Ok(args.n)
        })
        .add("count_events", "Counts events until there are n", |_, args: Many, ctx| {
            let mut heard = ctx.events().subscribe(&[&args.name]).wait()?;
            ctx.progress(0.0, "subscribed");
            let mut last = 0;
            for _ in 0..args.n {
                let Some(event) = heard.next_within(Duration::from_secs(20)) else { break };
                last = event.sequence;
            }
            Ok(json!({"last": last, "dropped": heard.dropped()}))
        })
        .add("write_on", "Writes ascending numbers until it is stopped", |_, args: Ask, ctx| {
            for n in 0u64.. {
                ctx.check()?;
                ctx.kv().set(&format!("{}{}", args.key, n % 100), &n).wait()?;
                // Acknowledged: told to whoever listens.
                ctx.log(Level::Info, &format!("acknowledged {n}"));
            }
            Ok(())
        });
    timed(tools);
    if let Some(pattern) = wanted("--tally") {
        tools.on_event("tally", &[&pattern], |rogue, _, _| {
            rogue.tally.fetch_add(1, Ordering::Relaxed);
            Ok(())
        });
    }
    if let Some(pattern) = wanted("--hear") {
        tools.on_event("hear", &[&pattern], |rogue, event, ctx| {
            if event.name.ends_with(":bad") {
                return Err(Error::new("ValueError", "a bad event"));
            }
            if event.name.ends_with(":slow") {
                thread::sleep(Duration::from_millis(200));
            }
            if event.name.ends_with(":deadly") {
                std::process::abort();
            }
            let text = format!("{} {} {}", event.name, event.source, ctx.workspace());
            rogue.heard.lock().expect("heard").push(text);
            Ok(())
        });
    }
    if wanted("--extend").is_some() {
        extensions(tools);
    }
}

/// What benchmarks ask: medians in microseconds, taken here.
fn timed(tools: &mut Tools<Rogue>) {
    tools
        .add_async("time_gets", "Gets a key n times", |_, args: Many, ctx| async move {
            let value = "x".repeat(args.bytes);
            ctx.kv().set("timed", &value).await?;
            let mut times = Vec::new();
            for _ in 0..args.n {
                let begin = Instant::now();
                ctx.kv().get::<String>("timed").await?;
                times.push(begin.elapsed());
            }
            Ok(median(times))
        })
        .add("time_gets_blocking", "The same in a blocking tool", |_, args: Many, ctx| {
            let mut times = Vec::new();
            for _ in 0..args.n {
                let begin = Instant::now();
                ctx.kv().get::<String>("timed").wait()?;
                times.push(begin.elapsed());
            }
            Ok(median(times))
        })
        .add_async("time_sets", "Sets n keys", |_, args: Many, ctx| async move {
            let value = "x".repeat(args.bytes);
            let mut times = Vec::new();
            for n in 0..args.n {
                let key = format!("timed:{}", n % 100);
                let begin = Instant::now();
                ctx.kv().set(&key, &value).await?;
                times.push(begin.elapsed());
            }
            Ok(median(times))
        })
        .add_async("tally", "Events that its tally has heard", |rogue, _: (), _| async move {
            Ok(rogue.tally.load(Ordering::Relaxed))
        });
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_nanos() as f64 / 1000.0
}

fn extensions(tools: &mut Tools<Rogue>) {
    let first = tools
        .condition("is", "Is it so?", &["so"], |_, context: Value, _| Ok(context["so"] == true));
    let second = tools.condition("is", "Again", &[], |_, _: Value, _| Ok(true));
    assert!(first && !second, "the first of a name stays");
    tools.condition("context", "Is the context exactly that?", &[], |_, context: Value, _| {
        let keys: Vec<&String> =
            context.as_object().into_iter().flat_map(|all| all.keys()).collect();
        eprintln!("<6>context {keys:?}");
        Ok(true)
    });
    tools.condition("raises", "Raises", &[], |_, _: Value, _| {
        Err(Error::new("ValueError", "no idea"))
    });
    tools.condition("slow", "Takes three seconds", &[], |_, _: Value, _| {
        thread::sleep(Duration::from_secs(3));
        Ok(true)
    });
    tools.condition("dies", "Aborts", &[], |_, _: Value, _| std::process::abort());
    tools.effect(
        "boost",
        "Adds amount to by",
        &json!({"amount": 1.0}),
        |_, context: Value, params: Boost, _| {
            Ok(json!({"total": params.amount + params.by, "for": context["npc_id"]}))
        },
    );
    tools.effect("fails", "Raises", &json!({}), |_, _: Value, _: Value, _| -> Result<()> {
        Err(Error::new("ValueError", "not today"))
    });
    tools.simulation_config("low", "Of low priority", 10, |_, _, _| {
        Ok(json!({"tick": 1, "weights": {"low": 1, "both": 1}, "user": "plugin"}))
    });
    tools.simulation_config("high", "Of high priority", 20, |_, base, _| {
        Ok(json!({"tick": 2, "weights": {"both": 2}, "seen": base["simulationConfig"]["user"]}))
    });
    tools.simulation_config("fails", "Raises", 15, |_, _, _| -> Result<Value> {
        Err(Error::new("ValueError", "no config"))
    });
    tools.simulation_config("list", "Is no object", 16, |_, _, _| Ok(json!([1])));
    tools.provider("double", "provider:double", "Doubles n", |_, args: Double, asking, _| {
        Ok(json!({"n": args.n * 2, "for": asking.plugin}))
    });
}
