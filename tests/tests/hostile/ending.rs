//! SIGTERM, whatever is going on.

use std::time::Duration;

use stockade_proto::v1::{
    CallRequest, CallsRequest, WatchPluginsRequest, calls_request, plugins_client::PluginsClient,
};
use stockade_tests::{Daemon, Http, Options, eventually, manifest};
use tokio_stream::StreamExt as _;
use tonic::Code;

use crate::scene::{
    BUFFERED, MIB, ONCE, QUICK, a_while, attacked, large_results, nothing_left, raw, timed,
    under_attack,
};

/// Within this the daemon has to end.
const SHUTDOWN: &str = "shutdown_timeout = \"3s\"";

/// Waits for its end, which must be in order, in time, and leave nothing behind.
async fn ends(mut daemon: Daemon) {
    let (code, took) = timed(daemon.ended()).await;
    assert_eq!(code, Some(0), "{}", daemon.log());
    // The time-out, and what a busy machine needs besides.
    assert!(took < Duration::from_secs(8), "the end took {took:?}");
    nothing_left(&mut daemon).await;
    assert!(!daemon.socket.exists(), "the socket is left behind");
}

/// Finding 5a: SIGTERM is obeyed while schemas of very many patterns come in.
#[tokio::test]
async fn sigterm_is_obeyed_while_schemas_are_compiled() {
    for patterns in [60, 1500] {
        let daemon = Options::new().config(SHUTDOWN).start().await;
        for name in ["a", "b", "c", "d"] {
            let more = raw(&format!("schema-bomb:patterns:{patterns}"), ONCE);
            daemon.write_plugin(name, &manifest(name, &more));
        }
        daemon.reload().await;
        daemon.until("a", |health| health.generation > 0).await;
        daemon.signal(libc::SIGTERM);
        ends(daemon).await;
    }
}

/// Who is served when the daemon ends is told: calls have their outcomes, and streams end
/// with a status instead of a broken connection.
#[tokio::test]
async fn streams_end_with_a_status_when_the_daemon_ends() {
    let more = format!("concurrency = 8\n[timeouts]\nstop = \"500ms\"\n{QUICK}");
    let daemon = Options::new().rogue("x", &more).start().await;
    daemon.serving("x").await;
    let client = daemon.apart().await;
    let mut plugins = PluginsClient::new(client.channel());
    let watch = plugins.watch_plugins(WatchPluginsRequest::default()).await;
    let mut watch = watch.expect("watch").into_inner();
    let waits = (0..8).map(|id| {
        let args = r#"{"n":600000}"#.into();
        let call = CallRequest { plugin: "x".into(), tool: "wait".into(), args, ..<_>::default() };
        CallsRequest { id, frame: Some(calls_request::Frame::Call(call)) }
    });
    let waits = tokio_stream::iter(waits).chain(tokio_stream::pending());
    let mut answers = client.tools().calls(waits).await.expect("calls").into_inner();
    daemon.until("x", |health| health.in_flight == 8).await;
    let mut half = Http::unix(&daemon.socket).await.expect("connect");
    let url = "/v1/plugins/good/tools/ping/run";
    half.head("POST", url, "application/json", 1000).await.expect("send");
    half.write(b"{").await.expect("send");
    daemon.signal(libc::SIGTERM);
    // Whoever comes now is told why not, and when to come again.
    eventually("calls are refused", || async {
        let call = CallRequest { plugin: "good".into(), tool: "ping".into(), ..<_>::default() };
        let refused = client.tools().call(call).await.err()?;
        refused.message().contains("The daemon is ending").then_some(())
    })
    .await;
    for _ in 0..8 {
        let answer = answers.message().await.expect("an answer").expect("one");
        assert!(!answer.outcome.expect("outcome").ok);
    }
    let told = |end: tonic::Status| {
        assert_eq!((end.code(), end.message()), (Code::Unavailable, "the daemon has ended"));
    };
    told(answers.message().await.expect_err("the stream ends with a status"));
    told(loop {
        match watch.message().await {
            Ok(change) => drop(change.expect("a change, or a status")),
            Err(end) => break end,
        }
    });
    let told = half.reply().await.expect("an answer");
    assert_eq!(told.status, 503);
    let told = told.json().to_string();
    assert!(told.contains("the daemon has ended"), "{told}");
    ends(daemon).await;
}

