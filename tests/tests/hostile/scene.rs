//! A daemon under attack, and who measures it meanwhile.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use stockade_proto::v1::{CallRequest, CallsRequest, GetDaemonRequest, PluginState, calls_request};
use stockade_tests::{Bounds, Client, Clock, Daemon, Options, Report};

pub const MIB: u64 = 1 << 20;

/// For attacks whose size is bounded by what is buffered: a small budget.
pub const BUFFERED: &str = "max_buffered = \"256MiB\"";

/// Restarts that do not run out and do not wait.
pub const QUICK: &str =
    "[restart]\nbackoff_min = \"10ms\"\nbackoff_max = \"50ms\"\nmax_deaths = 1000\nmax_errors = 0";

/// One death is the last.
pub const ONCE: &str = "[restart]\nmax_deaths = 0\nexhausted = \"hold\"";

/// `[run]` of a plugin that speaks by itself.
pub fn raw(mode: &str, more: &str) -> String {
    format!("args = [\"--raw\", \"{mode}\"]\n{more}")
}

/// How long it is measured without an attack: twice what the restarts wait for each other.
const CONTROL: Duration = Duration::from_millis(600);

/// So many calls of 10 MiB each, for one stream.
pub fn large_results(calls: u64) -> impl futures_util::Stream<Item = CallsRequest> + use<> {
    tokio_stream::iter((1..=calls).map(|id| {
        let call = CallRequest {
            plugin: "x".into(),
            tool: "huge".into(),
            args: r#"{"n":10}"#.into(),
            ..CallRequest::default()
        };
        CallsRequest { id, frame: Some(calls_request::Frame::Call(call)) }
    }))
}

/// Starts it with a plugin `other`, which the measuring restarts.
pub async fn attacked(options: Options) -> Daemon {
    let daemon = options.notices().rogue("other", "").start().await;
    daemon.serving("other").await;
    daemon
}

/// Measures for a moment without the attack, then the attack; it must have taken place
/// (it says how often), and nobody else may have noticed it. `budget` is by how
/// many bytes the daemon may grow.
pub async fn under_attack(
    daemon: &Daemon,
    budget: u64,
    attack: impl Future<Output = u64>,
) -> Report {
    let clock = Clock::start(daemon, Some("other"));
    clock.running().await;
    tokio::time::sleep(CONTROL).await;
    let control = clock.report().await;
    let clock = Clock::start(daemon, Some("other"));
    clock.running().await;
    let attack = tokio::time::timeout(Duration::from_secs(120), attack).await;
    let evidence = attack.expect("the attack came to an end");
    let report = clock.report().await;
    eprintln!("without: {control}\nattack:  {report}; {evidence} times");
    assert!(evidence > 0, "the attack did not take place");
    report.check(&Bounds::STRICT.scaled(&control)).unwrap_or_else(|what| {
        panic!("{what}\nwithout the attack: {control}");
    });
    let (grew, most) = (report.growth / MIB, budget / MIB);
    assert!(report.growth <= budget, "it grew by {grew} MiB; at most {most} MiB are allowed");
    report
}

/// Waits until the plugin has been refused or has failed.
pub async fn down(client: &Client, plugin: &str) -> stockade_proto::v1::PluginHealth {
    let ended = [PluginState::Failed, PluginState::Unavailable];
    client.until(plugin, |health| ended.contains(&health.state())).await
}

/// What the daemon says is wrong with itself.
pub async fn problems(client: &Client) -> Vec<String> {
    let reply = client.admin().get_daemon(GetDaemonRequest {}).await;
    reply.expect("daemon").into_inner().problems
}

/// So long that effects show.
pub async fn a_while() {
    tokio::time::sleep(Duration::from_secs(3)).await;
}

/// What it takes until a condition holds.
pub async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let begin = Instant::now();
    (work.await, begin.elapsed())
}

/// After its end: none of its processes is left.
pub async fn nothing_left(daemon: &mut Daemon) {
    let deadline = Instant::now() + stockade_tests::PATIENCE;
    while !daemon.left().is_empty() {
        assert!(Instant::now() < deadline, "left behind: {:?}", daemon.left());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
