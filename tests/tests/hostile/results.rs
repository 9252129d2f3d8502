//! Results and arguments that cost more than their size: attachments named many
//! times, large JSON that is refused, attachments without end.

use std::time::Duration;

use serde_json::json;
use stockade_tests::{Http, Options, eventually, resident};

use crate::scene::{MIB, QUICK, attacked, raw, under_attack};

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