/// A systemd that does not read holds up neither requests nor reloads nor the end.
#[tokio::test]
async fn nobody_waits_for_a_systemd_that_does_not_read() {
    let daemon = Options::new().notices().config(SHUTDOWN).start().await;
    let notices = daemon.notices().expect("notices");
    let client = daemon.apart().await;
    for n in 0..3 {
        assert!(notices.fill().expect("the socket") > 0 || n > 0);
        // That is said, and so is each change of the status.
        daemon.signal(libc::SIGHUP);
        daemon.write_plugin(&format!("late-{n}"), &manifest(&format!("late-{n}"), ""));
        for _ in 0..20 {
            let asked = client.health("good");
            let (_, took) = timed(tokio::time::timeout(Duration::from_secs(5), asked)).await;
            assert!(took < Duration::from_secs(1), "health took {took:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let (code, _, error) = daemon.cli(&["reload"]).await;
        assert_eq!(code, 0, "{error}");
    }
    notices.fill().expect("the socket");
    daemon.signal(libc::SIGTERM);
    ends(daemon).await;
}

/// Findings 6 and 9: SIGTERM does not wait for clients that say nothing, not all,
/// or do not read.
#[tokio::test]
async fn sigterm_does_not_wait_for_clients() {
    let more = format!("concurrency = 4\nqueue = {{ size = 100, timeout = \"60s\" }}\n{QUICK}");
    let daemon =
        Options::new().port().config(SHUTDOWN).config(BUFFERED).rogue("x", &more).start().await;
    daemon.serving("x").await;
    let address = daemon.address().await;
    let mut silent = Vec::new();
    for n in 0..200 {
        let mut http = Http::tcp(&address).await.expect("connect");
        let url = "/v1/plugins/good/tools/ping/run";
        match n % 3 {
            0 => {}
            1 => http.write(b"GET / HTTP/1.1\r\n").await.expect("send"),
            _ => {
                http.head("POST", url, "image/jpeg", 1_000_000).await.expect("send");
                http.write(&[0; 4096]).await.expect("send");
            }
        }
        silent.push(http);
    }
    let client = daemon.apart().await;
    let requests = large_results(100);
    let answers = client.tools().calls(requests).await.expect("calls");
    daemon.until("x", |health| health.success_count > 0).await;
    daemon.signal(libc::SIGTERM);
    ends(daemon).await;
    drop((answers, silent));
}

/// An answer that is given while the daemon ends says that its connection ends, too: the
/// next request would be lost in it.
#[tokio::test]
async fn connections_are_told_that_they_end() {
    let stop = "args = [\"--hang-in-shutdown\"]\n[timeouts]\nstop = \"3s\"";
    let daemon = Options::new().port().rogue("x", stop).start().await;
    daemon.serving("x").await;
    let address = daemon.address().await;
    let ask = async |path: &str| {
        let mut http = Http::tcp(&address).await.expect("connect");
        let reply = http.get(path).await.expect("answer");
        (reply.head.contains("connection: close"), http)
    };
    let (closes, mut kept) = ask("/healthz").await;
    assert!(!closes);
    daemon.signal(libc::SIGTERM);
    eventually("answers say that their connection ends", || async {
        ask("/v1/plugins").await.0.then_some(())
    })
    .await;
    let last = kept.get("/healthz").await.expect("answer");
    assert!(last.head.contains("connection: close"), "{}", last.head);
    assert!(kept.get("/healthz").await.is_err());
    ends(daemon).await;
}

/// Whoever reads an answer when the daemon ends gets all of it, and whoever waits for one
/// gets an answer, too, though its plugin does not end in time.
#[tokio::test]
async fn answers_that_are_read_are_sent_to_their_end() {
    let slow = format!("[timeouts]\nstop = \"60s\"\n{QUICK}");
    let options = Options::new().port().config("shutdown_timeout = \"8s\"");
    let daemon = options.rogue("x", QUICK).rogue("slow", &slow).start().await;
    daemon.serving("x").await;
    daemon.serving("slow").await;
    let address = daemon.address().await;
    let mut readers = Vec::new();
    for mut http in
        [Http::unix(&daemon.socket).await.expect("unix"), Http::tcp(&address).await.expect("tcp")]
    {
        let args = br#"{"args":{"n":20}}"#;
        let url = "/v1/plugins/x/tools/huge/run";
        http.head("POST", url, "application/json", args.len()).await.expect("send");
        http.write(args).await.expect("send");
        let head = http.answer_head().await.expect("an answer");
        let size = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let size: u64 = size.and_then(|size| size.parse().ok()).expect("its size");
        assert!(size > 20 * MIB, "{head}");
        readers.push(tokio::spawn(async move {
            let mut read = 0;
            while read < size {
                match http.drain(Duration::from_millis(1)).await {
                    0 => break,
                    some => read += some,
                }
                tokio::time::sleep(Duration::from_millis(8)).await;
            }
            (read, size)
        }));
    }
    let mut waiting = Http::unix(&daemon.socket).await.expect("connect");
    let url = "/v1/plugins/slow/tools/wait/run";
    let waited = tokio::spawn(async move { waiting.post(url, br#"{"args":{"n":600000}}"#).await });
    daemon.until("slow", |health| health.in_flight == 1).await;
    daemon.signal(libc::SIGTERM);
    for reader in readers {
        let (read, size) = reader.await.expect("join");
        assert_eq!(read, size, "all of the answer");
    }
    let told = waited.await.expect("join").expect("an answer");
    assert!([502, 503].contains(&told.status), "{}", told.head);
    let told = told.json().to_string();
    assert!(told.contains("end of the daemon"), "{told}");
    let mut daemon = daemon;
    assert_eq!(daemon.ended().await, Some(0), "{}", daemon.log());
    nothing_left(&mut daemon).await;
}

/// A second SIGTERM ends it at once, whatever the first one waits for; its plugins
/// go with it.
#[tokio::test]
async fn a_second_sigterm_ends_it_at_once() {
    let more = "args = [\"--before\", \"ignore-term\", \"--hang-in-shutdown\"]\n\
                [timeouts]\nstop = \"60s\"";
    let mut daemon =
        Options::new().config("shutdown_timeout = \"50s\"").rogue("x", more).start().await;
    daemon.serving("x").await;
    daemon.signal(libc::SIGTERM);
    eventually("the first is heard", || async { daemon.log().contains("SIGTERM").then_some(()) })
        .await;
    daemon.signal(libc::SIGTERM);
    let (_, took) = timed(daemon.ended()).await;
    assert!(took < Duration::from_secs(5), "the end took {took:?}");
    nothing_left(&mut daemon).await;
}

/// A removed plugin that does not want to go keeps nobody from being taken in, from
/// reloading, or from ending the daemon.
#[tokio::test]
async fn a_plugin_that_stays_holds_up_no_reload() {
    let more = "args = [\"--before\", \"ignore-term\", \"--hang-in-shutdown\"]\n\
                [timeouts]\nstop = \"60s\"";
    let mut daemon = attacked(Options::new().config(SHUTDOWN).rogue("x", more)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 32 * MIB, async {
        std::fs::remove_dir_all(daemon.directory("x")).expect("remove");
        daemon.write_plugin("new", &manifest("new", ""));
        // Either this reload or one of the clock's takes them in.
        let (_, took) = timed(async { (daemon.reload().await, daemon.serving("new").await) }).await;
        assert!(took < Duration::from_secs(2), "it took {took:?}");
        assert!(daemon.list().await.plugins.iter().all(|plugin| plugin.name != "x"));
        a_while().await;
        1
    })
    .await;
    assert!(!daemon.left().is_empty());
    daemon.signal(libc::SIGTERM);
    let (_, took) = timed(daemon.ended()).await;
    assert!(took < Duration::from_secs(8), "the end took {took:?}");
    nothing_left(&mut daemon).await;
}
