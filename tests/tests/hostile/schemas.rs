//! Schemas that take memory or time to compile or to apply (finding 5).

use std::time::Duration;

use serde_json::json;
use stockade_proto::v1::{
    FromServer, PluginState, ProviderSpec, RegisterProviders, from_server,
    hosting_client::HostingClient, to_server,
};
use stockade_tests::{Daemon, Options, eventually, manifest};

use crate::scene::{MIB, ONCE, attacked, raw, timed, under_attack};

/// Writes a plugin with this bomb and waits until it is refused; the reason.
async fn refused(daemon: &Daemon, name: &str, bomb: &str) -> String {
    let mode = format!("schema-bomb:{bomb}");
    daemon.write_plugin(name, &manifest(name, &raw(&mode, ONCE)));
    let (reloaded, took) = timed(daemon.reload()).await;
    assert!(took < Duration::from_secs(5), "the reload took {took:?}");
    assert!(reloaded.problems.is_empty(), "{reloaded:?}");
    let health = daemon.until(name, |health| health.state() == PluginState::Failed).await;
    health.reason.expect("reason")
}

/// Finding 5a: 1,500 regular expressions of megabytes each, at the start. They
/// keep nobody from starting, from reloading, or from asking.
#[tokio::test]
async fn regular_expressions_without_end_are_refused() {
    let daemon = attacked(Options::new()).await;
    under_attack(&daemon, 64 * MIB, async {
        let reason = refused(&daemon, "x", "patterns:1500").await;
        assert!(reason.contains("schema") || reason.contains("pattern"), "{reason}");
        // As many as are allowed, each of them too large.
        let reason = refused(&daemon, "y", "patterns:60").await;
        assert!(reason.contains("schema") || reason.contains("pattern"), "{reason}");
        2
    })
    .await;
    daemon.stop().await;
}

/// Finding 5a: a hang-up is answered while schemas are refused.
#[tokio::test]
async fn a_hang_up_is_obeyed_while_schemas_are_refused() {
    let daemon = attacked(Options::new()).await;
    under_attack(&daemon, 64 * MIB, async {
        for name in ["a", "b", "c", "d"] {
            let more = raw("schema-bomb:patterns:1500", ONCE);
            daemon.write_plugin(name, &manifest(name, &more));
        }
        let broken = "max_starting = \"many\"\n";
        std::fs::write(daemon.root.join("stockade.toml"), broken).expect("stockade.toml");
        daemon.signal(libc::SIGHUP);
        let told = eventually("SIGHUP is obeyed", || async {
            daemon.log().contains("configuration not taken").then_some(())
        });
        let ((), took) = timed(told).await;
        assert!(took < Duration::from_secs(5), "it took {took:?}");
        for name in ["a", "b", "c", "d"] {
            daemon.until(name, |health| health.state() == PluginState::Failed).await;
        }
        4
    })
    .await;
    daemon.stop().await;
}

/// Finding 5b: each definition refers to the next one twice.
#[tokio::test]
async fn references_that_double_are_refused() {
    let daemon = attacked(Options::new()).await;
    under_attack(&daemon, 64 * MIB, async {
        for (name, levels) in [("x", 20), ("y", 26), ("z", 31)] {
            let reason = refused(&daemon, name, &format!("doubling:{levels}")).await;
            assert!(reason.contains("schema"), "{reason}");
        }
        3
    })
    .await;
    daemon.stop().await;
}

/// Finding 5c: chains of references that would overflow the stack, small enough
/// for the limit of schemas and beyond it.
#[tokio::test]
async fn references_without_end_are_refused() {
    let daemon = attacked(Options::new()).await;
    under_attack(&daemon, 128 * MIB, async {
        let reason = refused(&daemon, "x", "chain:3000").await;
        assert!(reason.contains("schema"), "{reason}");
        refused(&daemon, "y", "chain:15000").await;
        refused(&daemon, "z", "chain:300000").await;
        3
    })
    .await;
    daemon.stop().await;
}

/// A provider whose schema is permitted and dear, asked for much, holds up only those
/// who ask.
#[tokio::test]
async fn a_dear_provider_holds_up_nobody_else() {
    let asking = "concurrency = 4\n[permissions]\nrequest = [\"world:read\", \"provider:dear\"]";
    let daemon = attacked(Options::new().rogue("x", asking)).await;
    daemon.serving("x").await;
    let any: Vec<_> = (0..200).map(|n| json!({"const": format!("{n}")})).collect();
    let dear = ProviderSpec {
        name: "dear".into(),
        permission: "provider:dear".into(),
        request_schema: json!({"items": {"anyOf": any}}).to_string(),
        ..ProviderSpec::default()
    };
    let register = FromServer {
        frame: Some(from_server::Frame::Register(RegisterProviders { providers: vec![dear] })),
    };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(register).await.expect("room");
    let stream = HostingClient::new(daemon.channel())
        .serve_providers(tokio_stream::wrappers::ReceiverStream::new(receiver))
        .await;
    let mut stream = stream.expect("stream").into_inner();
    let first = stream.message().await.expect("frame").expect("registered");
    assert!(
        matches!(first.frame, Some(to_server::Frame::Registered(told)) if told.names == ["dear"])
    );
    under_attack(&daemon, 256 * MIB, async {
        let many = vec![1; 300_000];
        let ask = json!({"op": "provider", "key": "dear", "value": many, "mode": "raise"});
        let mut refused = 0;
        for _ in 0..2 {
            let asked = (0..4).map(|_| daemon.call("x", "host", ask.clone()));
            for outcome in futures_util::future::join_all(asked).await {
                assert!(!outcome.ok, "none of it fits");
                refused += 1;
            }
        }
        refused
    })
    .await;
    drop(sender);
    daemon.stop().await;
}
