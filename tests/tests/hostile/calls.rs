//! Calls that are given up, and calls whose reader is slow.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use stockade_proto::v1::{
    CallRequest, CallsRequest, PluginState, call_update::Update, calls_request,
};
use stockade_tests::{Client, Clock, Http, Options, eventually};
use tokio_stream::StreamExt as _;

use crate::scene::{BUFFERED, MIB, QUICK, attacked, timed, under_attack};

fn wait(plugin: &str) -> CallRequest {
    CallRequest {
        plugin: plugin.to_owned(),
        tool: "wait".into(),
        args: r#"{"n":600000}"#.into(),
        ..CallRequest::default()
    }
}

/// Occupies the one slot of a plugin; until it is aborted.
async fn occupied(client: &Client, plugin: &str) -> tokio::task::JoinHandle<()> {
    let (mut tools, request) = (client.tools(), wait(plugin));
    let call = tokio::spawn(async move { drop(tools.call(request).await) });
    client.until(plugin, |health| health.in_flight == 1).await;
    call
}

/// A call that waits is gone at once when its client is, by gRPC and by HTTP: its
/// place in the queue is free within a second.
#[tokio::test]
async fn a_client_that_hangs_up_leaves_the_queue_at_once() {
    let more = format!("queue = {{ size = 50, timeout = \"600s\" }}\n{QUICK}");
    let daemon = Options::new().port().rogue("x", &more).start().await;
    daemon.serving("x").await;
    let address = daemon.address().await;
    let holder = occupied(&daemon, "x").await;
    // What a question takes on this machine, now.
    let clock = Clock::start(&daemon, None);
    clock.running().await;
    let control = clock.report().await;
    let bound = Duration::from_secs(1).max(4 * control.health_worst);

    let client = daemon.apart().await;
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let mut tools = client.tools();
            tokio::spawn(async move { drop(tools.call(wait("x")).await) })
        })
        .collect();
    daemon.until("x", |health| health.queued == 20).await;
    for call in waiting {
        call.abort();
    }
    let (_, took) = timed(daemon.until("x", |health| health.queued == 0)).await;
    assert!(took <= bound, "gRPC: {took:?}");

    // Also when something has come behind the request.
    for behind in ["", "\r\n", "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"] {
        let mut waiting = Vec::new();
        for _ in 0..20 {
            let mut http = Http::tcp(&address).await.expect("connect");
            let body = br#"{"args":{"n":600000}}"#;
            let url = "/v1/plugins/x/tools/wait/run";
            http.head("POST", url, "application/json", body.len()).await.expect("send");
            http.write(&[body, behind.as_bytes()].concat()).await.expect("send");
            waiting.push(http);
        }
        daemon.until("x", |health| health.queued == 20).await;
        drop(waiting);
        let (_, took) = timed(daemon.until("x", |health| health.queued == 0)).await;
        assert!(took <= bound, "HTTP, {behind:?} behind: {took:?}");
    }
    // The call that ran is cancelled with its client, too.
    assert_eq!(daemon.health("x").await.state(), PluginState::Running);
    holder.abort();
    daemon.until("x", |health| health.in_flight == 0).await;
    assert_eq!(daemon.call("x", "cancelled", json!({})).await.unwrap(), true);
    assert_eq!(daemon.health("x").await.restarts, 0);
    daemon.stop().await;
}

/// What a plugin calls on behalf of a call is cancelled with it.
#[tokio::test]
async fn calls_within_a_call_are_cancelled_with_it() {
    let asking = format!("{QUICK}\n[permissions]\nrequest = [\"plugin:call\"]");
    let daemon = Options::new().rogue("a", &asking).rogue("b", QUICK).start().await;
    daemon.serving("a").await;
    daemon.serving("b").await;
    let within = json!({"op": "call", "key": "b.wait", "value": {"n": 600_000}, "mode": "raise"});
    let request = CallRequest {
        plugin: "a".into(),
        tool: "host".into(),
        args: within.to_string().into(),
        ..CallRequest::default()
    };
    let mut tools = daemon.tools();
    let call = tokio::spawn(async move { drop(tools.call(request).await) });
    daemon.until("b", |health| health.in_flight == 1).await;
    call.abort();
    daemon.until("b", |health| health.in_flight == 0).await;
    assert_eq!(daemon.call("b", "cancelled", json!({})).await.unwrap(), true);
    daemon.until("a", |health| health.in_flight == 0).await;
    for plugin in ["a", "b"] {
        assert_eq!(daemon.health(plugin).await.restarts, 0, "{plugin}");
    }
    daemon.stop().await;
}

