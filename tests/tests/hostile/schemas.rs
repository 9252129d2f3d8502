//! Schemas that take memory or time to compile or to apply (finding 5).

use std::time::Duration;

use serde_json::json;
use stockade_proto::v1::{
    FromServer, PluginState, ProviderSpec, RegisterProviders, ToServer, from_server,
    hosting_client::HostingClient, to_server,
};
use stockade_tests::{Daemon, Options, eventually, manifest};

use crate::scene::{BUFFERED, MIB, ONCE, attacked, raw, timed, under_attack};

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

/// Registers these on a stream of its own; what was registered, and what was not.
async fn provide(
    daemon: &Daemon,
    providers: Vec<ProviderSpec>,
) -> Result<(Providing, usize, usize), tonic::Status> {
    let register =
        FromServer { frame: Some(from_server::Frame::Register(RegisterProviders { providers })) };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    sender.send(register).await.expect("room");
    let mut client = HostingClient::new(daemon.channel());
    let stream = client.serve_providers(tokio_stream::wrappers::ReceiverStream::new(receiver));
    let mut stream = stream.await?.into_inner();
    let first = stream.message().await?.expect("a frame").frame;
    let Some(to_server::Frame::Registered(told)) = first else { panic!("{first:?}") };
    Ok(((sender, stream), told.names.len(), told.refused.len()))
}

type Providing = (tokio::sync::mpsc::Sender<FromServer>, tonic::Streaming<ToServer>);

/// What servers provide is kept as long as they are there: it is paid for, and there is
/// only so much of it; to list it for many at once is nobody else's matter.
#[tokio::test]
async fn what_servers_provide_is_bounded() {
    let asking = "concurrency = 4\n[permissions]\nrequest = [\"world:read\"]";
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", asking)).await;
    daemon.serving("x").await;
    let some = |n: usize, description: usize, patterns: usize| -> Vec<ProviderSpec> {
        let spec = |m| ProviderSpec {
            name: format!("p{n}-{m}"),
            permission: "world:read".into(),
            description: "d".repeat(description),
            request_schema: match patterns {
                0 => String::new(),
                _ => json!({"pattern": format!("\\p{{L}}{{2}}{n}-{m}")}).to_string(),
            },
            ..ProviderSpec::default()
        };
        (0..if patterns > 0 { patterns } else { 256 }).map(spec).collect()
    };
    under_attack(&daemon, 256 * MIB, async {
        let (mut streams, mut all, mut refused, mut not_read) = (Vec::new(), 0, 0, 0);
        for n in 0..12 {
            match provide(&daemon, some(n, 10_000, 0)).await {
                Ok((stream, registered, others)) => {
                    streams.push(stream);
                    all += registered;
                    refused += others;
                }
                Err(_) => not_read += 256,
            }
        }
        assert_eq!(all, 1024, "{refused} refused, {not_read} not read");
        let flood = json!({"kind": "providers", "of": "text", "n": 60, "bytes": 1});
        let listed = daemon.call("x", "flood", flood).await.unwrap();
        drop(streams);
        let mut streams = Vec::new();
        for n in 0..40 {
            streams.push(provide(&daemon, some(n, 1, 64)).await);
        }
        let refused = streams.iter().filter(|one| one.is_err()).count() as u64;
        assert!((1..40).contains(&refused), "{refused} of 40 were refused");
        refused + listed.as_u64().expect("a number")
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
    let (stream, registered, _) = provide(&daemon, vec![dear]).await.expect("registered");
    assert_eq!(registered, 1);
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
    drop(stream);
    daemon.stop().await;
}
