//! Health: complete, always there, the same by every way.

use std::time::Duration;

use serde_json::{Value, json};
use stockade_proto::v1::{
    PluginState, WatchPluginsRequest, plugin_change::Kind, plugins_client::PluginsClient,
};
use stockade_tests::Options;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::http::{curl, on_socket};

#[tokio::test]
async fn the_list_is_complete_sorted_and_counts() {
    let daemon = Options::new()
        .rogue("works", "")
        .rogue("lazy", "activation = \"on_demand\"")
        .rogue("broken", "[restart]\nmax_deaths = 0")
        .plugin("unread", "name = \"unread\"\nnonsense = 1\n")
        .plugin("gpu", "name = \"gpu\"\n[run]\nbinary = \"bin/rogue\"\n[requires]\ngpu = true\n")
        .start()
        .await;
    daemon.serving("works").await;
    daemon.call("broken", "exit", json!({"n": 1})).await;
    daemon.state("broken", PluginState::Failed, "EXHAUSTED").await;
    daemon.until("gpu", |health| health.state() == PluginState::Unavailable).await;
    for path in ["/v1/plugins", "/v1/plugins/"] {
        let answer = on_socket(&daemon, path, &[]).await;
        assert_eq!(answer.status, 200);
        let list = answer.json();
        let names: Vec<&str> = list["plugins"]
            .as_array()
            .expect("plugins")
            .iter()
            .map(|p| p["name"].as_str().expect("name"))
            .collect();
        assert_eq!(names, ["broken", "good", "gpu", "lazy", "unread", "works"]);
        assert_eq!(
            (&list["total"], &list["available"], &list["failed"], &list["unavailable"]),
            (&json!(6), &json!(3), &json!(1), &json!(2))
        );
        for plugin in list["plugins"].as_array().expect("plugins") {
            // Optional ones are present as null.
            for key in [
                "name",
                "state",
                "description",
                "reason",
                "version",
                "uptime_seconds",
                "last_used",
                "success_count",
                "error_count",
                "substate",
                "pid",
                "generation",
                "restarts",
                "last_exit",
                "in_flight",
                "missing",
                "kind",
                "last_execution_time_ms",
                "avg_execution_time_ms",
            ] {
                assert!(plugin.get(key).is_some(), "{key} is missing in {plugin}");
            }
        }
    }
    let one = on_socket(&daemon, "/v1/plugins/unread/health", &[]).await;
    assert_eq!(one.status, 200);
    let reason = one.json()["reason"].as_str().expect("reason").to_owned();
    assert!(reason.starts_with("Manifest error: plugin.toml"), "{reason}");
    assert!(
        reason.contains("unknown key `nonsense`") && reason.contains("`[run]` is missing"),
        "{reason}"
    );
    let none = on_socket(&daemon, "/v1/plugins/nobody/health", &[]).await;
    assert_eq!((none.status, none.json()), (404, json!({"detail": "Plugin 'nobody' not found"})));
    let works = on_socket(&daemon, "/v1/plugins/works/health", &[]).await.json();
    assert_eq!(works["state"], "INITIALIZED");
    assert!(works["uptime_seconds"].as_f64().expect("up") > 0.0);
    assert_eq!(works["last_used"], Value::Null);
    let tools = on_socket(&daemon, "/v1/plugins/works/tools", &[]).await.json();
    assert!(tools["tools"].as_array().expect("tools").iter().any(|tool| tool["name"] == "echo"));
    let manifest = on_socket(&daemon, "/v1/plugins/works/manifest", &[]).await.json();
    assert_eq!((&manifest["name"], &manifest["version"]), (&json!("works"), &json!("1.2.3")));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(on_socket(&daemon, path, &[]).await.status, 200);
    }
    assert_eq!(on_socket(&daemon, "/nothing", &[]).await.status, 404);
    // A call starts the lazy one.
    assert_eq!(daemon.health("lazy").await.substate, "ON_DEMAND");
    daemon.call("lazy", "pid", json!({})).await.unwrap();
    assert_eq!(daemon.health("lazy").await.state(), PluginState::Initialized);
    daemon.stop().await;
}

#[tokio::test]
async fn changes_are_streamed() {
    let daemon = Options::new().rogue("rogue", "").start().await;
    daemon.serving("rogue").await;
    let mut client = PluginsClient::new(daemon.channel());
    let request = WatchPluginsRequest { names: vec!["rogue".into()] };
    let mut changes = client.watch_plugins(request).await.expect("watch").into_inner();
    let first = changes.message().await.expect("message").expect("first");
    assert_eq!((first.kind(), first.health.expect("health").generation), (Kind::Present, 1));
    daemon.call("rogue", "exit", json!({"n": 1})).await;
    let told = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let change = changes.message().await.expect("message").expect("change");
            let health = change.health.expect("health");
            if health.generation == 2 && health.state() == PluginState::Initialized {
                return health;
            }
        }
    });
    let health = told.await.expect("the restart is told");
    assert_eq!(health.last_exit.expect("exit").cause, "exit_code");
    std::fs::remove_dir_all(daemon.directory("rogue")).expect("remove");
    loop {
        let change = changes.message().await.expect("message").expect("change");
        if change.kind() == Kind::Removed {
            break;
        }
    }
    daemon.stop().await;
}

#[tokio::test]
async fn grpc_health_answers_for_plugins_and_the_daemon() {
    let daemon =
        Options::new().rogue("rogue", "").rogue("lazy", "activation = \"on_demand\"").start().await;
    daemon.serving("rogue").await;
    let mut client = HealthClient::new(daemon.channel());
    let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for name in ["", "rogue", "lazy", "good"] {
        let reply = client.check(request(name)).await.expect("check").into_inner();
        assert_eq!(reply.status(), ServingStatus::Serving, "{name:?}");
    }
    let unknown = client.check(request("nobody")).await.expect_err("unknown");
    assert_eq!(unknown.code(), tonic::Code::NotFound);
    let mut watch = client.watch(request("rogue")).await.expect("watch").into_inner();
    let mut next = async || watch.message().await.expect("message").expect("status").status();
    assert_eq!(next().await, ServingStatus::Serving);
    daemon.admin().stop_plugin(daemon.action("rogue")).await.expect("stop");
    assert_eq!(next().await, ServingStatus::NotServing);
    daemon.admin().start_plugin(daemon.action("rogue")).await.expect("start");
    assert_eq!(next().await, ServingStatus::Serving);
    daemon.stop().await;
}

#[tokio::test]
async fn reflection_needs_no_proto_files() {
    let daemon = Options::new().port().start().await;
    // Both versions are there: asked as gRPC, the answer is no "unimplemented".
    let url = format!("http://{}", daemon.address().await);
    for version in ["v1", "v1alpha"] {
        let path = format!("{url}/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        // An empty request stream: OK and nothing.
        let answer = curl(&[
            &path,
            "--http2-prior-knowledge",
            "-X",
            "POST",
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "--data-binary",
            "",
        ])
        .await;
        assert_eq!(answer.status, 200);
        assert!(!answer.head.contains("grpc-status: 12"), "{}", answer.head);
    }
    daemon.stop().await;
}
