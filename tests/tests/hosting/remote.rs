//! Plugins that are services somewhere else: one more plugin each, over every
//! protocol, with servers in Rust and in Python.

use std::{
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use bytes::Bytes;
use serde_json::{Value, json};
use stockade_proto::v1::{
    ApplyEffectRequest, BuildSimulationConfigRequest, EvaluateConditionRequest, PluginHealth,
    PluginState,
};
use stockade_tests::{Client, Daemon, Options, binary, environments, eventually};

use crate::actor::{ALL, answer, asking, extensions};

/// A server process; killed when dropped.
struct Server {
    child: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    listener.local_addr().expect("address").port()
}

/// The example of this language, listening.
async fn server(language: &str, protocol: &str, port: u16, secret: Option<&str>) -> Server {
    let mut command = if language == "rust" {
        let mut command = Command::new(binary("remote-server"));
        command.args([protocol, &format!("127.0.0.1:{port}")]);
        command
    } else {
        let client = environments("client");
        let example =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/python/examples/remote");
        let mut command = Command::new(client.join("bin/python"));
        command.arg(example.join(format!("{protocol}_server.py"))).arg(port.to_string());
        command.env("PYTHONPATH", path_of(&client.join("generated")));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    };
    if let Some(secret) = secret {
        command.env("SECRET", secret);
    }
    let child = command.stdin(Stdio::null()).spawn().expect("server");
    let server = Server { child, port };
    eventually("the server listens", || async {
        TcpStream::connect(("127.0.0.1", port)).is_ok().then_some(())
    })
    .await;
    server
}

fn path_of(folder: &Path) -> PathBuf {
    std::fs::canonicalize(folder).expect("generated stubs")
}

fn endpoint(protocol: &str, port: u16) -> String {
    let scheme = if protocol == "websocket" { "ws" } else { "http" };
    format!("{scheme}://127.0.0.1:{port}")
}

fn manifest(name: &str, protocol: &str, port: u16, more: &str) -> String {
    format!(
        "name = \"{name}\"\nversion = \"2.0\"\n[run.remote]\nendpoint = \"{}\"\nprotocol = \
         \"{protocol}\"\n{more}\n[permissions]\nrequest = [\"npc:read\", \
         \"behavior:extend_conditions\", \"behavior:extend_effects\", \
         \"behavior:configure_simulation\", \"event:subscribe\"]\n",
        endpoint(protocol, port)
    )
}

const ALLOWED: &str = "[remote]\nallow = [\"127.0.0.1\"]";

async fn with(plugins: &[(&str, String)], config: &str) -> Daemon {
    let mut options = Options::new().rogue("local", &asking(&ALL, "")).config(config);
    for (name, toml) in plugins {
        options = options.plugin(name, toml);
    }
    options.start().await
}

async fn evaluate(client: &Client, id: &str, context: Value) -> (bool, String, String) {
    let request = EvaluateConditionRequest {
        condition_id: id.into(),
        context: Bytes::from(context.to_string()),
        ..Default::default()
    };
    let reply = extensions(client).evaluate_condition(request).await.expect("reply").into_inner();
    (reply.result, reply.error_type, reply.reason)
}

#[tokio::test]
async fn a_remote_plugin_is_one_more_plugin_over_every_protocol() {
    let mut servers = Vec::new();
    let mut plugins = Vec::new();
    for language in ["rust", "python"] {
        for protocol in ["http", "websocket", "grpc"] {
            let server = server(language, protocol, free_port(), None).await;
            let name = format!("{language}-{protocol}");
            plugins.push((name.clone(), manifest(&name, protocol, server.port, "")));
            servers.push(server);
        }
    }
    let plugins: Vec<(&str, String)> =
        plugins.iter().map(|(name, toml)| (name.as_str(), toml.clone())).collect();
    let daemon = with(&plugins, ALLOWED).await;
    for (name, _) in &plugins {
        let health = daemon.serving(name).await;
        assert_eq!((health.kind.as_str(), health.version.as_deref()), ("remote", Some("2.0")));
        let greeted = daemon.call(name, "greet", json!({"name": "Ada"})).await;
        assert_eq!(greeted.unwrap(), "Hello, Ada!", "{name}");
        let failed = daemon.call(name, "greet", json!({"name": ""})).await;
        assert_eq!(
            (failed.failed().0, failed.error.as_str()),
            ("ValueError", "nobody has no name")
        );
        let wrong = daemon.call(name, "greet", json!({"name": 5})).await;
        assert_eq!(wrong.failed().0, "InvalidArguments", "its schema is checked here");
        let id = format!("plugin:{name}:can_access_area");
        assert!(evaluate(&daemon, &id, json!({"npc_id": 7})).await.0, "{name}");
        assert!(!evaluate(&daemon, &id, json!({"npc_id": 8})).await.0);
        assert_eq!(evaluate(&daemon, &id, json!({})).await.1, "MissingContext");
        let request = ApplyEffectRequest {
            effect_id: format!("effect:plugin:{name}:calm"),
            context: json!({"npc_id": 7, "session_id": 1}).to_string().into(),
            ..Default::default()
        };
        let applied = extensions(&daemon).apply_effect(request).await.expect("reply").into_inner();
        let applied: Value = serde_json::from_slice(&applied.result).expect("JSON");
        assert_eq!(applied, json!({"npc_id": 7, "calmed_by": 0.5}), "{name}");
    }
    let built = extensions(&daemon)
        .build_simulation_config(BuildSimulationConfigRequest::default())
        .await
        .expect("built")
        .into_inner();
    assert_eq!((&built.config[..], built.applied.len()), (&b"{\"pace\":\"slow\"}"[..], 6));
    answer(&daemon, "local", json!({"op": "emit", "key": "said", "value": 1})).await;
    for (name, _) in &plugins {
        eventually(&format!("{name} hears of it"), || async {
            let heard = daemon.call(name, "heard", json!({})).await.unwrap();
            (heard == json!(["plugin:local:said"])).then_some(())
        })
        .await;
    }
    let (_, text, _) = daemon.cli(&["metrics", "rust-http", "-o", "json"]).await;
    let metrics: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(metrics["kind"], "remote");
    assert_eq!(metrics["behavior_extensions"]["condition_evaluations"], 2);
    assert_eq!(metrics["event_handlers"]["calls"], 1);
    daemon.stop().await;
}

#[tokio::test]
async fn the_context_is_filtered_to_what_the_permissions_allow() {
    let server = server("rust", "http", free_port(), None).await;
    // What the service was shown it says in an effect's answer.
    let toml = manifest("r", "http", server.port, "context = [\"mood\"]");
    let daemon = with(&[("r", toml)], ALLOWED).await;
    daemon.serving("r").await;
    let context = json!({"npc_id": 7, "session_state": {"secret": 1}, "world_time": 1,
                         "location_id": 4, "mood": "calm", "other": 1});
    let shown = async || {
        // A tool that is not there echoes nothing: ask over the wire instead.
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let port = listener.local_addr().expect("address").port();
        let reading = std::thread::spawn(move || one_request(&listener));
        daemon.write_plugin("spy", &spy(port));
        daemon.reload().await;
        daemon.serving("spy").await;
        let _ = evaluate(&daemon, "plugin:spy:c", context.clone()).await;
        reading.join().expect("request")
    };
    let request = shown().await;
    assert_eq!(request["context"], json!({"npc_id": 7, "mood": "calm"}));
    assert_eq!(request["condition_id"], "c");
    assert!(request["timeout_ms"].as_u64() > Some(0));
    daemon.stop().await;
}

fn spy(port: u16) -> String {
    manifest("spy", "http", port, "context = [\"mood\"]\nconditions = [\"c\"]")
}

/// A server by hand: nothing is described, one condition is asked for.
fn one_request(listener: &TcpListener) -> Value {
    use std::io::{Read as _, Write as _};
    loop {
        let (mut stream, _) = listener.accept().expect("connection");
        loop {
            let mut request = Vec::new();
            let mut chunk = [0; 4096];
            let text = loop {
                let read = stream.read(&mut chunk).unwrap_or(0);
                if read == 0 {
                    break String::new();
                }
                request.extend_from_slice(&chunk[..read]);
                let text = String::from_utf8_lossy(&request).into_owned();
                let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
                let length = head
                    .lines()
                    .find_map(|line| {
                        line.to_lowercase().strip_prefix("content-length: ")?.parse().ok()
                    })
                    .unwrap_or(0);
                if body.len() >= length {
                    break text;
                }
            };
            if text.is_empty() {
                break;
            }
            let (head, body) = text.split_once("\r\n\r\n").expect("head");
            let found = head.starts_with("POST /evaluate-condition");
            let (status, reply) =
                if found { ("200 OK", "{\"result\": true}") } else { ("404 Not Found", "{}") };
            let length = reply.len();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{reply}");
            stream.write_all(answer.as_bytes()).expect("answer");
            if found {
                return serde_json::from_str(body).expect("JSON");
            }
        }
    }
}

#[tokio::test]
async fn private_addresses_are_refused_unless_the_operator_allows_them() {
    let server = server("rust", "http", free_port(), None).await;
    let named = manifest("n", "http", server.port, "").replace("127.0.0.1", "localhost");
    let mapped = manifest("m", "http", server.port, "").replace("127.0.0.1", "[::ffff:127.0.0.1]");
    let plugins = [("r", manifest("r", "http", server.port, "")), ("n", named), ("m", mapped)];
    let daemon = with(&plugins, "").await;
    for name in ["r", "n", "m"] {
        let health = daemon.until(name, |health| health.reason.is_some()).await;
        assert_eq!(health.state(), PluginState::Unavailable, "{name}");
        let reason = health.reason.expect("reason");
        assert!(
            reason.starts_with("Missing dependencies: leave to connect to ")
                && reason.contains("a private address). To fix: allow it with"),
            "{name}: {reason}"
        );
    }
    let allowed = format!("{ALLOWED}\n");
    stockade_tests::write_file(&daemon.root.join("stockade.toml"), &allowed);
    daemon.reload().await;
    daemon.serving("r").await;
    assert_eq!(daemon.call("r", "greet", json!({"name": "x"})).await.unwrap(), "Hello, x!");
    daemon.stop().await;
}

#[tokio::test]
async fn a_dead_service_is_a_clear_error_then_failed_then_well_again() {
    for protocol in ["http", "websocket", "grpc"] {
        let port = free_port();
        let first = server("rust", protocol, port, None).await;
        let toml = format!(
            "{}[restart]\nbackoff_min = \"100ms\"\nbackoff_max = \"200ms\"\n",
            manifest("r", protocol, port, "")
        );
        let daemon = with(&[("r", toml)], ALLOWED).await;
        daemon.serving("r").await;
        daemon.call("r", "greet", json!({"name": "x"})).await.unwrap();
        drop(first);
        let outcome = daemon.call("r", "greet", json!({"name": "x"})).await;
        assert_eq!(outcome.failed().0, "RemoteUnreachable", "{protocol}: {}", outcome.error);
        let (result, kind, _) =
            evaluate(&daemon, "plugin:r:can_access_area", json!({"npc_id": 7})).await;
        assert_eq!((result, kind.as_str()), (false, "RemoteUnreachable"), "{protocol}");
        for _ in 0..4 {
            daemon.call("r", "greet", json!({"name": "x"})).await;
        }
        let health = daemon
            .until("r", |health| {
                health.reason.as_ref().is_some_and(|why| why.contains("InitError"))
            })
            .await;
        let reason = health.reason.expect("reason");
        assert!(reason.starts_with("InitError: RemoteUnreachable: cannot connect"), "{reason}");
        let again = server("rust", protocol, port, None).await;
        daemon.serving("r").await;
        daemon.call("r", "greet", json!({"name": "x"})).await.unwrap();
        drop(again);
        daemon.stop().await;
    }
}

#[tokio::test]
async fn a_slow_service_is_over_within_its_time_and_a_lying_one_is_checked() {
    use std::io::{Read as _, Write as _};
    let listener = TcpListener::bind("127.0.0.1:0").expect("port");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut stream = stream;
                let mut request = [0; 4096];
                while let Ok(read) = stream.read(&mut request) {
                    let text = String::from_utf8_lossy(&request[..read]).into_owned();
                    let reply = match text.split_whitespace().nth(1).unwrap_or_default() {
                        "/describe" => "{}",
                        "/evaluate-condition" if text.contains("\"slow\"") => return park(),
                        "/evaluate-condition" => "{\"result\": \"yes\"}",
                        "/apply-effect" => "[1, 2",
                        "/run-tool" if text.contains("\"slow\"") => return park(),
                        "/run-tool" if text.contains("\"list\"") => "[1]",
                        _ => "{\"nothing\": 1}",
                    };
                    let length = reply.len();
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
                    let _ = stream.write_all((head + reply).as_bytes());
                    if read == 0 {
                        return;
                    }
                }
            });
        }
    });
    let names = "conditions = [\"slow\", \"odd\"]\neffects = [\"e\"]\ntools = [\"slow\", \"t\", \"list\"]\ntimeout_ms = 300";
    let daemon = with(&[("r", manifest("r", "http", port, names))], ALLOWED).await;
    daemon.serving("r").await;
    let (result, kind, why) = evaluate(&daemon, "plugin:r:slow", json!({})).await;
    assert_eq!((result, kind.as_str()), (false, "TimeoutError"), "{why}");
    assert!(why.contains("did not answer within 300 ms"), "{why}");
    let outcome = daemon.call("r", "slow", json!({})).await;
    assert_eq!(outcome.failed().0, "TimeoutError", "{}", outcome.error);
    let (result, kind, _) = evaluate(&daemon, "plugin:r:odd", json!({})).await;
    assert_eq!((result, kind.as_str()), (false, "InvalidResult"));
    let request =
        ApplyEffectRequest { effect_id: "effect:plugin:r:e".into(), ..Default::default() };
    let applied = extensions(&daemon).apply_effect(request).await.expect("reply").into_inner();
    assert_eq!(
        (&applied.result[..], applied.error_type.as_str()),
        (&b"null"[..], "InvalidResponse")
    );
    for tool in ["t", "list"] {
        let outcome = daemon.call("r", tool, json!({})).await;
        assert_eq!(outcome.failed().0, "InvalidResponse", "{tool}: {}", outcome.error);
    }
    daemon.stop().await;
}

