//! Health and another plugin's calls while ten attacks run at once.

use std::{
    cell::Cell,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stockade_proto::v1::{CallRequest, CallsRequest, calls_request, tools_client::ToolsClient};
use stockade_tests::{Clock, Daemon, Http, Options};
use tokio::time::{sleep, timeout};
use tonic::{Code, transport::Channel};

use crate::{
    clients::connect,
    direct_server,
    report::{Report, Row},
    role_by,
};

/// How long each measurement takes.
const TIME: Duration = Duration::from_secs(20);

/// Restarts that do not run out and hardly wait.
const QUICK: &str = "[restart]\nbackoff_min = \"10ms\"\nbackoff_max = \"50ms\"\n\
                     max_deaths = 1000000\nmax_errors = 0";

/// The rows "while ten attacks run".
pub async fn measure(report: &mut Report) {
    let daemon = daemon().await;
    let quiet = clocks(&daemon).await;
    let address = daemon.address().await;
    let socket = daemon.socket.display().to_string();
    let seconds = (TIME.as_secs() + 4).to_string();
    // What the machine leaves of any call meanwhile: of one to a bare server, by a client
    // of its own.
    let folder = tempfile::tempdir().expect("folder");
    let direct = folder.path().join("direct.sock").display().to_string();
    let mut server = direct_server(None, &direct).await;
    let measured = async {
        sleep(Duration::from_secs(2)).await;
        let time = TIME.as_secs().to_string();
        let pace = ["pace", &direct, &time];
        tokio::join!(clocks(&daemon), role_by(&["env"], &pace))
    };
    let attack = ["attack", &socket, &address, &seconds];
    // The attackers stand for other machines: they take no processor from anybody here.
    let (made, (attacked, bare)) =
        tokio::join!(role_by(&["chrt", "--idle", "0"], &attack), measured);
    daemon.stop().await;
    server.kill().await.expect("kill");
    let mut made: Vec<_> = made.iter().map(|(what, times)| format!("{what} {times:.0}")).collect();
    made.sort_unstable();
    let quiet = format!("{:.1} ms and {:.1} ms without", quiet.0, quiet.1);
    report.note(format!(
        "Ten attacks at once, how often in {seconds} s: {}. Health and a call, p99, {quiet} them.",
        made.join(", ")
    ));
    report.note(format!(
        "A direct tonic call, without any daemon, beside the same attacks: p99 {:.1} ms.",
        bare["p99"] / 1000.0
    ));
    let row = |what: &str, took, bar, aim| Row::new(what, took, "ms", bar, aim);
    report.row(row("health p99 while ten attacks run", attacked.0, 20.0, 10.0));
    report.row(row("another plugin's call, p99, while ten attacks run", attacked.1, 5.0, 2.5));
}

/// The p99 of health and of a call, in milliseconds.
async fn clocks(daemon: &Daemon) -> (f64, f64) {
    let clock = Clock::start(daemon, None);
    clock.running().await;
    sleep(TIME).await;
    let report = clock.report().await;
    (report.health_p99.as_secs_f64() * 1e3, report.call_p99.as_secs_f64() * 1e3)
}

async fn daemon() -> Daemon {
    let raw = |mode: &str| format!("args = [\"--raw\", \"{mode}\"]\n{QUICK}");
    let reading = "[permissions]\nrequest = [\"session:read\", \"session:write\"]";
    let many = "concurrency = 8\nqueue = { size = 1000, timeout = \"60s\" }";
    let daemon = Options::new()
        .port()
        .config("max_buffered = \"256MiB\"")
        .rogue("references", &raw("references:150"))
        .rogue("refused", &raw("refused-result:10"))
        .rogue("tracebacks", &format!("{}\n[limits]\nmemory = \"1GiB\"", raw("tracebacks")))
        .rogue("schema", &raw("schema-bomb:patterns:1500"))
        .rogue("path", &format!("{reading}\n{QUICK}"))
        .rogue("other", QUICK)
        .rogue("large", &format!("{many}\n{QUICK}"))
        .start()
        .await;
    for name in ["references", "refused", "tracebacks", "path", "other", "large"] {
        daemon.serving(name).await;
    }
    daemon
}

/// The attackers' clients, in a process of their own: makes all attacks, or one, until
/// the time is over and prints how often each was made.
///
/// # Panics
/// One was not made.
pub async fn attack(socket: &str, address: &str, time: Duration, only: &str) {
    let end = Instant::now() + time;
    let (channel, only) = (connect(socket).await, only.to_owned());
    let attacker = Attacker { channel, address: address.to_owned(), end, only };
    let attacker = &attacker;
    let array = format!("{{\"args\":{{\"calls\":[{}0]}}}}", "0,".repeat(2_500_000));
    let names = json!({"kind": "provider", "n": 5, "bytes": 8_000_000});
    let (nothing, path, lines) = (json!({}), json!({"n": 100_000}), json!({"n": 1000}));
    tokio::join!(
        attacker.again("references", || attacker.post("references", "t", b"{}")),
        attacker.again("refused-arguments", || attacker.post("other", "attack", array.as_bytes())),
        attacker.again("refused-results", || attacker.call("refused", "t", &nothing)),
        attacker.again("tracebacks", || attacker.call("tracebacks", "t", &nothing)),
        attacker.again("schemas", || attacker.restart("schema")),
        attacker.again("paths", || attacker.call("path", "deep_path", &path)),
        attacker.again("names", || attacker.call("other", "long_names", &names)),
        attacker.again("lines", || attacker.call("other", "lines", &lines)),
        attacker.again("unfinished-requests", || attacker.unfinished()),
        attacker.again("unread-answers", || attacker.unread()),
    );
}

struct Attacker {
    channel: Channel,
    address: String,
    end: Instant,
    /// Empty = all.
    only: String,
}

impl Attacker {
    /// Until the time is over.
    async fn again(&self, name: &str, attack: impl AsyncFn() -> bool) {
        if !self.only.is_empty() && self.only != name {
            return;
        }
        let (made, begun) = (Cell::new(0u64), Cell::new(Instant::now()));
        let left = self.end.saturating_duration_since(Instant::now());
        let _ = timeout(left, async {
            loop {
                begun.set(Instant::now());
                match attack().await {
                    true => made.set(made.get() + 1),
                    // Refused at the door: not as fast as one can.
                    false => sleep(Duration::from_millis(5)).await,
                }
            }
        })
        .await;
        // A slow machine may not come to the end of even one.
        if begun.get().elapsed() >= TIME / 2 {
            made.set(made.get() + 1);
        }
        assert!(made.get() > 0, "the attack {name} did not take place");
        println!("{name} {}", made.get());
    }

    async fn post(&self, plugin: &str, tool: &str, body: &[u8]) -> bool {
        let url = format!("/v1/plugins/{plugin}/tools/{tool}/run");
        let Ok(mut http) = Http::tcp(&self.address).await else { return false };
        http.post(&url, body).await.is_ok()
    }

    /// Whatever the answer is, so that the plugin has been called.
    async fn call(&self, plugin: &str, tool: &str, args: &Value) -> bool {
        let request = CallRequest {
            plugin: plugin.into(),
            tool: tool.into(),
            args: args.to_string().into(),
            timeout_ms: 2000,
            ..CallRequest::default()
        };
        let answer = ToolsClient::new(self.channel.clone()).call(request).await;
        answer.map_or_else(|status| status.code() != Code::Unavailable, |_| true)
    }

    async fn restart(&self, plugin: &str) -> bool {
        let url = format!("/v1/plugins/{plugin}:restart");
        let Ok(mut http) = Http::tcp(&self.address).await else { return false };
        http.post(&url, b"").await.is_ok()
    }

    /// Heads and bodies that do not end, and connections that say nothing.
    async fn unfinished(&self) -> bool {
        let mut held = Vec::new();
        for n in 0..200 {
            let Ok(mut http) = Http::tcp(&self.address).await else { continue };
            let url = "/v1/plugins/other/tools/ping/run";
            let _ = match n % 3 {
                0 => Ok(()),
                1 => http.write(b"GET /v1/plugins HTTP/1.1\r\nhost: ").await,
                _ => http.head("POST", url, "image/jpeg", 60_000_000).await,
            };
            held.push(http);
        }
        sleep(Duration::from_millis(500)).await;
        held.len() > 100
    }

    /// A stream of large results that nobody reads.
    async fn unread(&self) -> bool {
        let requests = tokio_stream::iter((1..=100).map(|id| {
            let call = CallRequest {
                plugin: "large".into(),
                tool: "huge".into(),
                args: r#"{"n":10}"#.into(),
                ..CallRequest::default()
            };
            CallsRequest { id, frame: Some(calls_request::Frame::Call(call)) }
        }));
        let answers = ToolsClient::new(self.channel.clone()).calls(requests).await;
        sleep(Duration::from_secs(2)).await;
        answers.is_ok()
    }
}
