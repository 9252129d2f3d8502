//! How soon a death is known, and over.

use std::time::{Duration, Instant};

use stockade_proto::v1::{
    CallRequest, GetPluginRequest, plugins_client::PluginsClient, tools_client::ToolsClient,
};
use tonic::transport::Channel;

use crate::{
    clients::{connect, percentile},
    report::{Report, Row},
    role,
    setup::{Scene, minimal, write},
};

pub const RESTARTS: &str =
    "[restart]\nbackoff_min = \"0s\"\nbackoff_max = \"0s\"\nmax_deaths = 1000000";

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

pub fn call(plugin: &str, tool: &str, args: &str) -> CallRequest {
    CallRequest {
        plugin: plugin.into(),
        tool: tool.into(),
        args: args.to_owned().into(),
        ..CallRequest::default()
    }
}

async fn health(
    client: &mut PluginsClient<Channel>,
    name: &str,
) -> stockade_proto::v1::PluginHealth {
    let request = GetPluginRequest { name: name.into() };
    client.get_plugin(request).await.expect("get").into_inner().health.expect("health")
}

pub async fn measure(report: &mut Report) {
    starts(report).await;
    small(report).await;
    large(report).await;
    overrun(report).await;
}

async fn starts(report: &mut Report) {
    let home = tempfile::tempdir().expect("home");
    write(&home.path().join("plugins/minimal"), "minimal", &minimal(""));
    let place = home.path().display().to_string();
    let times = role(Some("0"), &["starts", &place, "100"]).await;
    report.row(
        Row::new(
            "spawn → INITIALIZED of a minimal plugin, p50",
            times["p50"] / 1000.0,
            "ms",
            5.0,
            2.5,
        )
        .with(format!("p99 {:.1} ms, checks included", times["p99"] / 1000.0)),
    );
}

/// SIGKILL of a small plugin.
async fn small(report: &mut Report) {
    let scene = Scene::start(None, &[("minimal", minimal(RESTARTS))], "").await;
    let channel = connect(&scene.socket()).await;
    let mut plugins = PluginsClient::new(channel.clone());
    let mut tools = ToolsClient::new(channel);
    let ping = || call("minimal", "ping", "{\"text\":\"x\"}");
    let (mut seen, mut served) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        tools.call(ping()).await.expect("call");
        let before = health(&mut plugins, "minimal").await;
        let begin = Instant::now();
        unsafe { libc::kill(before.pid.expect("pid") as i32, libc::SIGKILL) };
        loop {
            let now = health(&mut plugins, "minimal").await;
            if now.generation > before.generation || now.last_exit != before.last_exit {
                break;
            }
        }
        seen.push(begin.elapsed());
        while tools.call(ping()).await.is_err() {}
        served.push(begin.elapsed());
    }
    scene.stop().await;
    report.row(
        Row::new(
            "death of a small plugin → visible in health, p99",
            ms(percentile(&mut seen, 0.99)),
            "ms",
            5.0,
            1.0,
        )
        .with(format!("p50 {:.2} ms", ms(percentile(&mut seen, 0.5)))),
    );
    report.row(
        Row::new(
            "death of a small plugin → next call served, p50",
            ms(percentile(&mut served, 0.5)),
            "ms",
            6.0,
            3.0,
        )
        .with(format!("p99 {:.1} ms", ms(percentile(&mut served, 0.99)))),
    );
}

/// SIGSEGV with 1 GiB resident.
async fn large(report: &mut Report) {
    let toml = format!(
        "name = \"large\"\n[run]\nbinary = \"bin/rogue\"\n{RESTARTS}\n[limits]\nmemory = \"6GiB\""
    );
    let scene = Scene::start(None, &[("large", toml)], "").await;
    let channel = connect(&scene.socket()).await;
    let mut plugins = PluginsClient::new(channel.clone());
    let mut tools = ToolsClient::new(channel);
    let (mut told, mut served) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        tools.call(call("large", "hold", "{\"n\":1024}")).await.expect("hold");
        let before = health(&mut plugins, "large").await;
        let begin = Instant::now();
        tools.call(call("large", "segfault", "{}")).await.expect_err("it crashes");
        loop {
            let now = health(&mut plugins, "large").await;
            if now.state != before.state || now.generation > before.generation {
                break;
            }
        }
        told.push(begin.elapsed());
        while tools.call(call("large", "ping", "{}")).await.is_err() {}
        served.push(begin.elapsed());
        // The predecessor must be gone before the next round.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    scene.stop().await;
    report.row(
        Row::new(
            "SIGSEGV with 1 GiB resident → callers told and health changed, p50",
            ms(percentile(&mut told, 0.5)),
            "ms",
            3.0,
            0.5,
        )
        .with("the call itself included".into()),
    );
    report.row(
        Row::new("… → next call served, p50", ms(percentile(&mut served, 0.5)), "ms", 20.0, 6.0)
            .with("started from the call that crashes".into()),
    );
}

/// A tool that is deaf to its cancellation.
async fn overrun(report: &mut Report) {
    let toml = format!(
        "name = \"deaf\"\n[run]\nbinary = \"bin/rogue\"\n[timeouts]\ncall = \"100ms\"\n\
         cancel_grace = \"50ms\"\n{RESTARTS}"
    );
    let scene = Scene::start(None, &[("deaf", toml)], "").await;
    let mut tools = ToolsClient::new(connect(&scene.socket()).await);
    let mut late = Vec::new();
    for _ in 0..100 {
        while tools.call(call("deaf", "ping", "{}")).await.is_err() {}
        let begin = Instant::now();
        tools.call(call("deaf", "sleep", "{\"n\":600000}")).await.expect_err("killed");
        late.push(begin.elapsed().saturating_sub(Duration::from_millis(150)));
    }
    scene.stop().await;
    report.row(
        Row::new(
            "a deaf call: return to the caller after time-out + grace, p99",
            ms(percentile(&mut late, 0.99)),
            "ms",
            20.0,
            5.0,
        )
        .with(format!("p50 {:.2} ms", ms(percentile(&mut late, 0.5)))),
    );
}