fn park() {
    std::thread::sleep(std::time::Duration::from_secs(600));
}

#[tokio::test]
async fn requests_are_signed_and_held_to_their_rate() {
    for protocol in ["http", "websocket", "grpc"] {
        for language in ["rust", "python"] {
            let port = free_port();
            let _server = server(language, protocol, port, Some("key")).await;
            let plugins = [
                ("r", manifest("r", protocol, port, "")),
                ("w", manifest("w", protocol, port, "")),
            ];
            let config =
                format!("{ALLOWED}\nsecret = \"key\"\n[plugin.w.remote]\nsecret = \"other\"");
            let daemon = with(&plugins, &config).await;
            daemon.serving("r").await;
            let greeted = daemon.call("r", "greet", json!({"name": "x"})).await;
            assert_eq!(greeted.unwrap(), "Hello, x!", "{language} {protocol}");
            // HTTP says what it offers to everybody, and refuses the call; the rest
            // say not even that.
            let (kind, said) = match protocol {
                "http" => {
                    daemon.serving("w").await;
                    let outcome = daemon.call("w", "greet", json!({"name": "x"})).await;
                    (outcome.failed().0.to_owned(), outcome.error)
                }
                _ => {
                    let refused = |health: &PluginHealth| {
                        health.reason.as_ref().is_some_and(|why| why.contains("InitError"))
                    };
                    let reason = daemon.until("w", refused).await.reason.expect("reason");
                    ("InitError".to_owned(), reason)
                }
            };
            let (right_kind, right) = match protocol {
                "http" => ("RemoteError", "the signature is missing or wrong"),
                "websocket" => ("InitError", "401"),
                _ => ("InitError", "Unauthenticated: the signature is missing or wrong"),
            };
            assert_eq!(kind, right_kind, "{language} {protocol}: {said}");
            assert!(said.contains(right), "{language} {protocol}: {said}");
            // The one with the right signature is served by the same server all along.
            let greeted = daemon.call("r", "greet", json!({"name": "y"})).await;
            assert_eq!(greeted.unwrap(), "Hello, y!", "{language} {protocol}");
            daemon.stop().await;
        }
    }
    let port = free_port();
    let _server = server("rust", "http", port, None).await;
    let daemon = with(&[("r", manifest("r", "http", port, "rate = \"3/m\""))], ALLOWED).await;
    daemon.serving("r").await;
    let mut refused = 0;
    for _ in 0..6 {
        let outcome = daemon.call("r", "greet", json!({"name": "x"})).await;
        refused += i32::from(!outcome.ok && outcome.error_type == "QueueFull");
    }
    assert!(refused >= 3, "{refused}");
    daemon.stop().await;
}

#[tokio::test]
async fn the_json_form_of_a_manifest_works_too() {
    let port = free_port();
    let _server = server("rust", "http", port, None).await;
    let text = format!(
        r#"{{"kind": "remote_feature", "id": "analytics", "endpoint": "http://127.0.0.1:{port}",
            "permissions": ["npc:read", "group:behavior"], "protocol": "http"}}"#
    );
    let daemon = Options::new()
        .directory("analytics", &[("manifest.json", &text)])
        .config(ALLOWED)
        .start()
        .await;
    daemon.serving("analytics").await;
    let id = "plugin:analytics:can_access_area";
    assert!(evaluate(&daemon, id, json!({"npc_id": 7})).await.0);
    let health = daemon.health("analytics").await;
    assert_eq!(health.kind, "remote");
    daemon.stop().await;
}
