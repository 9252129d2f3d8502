//! Results and arguments that cost more than their size: attachments named many
//! times, large JSON that is refused, attachments without end.

use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::json;
use stockade_proto::v1::{
    EmitEventRequest, PluginHealth, WatchPluginEventsRequest, hosting_client::HostingClient,
};
use stockade_tests::{Http, Options, eventually, resident};
use tokio::net::UnixStream;
use tokio_stream::StreamExt as _;
use tonic::transport::Endpoint;

use crate::scene::{BUFFERED, MIB, QUICK, a_while, attacked, large_results, raw, under_attack};

/// Finding 1: a result that names its attachment of 8 MiB 150 times. Whether the
/// answer is refused or streamed: it is held once.
#[tokio::test]
async fn an_attachment_that_is_named_many_times_is_held_once() {
    let daemon = attacked(Options::new().port().rogue("x", &raw("references:150", QUICK))).await;
    daemon.serving("x").await;
    let address = daemon.address().await;
    under_attack(&daemon, 128 * MIB, async {
        let mut port = Http::tcp(&address).await.expect("connect");
        port.head("POST", "/v1/plugins/x/tools/t/run", "application/json", 2).await.expect("send");
        port.write(b"{}").await.expect("send");
        let head = port.answer_head().await.expect("an answer");
        assert!(head.starts_with("http/1.1 "), "{head}");
        1 + port.drain(Duration::from_secs(5)).await
    })
    .await;
    daemon.stop().await;
}

/// Where attachments stand in a result is not kept, however often that is.
#[tokio::test]
async fn a_million_references_cost_no_more_than_their_text() {
    let mode = raw("tiny-references:1000000", QUICK);
    let daemon = attacked(Options::new().port().rogue("x", &mode)).await;
    daemon.serving("x").await;
    let address = daemon.address().await;
    under_attack(&daemon, 80 * MIB, async {
        let mut port = Http::tcp(&address).await.expect("connect");
        port.head("POST", "/v1/plugins/x/tools/t/run", "application/json", 2).await.expect("send");
        port.write(b"{}").await.expect("send");
        let head = port.answer_head().await.expect("an answer");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        1 + port.drain(Duration::from_secs(20)).await
    })
    .await;
    daemon.stop().await;
}

/// `[run]` of a plugin whose calls may wait.
fn patient() -> String {
    format!("concurrency = 8\nqueue = {{ size = 1000, timeout = \"60s\" }}\n{QUICK}")
}

/// A plugin that calls for large results of another one and reads none: they are paid for
/// by who asked, and whoever asks after it has the other plugin's whole share.
#[tokio::test]
async fn results_that_a_plugin_asks_for_and_does_not_read_are_bounded() {
    let asking = "[permissions]\nrequest = [\"plugin:call\"]";
    let options = Options::new().config(BUFFERED);
    let options = options.rogue("x", &raw("deaf", asking)).rogue("large", &patient());
    let daemon = attacked(options).await;
    daemon.serving("x").await;
    daemon.serving("large").await;
    under_attack(&daemon, 192 * MIB, async {
        assert!(daemon.call("x", "t", json!({})).await.ok);
        // Those that are refused, too, have been made.
        let made = |health: &PluginHealth| health.success_count == 60 && health.in_flight == 0;
        daemon.until("large", made).await;
        60
    })
    .await;
    let next = daemon.call("large", "huge", json!({"n": 10})).await;
    assert!(next.ok, "{}: {}", next.error_type, next.error);
    daemon.stop().await;
}

/// A client that reads none of its results uses up its own share, and nothing of the
/// plugin's: the next one is served.
#[tokio::test]
async fn results_that_nobody_takes_are_their_clients() {
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", &patient())).await;
    daemon.serving("x").await;
    under_attack(&daemon, 128 * MIB, async {
        let client = daemon.apart().await;
        let requests = large_results(40).chain(tokio_stream::pending());
        let unread = client.tools().calls(requests).await.expect("calls").into_inner();
        daemon.until("x", |health| health.success_count == 40 && health.in_flight == 0).await;
        let other = daemon.call("x", "huge", json!({"n": 10})).await;
        assert!(other.ok, "{}: {}", other.error_type, other.error);
        // Who reads late is told what was dropped, and why.
        let mut unread = std::pin::pin!(unread);
        let mut dropped = 0;
        for _ in 0..40 {
            let answer = unread.message().await.expect("an answer").expect("one");
            let outcome = answer.outcome.expect("outcome");
            dropped += u64::from(!outcome.ok);
            assert!(
                outcome.ok || outcome.error.contains("wait for this connection"),
                "{outcome:?}"
            );
        }
        dropped
    })
    .await;
    daemon.stop().await;
}