/// A client that reads its stream more slowly than the tool may take is slow
/// itself: nothing is cancelled and nobody killed for it.
#[tokio::test]
async fn a_slow_reader_is_not_a_slow_tool() {
    let more = format!("[timeouts]\ncall = \"3s\"\ncancel_grace = \"200ms\"\n{QUICK}");
    let daemon = Options::new().bystander().rogue("x", &more).start().await;
    daemon.serving("x").await;
    let request = CallRequest {
        plugin: "x".into(),
        tool: "blocks".into(),
        args: r#"{"n":200,"bytes":65536}"#.into(),
        ..CallRequest::default()
    };
    let client = daemon.apart().await;
    let mut updates = client.tools().call_stream(request).await.expect("call").into_inner();
    daemon.until("x", |health| health.in_flight == 1).await;
    // Twice as long as the tool may take.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(daemon.health("x").await.in_flight, 1, "it waits for its client");
    let mut items = 0;
    let outcome = loop {
        match updates.message().await.expect("update").expect("an outcome").update {
            Some(Update::Item(item)) => {
                assert_eq!(item.value.len(), 65_538);
                items += 1;
            }
            Some(Update::Outcome(outcome)) => break outcome,
            _ => {}
        }
    };
    assert!(outcome.ok, "{}: {}", outcome.error_type, outcome.error);
    assert_eq!(items, 200);
    assert_eq!(daemon.health("x").await.restarts, 0);
    // The control: the tool itself must not take so long.
    let late = daemon.call("x", "wait", json!({"n": 60_000})).await;
    assert_eq!(late.failed(), ("TimeoutError", ""));
    eventually("it is idle again", || async {
        (daemon.health("x").await.in_flight == 0).then_some(())
    })
    .await;
    daemon.stop().await;
}

/// A client that stops reading and then goes, later than the tool might have taken: its
/// call is cancelled, and nobody is killed for it.
#[tokio::test]
async fn a_reader_that_stops_and_goes_kills_nobody() {
    let more = format!("[timeouts]\ncall = \"2s\"\ncancel_grace = \"200ms\"\n{QUICK}");
    let daemon = Options::new().bystander().rogue("x", &more).start().await;
    daemon.serving("x").await;
    let request = CallRequest {
        plugin: "x".into(),
        tool: "blocks".into(),
        args: r#"{"n":2000,"bytes":65536}"#.into(),
        ..CallRequest::default()
    };
    let client = daemon.apart().await;
    let updates = client.tools().call_stream(request).await.expect("call").into_inner();
    daemon.until("x", |health| health.in_flight == 1).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(daemon.health("x").await.in_flight, 1, "it waits for its client");
    drop(updates);
    let health = daemon.until("x", |health| health.in_flight == 0).await;
    assert_eq!((health.restarts, health.generation), (0, 1), "{health:?}");
    daemon.stop().await;
}

/// One message that is beyond its bounds ends the stream: those before it are answered,
/// and the stream says why there are no more.
#[tokio::test]
async fn a_stream_of_calls_says_why_it_ends() {
    let daemon = Options::new().alone().rogue("x", "concurrency = 4").start().await;
    daemon.serving("x").await;
    let call = |id, plugin: String, tool: &str, args: Value| CallsRequest {
        id,
        frame: Some(calls_request::Frame::Call(CallRequest {
            plugin,
            tool: tool.into(),
            args: args.to_string().into(),
            ..CallRequest::default()
        })),
    };
    let frames = [
        call(1, "x".into(), "wait", json!({"n": 300})),
        call(2, "r".repeat(100_000), "wait", json!({"n": 0})),
        call(3, "x".into(), "wait", json!({"n": 0})),
    ];
    let stream = daemon.tools().calls(tokio_stream::iter(frames)).await;
    let mut answers = stream.expect("stream").into_inner();
    let first = answers.message().await.expect("an answer").expect("one");
    assert_eq!(first.id, 1);
    assert!(first.outcome.expect("outcome").ok, "the one under way went on");
    let end = answers.message().await.expect_err("the stream says why it ends");
    assert_eq!(end.code(), tonic::Code::InvalidArgument, "{end}");
    assert!(end.message().contains("plugin has 100000 bytes"), "{end}");
    daemon.stop().await;
}

