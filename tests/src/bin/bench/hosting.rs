//! What plugins ask of their host, and what extends it: each against its neighbour
//! in the same run.

use std::time::Instant;

use rusqlite::Connection;
use serde_json::{Value, json};
use stockade_proto::v1::{
    CallRequest, ListExtensionsRequest, extensions_client::ExtensionsClient,
    tools_client::ToolsClient,
};

use crate::{
    clients::{connect, percentile},
    direct_server, median,
    report::{Report, Row},
    role, setup,
    setup::Scene,
};

const PINNED: Option<&str> = Some("0");
const CALLS: &str = "10000";
/// Bytes of a value.
const VALUE: usize = 100;
const SUBSCRIBERS: usize = 10;
const EVENTS: usize = 30_000;
const UNBOUND: &str = "[quota]\nrequests = 10000000\nwrites = 10000000\nevents = 10000000";

fn rogue(name: &str, run: &str, permissions: &str) -> String {
    format!(
        "name = \"{name}\"\n[run]\nbinary = \"bin/rogue\"\n{run}\n[permissions]\nrequest = \
         [{permissions}]\n"
    )
}

async fn call(socket: &str, plugin: &str, tool: &str, args: Value) -> Value {
    let request = CallRequest {
        plugin: plugin.to_owned(),
        tool: tool.to_owned(),
        args: args.to_string().into(),
        ..CallRequest::default()
    };
    let reply = ToolsClient::new(connect(socket).await).call(request).await.expect("call");
    serde_json::from_slice(&reply.into_inner().result).expect("JSON")
}

pub async fn measure(report: &mut Report) {
    store(report).await;
    conditions(report).await;
    events(report).await;
}

/// Commits of one row each, synced as ours are.
pub fn bare_commits(folder: &str, count: usize) {
    let file = std::path::Path::new(folder).join("bare.db");
    let connection = Connection::open(file).expect("open");
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
             CREATE TABLE IF NOT EXISTS kv (key TEXT PRIMARY KEY, value BLOB);",
        )
        .expect("schema");
    let value = vec![b'x'; VALUE];
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let begin = Instant::now();
        connection
            .prepare_cached("INSERT OR REPLACE INTO kv VALUES (?1, ?2)")
            .and_then(|mut insert| insert.execute((format!("timed:{}", n % 100), &value)))
            .expect("commit");
        times.push(begin.elapsed());
    }
    println!("p50 {}", percentile(&mut times, 0.5).as_nanos() as f64 / 1000.0);
}

async fn store(report: &mut Report) {
    let folder = tempfile::tempdir().expect("folder");
    let direct = folder.path().join("direct.sock").display().to_string();
    let mut server = direct_server(PINNED, &direct).await;
    let toml = rogue("keeper", "", "\"kv:read\", \"kv:write\"");
    let scene = Scene::start(PINNED, &[("keeper", toml)], UNBOUND).await;
    let socket = scene.socket();
    let (mut base, mut gets, mut blocking) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bare, mut sets) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        base.push(role(PINNED, &["unary", &direct, CALLS]).await["p50"]);
        let many = json!({"n": 10_000, "bytes": VALUE});
        let number = |value: Value| value.as_f64().expect("number");
        gets.push(number(call(&socket, "keeper", "time_gets", many.clone()).await));
        blocking.push(number(call(&socket, "keeper", "time_gets_blocking", many).await));
        let place = folder.path().display().to_string();
        bare.push(role(PINNED, &["commits", &place, "2000"]).await["p50"]);
        let many = json!({"n": 2000, "bytes": VALUE});
        sets.push(number(call(&socket, "keeper", "time_sets", many).await));
    }
    server.kill().await.expect("kill");
    scene.stop().await;
    let (base, gets, blocking) = (median(base), median(gets), median(blocking));
    report.row(
        Row::ratio("kv get from a plugin, p50 / a direct unary tonic call", gets / base, 1.5, 1.0)
            .with(format!("{gets:.1} µs")),
    );
    report.note(format!(
        "The same kv get from a blocking tool, which waits on another thread: {:.2} × \
         ({blocking:.1} µs).",
        blocking / base
    ));
    let (bare, sets) = (median(bare), median(sets));
    report.row(
        Row::ratio(
            "kv set, on the disk, p50 / a bare SQLite commit, as durable",
            sets / bare,
            2.0,
            1.5,
        )
        .with(format!("{sets:.0} µs")),
    );
}

async fn conditions(report: &mut Report) {
    let toml = format!(
        "{}[permissions]\nrequest = [\"behavior:extend_conditions\"]\n",
        setup::minimal("args = [\"--condition\"]")
    );
    let scene = Scene::start(PINNED, &[("minimal", toml)], "").await;
    let socket = scene.socket();
    let (mut tools, mut conditions) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        tools.push(role(PINNED, &["unary", &socket, CALLS]).await["p50"]);
        conditions.push(role(PINNED, &["condition", &socket, CALLS]).await["p50"]);
    }
    scene.stop().await;
    let (tool, condition) = (median(tools), median(conditions));
    report.row(
        Row::ratio(
            "evaluate_condition, p50 / a tool call through the daemon",
            condition / tool,
            1.3,
            1.1,
        )
        .with(format!("{condition:.1} µs")),
    );
}

async fn events(report: &mut Report) {
    let subscribe = "\"event:subscribe\"";
    let mut plugins = vec![("emitter".to_owned(), rogue("emitter", "", "\"event:emit\""))];
    for n in 0..SUBSCRIBERS {
        let name = format!("subscriber{n}");
        let toml = rogue(&name, "args = [\"--tally\", \"plugin:emitter:*\"]", subscribe);
        plugins.push((name, toml));
    }
    let plugins: Vec<(&str, String)> =
        plugins.iter().map(|(name, toml)| (name.as_str(), toml.clone())).collect();
    let mut rates = Vec::new();
    let mut lost = 0;
    for _ in 0..3 {
        let scene = Scene::start(None, &plugins, UNBOUND).await;
        scene.all_serving(plugins.len()).await;
        let socket = scene.socket();
        let begin = Instant::now();
        call(&socket, "emitter", "emit_many", json!({"n": EVENTS, "name": "e", "bytes": 50})).await;
        loop {
            let mut heard = 0;
            for n in 0..SUBSCRIBERS {
                let name = format!("subscriber{n}");
                let count = call(&socket, &name, "tally", json!({})).await;
                heard += count.as_u64().expect("count") as usize;
            }
            let mut extensions = ExtensionsClient::new(connect(&socket).await);
            let list = extensions.list_extensions(ListExtensionsRequest {}).await.expect("list");
            let dropped: u64 = list.into_inner().event_handlers.iter().map(|one| one.dropped).sum();
            if heard + dropped as usize >= EVENTS * SUBSCRIBERS {
                lost += dropped;
                rates.push(heard as f64 / begin.elapsed().as_secs_f64());
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        scene.stop().await;
    }
    let rate = median(rates);
    report.row(
        Row::more(
            "events, 1 emitter and 10 subscribers, delivered per second / 30,000",
            rate / 30_000.0,
            1.0,
            2.0,
        )
        .with(format!("{rate:.0}/s, {lost} lost")),
    );
}