/// A server that follows events over streams of which it reads nothing: what waits for it
/// is paid for until it is taken, wherever it waits.
#[tokio::test]
async fn events_that_a_server_does_not_take_are_bounded() {
    let daemon = attacked(Options::new().config("max_buffered = \"64MiB\"")).await;
    let socket = daemon.socket.clone();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // Nothing of any answer but its head may be sent.
    let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(0);
    let channel = endpoint.connect_with_connector(connector).await.expect("connect");
    let payload = Bytes::from(format!("\"{}\"", "x".repeat(1_000_000)));
    under_attack(&daemon, 128 * MIB, async {
        let mut following = Vec::new();
        for n in 0..200 {
            let mut server = HostingClient::new(channel.clone());
            let request = WatchPluginEventsRequest { patterns: vec![format!("p{n}")] };
            following.push(server.watch_plugin_events(request).await.expect("watch"));
        }
        let mut server = HostingClient::new(daemon.client().channel());
        let mut emitted = 0;
        // The first one is taken out of the queue, to wait for the connection.
        for payload in [Bytes::from_static(b"1"), payload.clone(), payload] {
            for n in 0..200 {
                let (name, payload) = (format!("p{n}"), payload.clone());
                let event = EmitEventRequest { name, payload, ..EmitEventRequest::default() };
                let event = server.emit_event(event).await.expect("emitted").into_inner();
                emitted += u64::from(event.subscribers);
            }
        }
        assert_eq!(emitted, 600, "all of them follow");
        a_while().await;
        emitted
    })
    .await;
    daemon.stop().await;
}

/// A content type that would not be taken of a part is not taken of a body either.
#[tokio::test]
async fn a_long_content_type_is_refused_everywhere() {
    let daemon = Options::new().port().start().await;
    let mut port = Http::tcp(&daemon.address().await).await.expect("connect");
    let kind = format!("image/{}", "x".repeat(300));
    port.head("POST", "/v1/plugins/good/tools/echo/run", &kind, 3).await.expect("send");
    port.write(b"abc").await.expect("send");
    let reply = port.reply().await.expect("an answer");
    assert_eq!(reply.status, 422, "{}", reply.head);
    assert!(reply.json()["detail"].as_str().is_some_and(|text| text.contains("256 are allowed")));
    daemon.stop().await;
}

/// Finding 1, the other half: text that merely looks like a reference stays what
/// it is; the attachment of that name is filled in where the plugin put it.
#[tokio::test]
async fn text_that_looks_like_a_reference_stays_text() {
    let daemon = Options::new().port().start().await;
    let mut port = Http::tcp(&daemon.address().await).await.expect("connect");
    let url = "/v1/plugins/good/tools/echo/run";
    for text in ["attachment:blob", "attachment:nothing", "attachment:"] {
        let args = json!({"args": {"text": text, "blob": "AQID"}});
        let reply = port.post(url, args.to_string().as_bytes()).await.expect("an answer");
        assert_eq!(reply.status, 200);
        assert_eq!(reply.json()["result"], json!({"text": text, "blob": "AQID"}));
    }
    daemon.stop().await;
}

/// Finding 10: arguments of 5 MB, each element of which the schema refuses.
#[tokio::test]
async fn large_json_that_is_refused_costs_little() {
    let daemon = attacked(Options::new().port().rogue("x", "")).await;
    daemon.serving("x").await;
    let address = daemon.address().await;
    let body = format!("{{\"args\":{{\"calls\":[{}0]}}}}", "0,".repeat(2_500_000));
    under_attack(&daemon, 384 * MIB, async {
        let mut refused = 0;
        for _ in 0..3 {
            let mut port = Http::tcp(&address).await.expect("connect");
            let url = "/v1/plugins/x/tools/attack/run";
            let reply = port.post(url, body.as_bytes()).await.expect("an answer");
            assert!([413, 422].contains(&reply.status), "{}", reply.head);
            assert!(reply.size < 16 << 10, "the refusal has {} bytes", reply.size);
            refused += 1;
        }
        refused
    })
    .await;
    daemon.stop().await;
}

/// Finding 10: of results that are refused nothing stays.
#[tokio::test]
async fn refused_results_are_not_kept() {
    let daemon = attacked(Options::new().rogue("x", &raw("refused-result:30", QUICK))).await;
    daemon.serving("x").await;
    let before = resident(daemon.pid());
    under_attack(&daemon, 256 * MIB, async {
        for _ in 0..10 {
            let outcome = daemon.call("x", "t", json!({})).await;
            assert_eq!(outcome.failed().0, "InvalidResult");
            assert!(outcome.error.len() <= 8 << 10, "{} bytes", outcome.error.len());
        }
        10
    })
    .await;
    eventually("the results are gone", || async {
        (resident(daemon.pid()) < before + 128 * MIB).then_some(())
    })
    .await;
    assert_eq!(daemon.serving("x").await.generation, 1, "it was not killed for it");
    daemon.stop().await;
}

/// An answer of millions of attachments, each of no bytes.
#[tokio::test]
async fn attachments_are_counted_before_they_are_kept() {
    let more = format!("{QUICK}\n[limits]\nmemory = \"2GiB\"");
    let more = raw("many-attachments:4000000", &more);
    let daemon = attacked(Options::new().rogue("x", &more)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 256 * MIB, async {
        let outcome = daemon.call("x", "t", json!({})).await;
        assert_eq!(outcome.failed(), ("WorkerCrashed", "protocol_error"), "{}", outcome.error);
        1
    })
    .await;
    daemon.serving("x").await;
    daemon.stop().await;
}