fn calls(plugin: &str, tool: &str, args: String, id: u64) -> CallsRequest {
    let call = CallRequest {
        plugin: plugin.into(),
        tool: tool.into(),
        args: args.into(),
        ..CallRequest::default()
    };
    CallsRequest { id, frame: Some(calls_request::Frame::Call(call)) }
}

/// Small calls that come right behind large ones: what is kept of them keeps no buffer
/// in which a large one came.
#[tokio::test]
async fn small_calls_keep_nothing_of_large_ones() {
    let slow = format!("concurrency = 40\n{QUICK}");
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", &slow)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 256 * MIB, async {
        let client = daemon.apart().await;
        let requests = tokio_stream::iter(0..60u64).map(|id| match id % 2 {
            0 => calls("nope", "t", format!("\"{}\"", "x".repeat(24 << 20)), id),
            _ => calls("x", "wait", r#"{"n":60000}"#.into(), id),
        });
        let (open, more) = tokio::sync::mpsc::channel(1);
        let requests = requests.chain(tokio_stream::wrappers::ReceiverStream::new(more));
        let answers = client.tools().calls(requests).await.expect("calls");
        daemon.until("x", |health| health.in_flight == 30).await;
        drop((answers, open));
        // Nobody waits for them any more.
        daemon.until("x", |health| health.in_flight == 0).await;
        30
    })
    .await;
    daemon.stop().await;
}

/// Calls that are refused, as many as come in, on many streams: each of them takes no
/// more at once than others can wait for.
#[tokio::test]
async fn streams_of_refused_calls_take_their_turn() {
    let daemon = attacked(Options::new()).await;
    under_attack(&daemon, 128 * MIB, async {
        let until = Instant::now() + Duration::from_secs(4);
        let refused = Arc::new(AtomicU64::new(0));
        let mut floods = Vec::new();
        for _ in 0..4 {
            let client = daemon.apart().await;
            let flood = || tokio::spawn(refused_calls(client.clone(), until, refused.clone()));
            floods.extend((0..16).map(|_| flood()));
        }
        for flood in floods {
            flood.await.expect("a flood");
        }
        refused.load(Ordering::Relaxed)
    })
    .await;
    daemon.stop().await;
}

/// However many streams a client has, it stands in line once: who moves much on another
/// connection is not the last of hundreds each time.
#[tokio::test]
async fn a_client_of_many_streams_stands_in_line_once() {
    let daemon = Options::new().start().await;
    daemon.serving("good").await;
    let large = || async {
        let args = json!({"text": "x".repeat(4 << 20)});
        let (outcome, took) = timed(daemon.call("good", "ping", args)).await;
        assert!(outcome.ok, "{}", outcome.error);
        took
    };
    let alone = large().await;
    let until = Instant::now() + Duration::from_secs(5);
    let client = daemon.apart().await;
    let refused = Arc::new(AtomicU64::new(0));
    let flood = || tokio::spawn(refused_calls(client.clone(), until, refused.clone()));
    let floods: Vec<_> = (0..200).map(|_| flood()).collect();
    eventually("the floods have begun", || async {
        (refused.load(Ordering::Relaxed) > 2000).then_some(())
    })
    .await;
    let beside = large().await;
    assert!(Instant::now() < until, "the floods were over");
    eprintln!("alone {alone:?}, beside 200 streams {beside:?}");
    assert!(beside < 5 * alone + Duration::from_millis(500), "{alone:?} alone, then {beside:?}");
    floods.iter().for_each(tokio::task::JoinHandle::abort);
    daemon.stop().await;
}

/// Sends a thousand at a time on one stream, reads their answers and counts them.
async fn refused_calls(client: Client, until: Instant, refused: Arc<AtomicU64>) {
    let (sender, requests) = tokio::sync::mpsc::channel(1000);
    let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
    let mut answers = client.tools().calls(requests).await.expect("calls").into_inner();
    let mut first = 0;
    while Instant::now() < until {
        for id in first..first + 1000 {
            sender.send(calls("nope", "t", "{}".into(), id)).await.expect("sent");
        }
        for _ in 0..1000 {
            let answer = answers.message().await.expect("an answer").expect("one");
            assert!(!answer.outcome.expect("outcome").ok);
            refused.fetch_add(1, Ordering::Relaxed);
        }
        first += 1000;
    }
}
