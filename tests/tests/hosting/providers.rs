//! What servers and other plugins provide, each behind a permission.

use bytes::Bytes;
use serde_json::{Value, json};
use stockade_proto::v1::{
    FromServer, ProviderAnswer, ProviderSpec, RegisterProviders, ToServer, from_server, to_server,
};
use stockade_tests::{Client, Options, eventually};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::actor::{answer, asking, hosting, refused};

fn spec(name: &str, permission: &str) -> ProviderSpec {
    ProviderSpec {
        name: name.into(),
        permission: permission.into(),
        request_schema: r#"{"type":"object","required":["at"]}"#.into(),
        response_schema: r#"{"type":"object"}"#.into(),
        ..ProviderSpec::default()
    }
}

/// A server process: registers, then answers by `reply`.
async fn serve(
    client: &Client,
    providers: Vec<ProviderSpec>,
    reply: impl Fn(&to_server::Frame) -> Option<ProviderAnswer> + Send + 'static,
) -> (Vec<String>, tokio::task::JoinHandle<()>) {
    let (sender, receiver) = mpsc::channel(16);
    let register = from_server::Frame::Register(RegisterProviders { providers });
    sender.send(FromServer { frame: Some(register) }).await.expect("open");
    let stream = hosting(client).serve_providers(ReceiverStream::new(receiver)).await;
    let mut stream = stream.expect("serve").into_inner();
    let Some(ToServer { frame: Some(to_server::Frame::Registered(registered)) }) =
        stream.message().await.expect("stream")
    else {
        panic!("not registered");
    };
    let task = tokio::spawn(async move {
        while let Ok(Some(ToServer { frame: Some(frame) })) = stream.message().await {
            if let Some(answer) = reply(&frame) {
                let frame = from_server::Frame::Answer(answer);
                let _ = sender.send(FromServer { frame: Some(frame) }).await;
            }
        }
    });
    (registered.refused, task)
}

fn ask(name: &str, value: Value) -> Value {
    json!({"op": "provider", "key": name, "value": value, "mode": "raise"})
}

#[tokio::test]
async fn a_server_answers_plugins_that_may_ask() {
    let daemon = Options::new()
        .rogue("may", &asking(&["world:read", "provider:weather"], ""))
        .rogue("maynot", "")
        .start()
        .await;
    daemon.serving("may").await;
    daemon.serving("maynot").await;
    let gone = refused(&daemon, "may", ask("world.get", json!({"at": 1}))).await;
    assert_eq!(gone.0, "NotFound", "{}", gone.1);
    let offered = vec![
        spec("world.get", "world:read"),
        spec("weather", "provider:weather"),
        spec("plugin:may:x", "world:read"),
        spec("odd", "no such"),
    ];
    let (turned_away, task) = serve(&daemon, offered, |frame| {
        let to_server::Frame::Call(call) = frame else { return None };
        let request: Value = serde_json::from_slice(&call.request).expect("JSON");
        let (response, error) = match request["at"].as_str() {
            Some("fail") => (Bytes::new(), "KeyError"),
            Some("silent") => return None,
            Some("wrong") => (Bytes::from_static(b"[1]"), ""),
            _ => (json!({"for": call.plugin, "at": request["at"]}).to_string().into(), ""),
        };
        Some(ProviderAnswer {
            id: call.id,
            response,
            error_type: error.into(),
            error: "nothing there".into(),
        })
    })
    .await;
    assert_eq!(turned_away.len(), 2, "{turned_away:?}");
    let got = answer(&daemon, "may", ask("world.get", json!({"at": [1, 2]}))).await;
    assert_eq!(got, json!({"for": "may", "at": [1, 2]}));
    answer(&daemon, "may", ask("weather", json!({"at": 1}))).await;
    let (kind, text) = refused(&daemon, "maynot", ask("weather", json!({"at": 1}))).await;
    assert_eq!(kind, "PermissionDenied");
    assert!(text.contains("'provider.weather'") && text.contains("'provider:weather'"), "{text}");
    let silent = json!({"op": "provider", "key": "weather", "value": {"at": 1}});
    assert_eq!(answer(&daemon, "maynot", silent).await, Value::Null);
    for (at, kind, part) in [
        (json!({}), "InvalidArgument", "the request is not as its schema says"),
        (json!({"at": "fail"}), "HostError", "KeyError: nothing there"),
        (json!({"at": "wrong"}), "HostError", "the response is not as its schema says"),
    ] {
        let (got, text) = refused(&daemon, "may", ask("world.get", at)).await;
        assert_eq!(got, kind, "{text}");
        assert!(text.contains(part), "{text}");
    }
    // One that does not answer costs the call its own time.
    let args = ask("world.get", json!({"at": "silent"}));
    let outcome = daemon.call_with("may", "host", args, &[], 1000).await;
    assert_eq!(outcome.failed().0, "TimeoutError");
    let listed = answer(&daemon, "maynot", json!({"op": "providers"})).await;
    assert_eq!(listed, json!([["weather", false], ["world.get", false]]));
    // Gone with its server.
    task.abort();
    eventually("the provider is gone", || async {
        let (kind, _) = refused(&daemon, "may", ask("world.get", json!({"at": "fail"}))).await;
        (kind == "NotFound").then_some(())
    })
    .await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_plugin_provides_to_others() {
    let daemon = Options::new()
        .rogue("gives", "args = [\"--extend\", \"\"]")
        .rogue("takes", &asking(&["provider:double"], ""))
        .rogue("maynot", "")
        .start()
        .await;
    for plugin in ["gives", "takes", "maynot"] {
        daemon.serving(plugin).await;
    }
    let double = |n: Value| ask("plugin:gives:double", json!({"n": n}));
    let got = answer(&daemon, "takes", double(json!(21))).await;
    assert_eq!(got, json!({"n": 42, "for": "takes"}), "who asks is told");
    assert_eq!(refused(&daemon, "takes", double(json!("x"))).await.0, "InvalidArgument");
    assert_eq!(refused(&daemon, "maynot", double(json!(1))).await.0, "PermissionDenied");
    let missing = ask("plugin:gives:nothing", json!({}));
    assert_eq!(refused(&daemon, "takes", missing).await.0, "NotFound");
    daemon.stop().await;
}

/// What a server has answered is paid for until it is passed on, and no longer.
#[tokio::test]
async fn a_server_may_answer_for_ever() {
    let options = Options::new().config("max_buffered = \"256MiB\"");
    let daemon = options.rogue("may", &asking(&["world:read"], "")).start().await;
    daemon.serving("may").await;
    let large = Bytes::from(format!("{{\"x\":\"{}\"}}", "x".repeat(1 << 20)));
    let (refused, task) = serve(&daemon, vec![spec("world.get", "world:read")], move |frame| {
        let to_server::Frame::Call(call) = frame else { return None };
        let response = large.clone();
        Some(ProviderAnswer { id: call.id, response, ..ProviderAnswer::default() })
    })
    .await;
    assert!(refused.is_empty(), "{refused:?}");
    // More than a connection's share of the budget, a quarter.
    for _ in 0..72 {
        answer(&daemon, "may", ask("world.get", json!({"at": 1}))).await;
    }
    task.abort();
    daemon.stop().await;
}

/// An answer as large as one may be costs nobody else's; what is registered late is
/// refused, and what was registered stays.
#[tokio::test]
async fn a_server_may_answer_much_and_registers_once() {
    let daemon =
        Options::new().rogue("may", &asking(&["world:read", "provider:weather"], "")).start().await;
    daemon.serving("may").await;
    let (sender, receiver) = mpsc::channel(4);
    let register = |name| {
        let providers = vec![spec(name, "provider:weather")];
        let register = from_server::Frame::Register(RegisterProviders { providers });
        FromServer { frame: Some(register) }
    };
    sender.send(register("weather")).await.expect("open");
    sender.send(register("more")).await.expect("open");
    let stream = hosting(&daemon).serve_providers(ReceiverStream::new(receiver)).await;
    let mut stream = stream.expect("serve").into_inner();
    let mut registered = Vec::new();
    for _ in 0..2 {
        match stream.message().await.expect("stream").and_then(|message| message.frame) {
            Some(to_server::Frame::Registered(one)) => registered.push((one.names, one.refused)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(registered[0], (vec!["weather".to_owned()], vec![]));
    assert!(registered[1].0.is_empty() && registered[1].1[0].contains("first frame"));
    tokio::spawn(async move {
        while let Ok(Some(ToServer { frame: Some(to_server::Frame::Call(call)) })) =
            stream.message().await
        {
            let response = format!("{{\"text\":\"{}\"}}", "x".repeat(7 << 20)).into();
            let answer = ProviderAnswer { id: call.id, response, ..ProviderAnswer::default() };
            let frame = Some(from_server::Frame::Answer(answer));
            let _ = sender.send(FromServer { frame }).await;
        }
    });
    for _ in 0..2 {
        let told = answer(&daemon, "may", ask("weather", json!({"at": 1}))).await;
        assert_eq!(told["text"].as_str().map(str::len), Some(7 << 20));
    }
    daemon.stop().await;
}

/// Who holds no permission cannot start a plugin by asking for its provider.
#[tokio::test]
async fn who_may_nothing_wakes_nobody() {
    let daemon = Options::new()
        .rogue("none", &asking(&[], ""))
        .rogue("lazy", "activation = \"on_demand\"")
        .start()
        .await;
    daemon.serving("none").await;
    daemon.until("lazy", |health| health.substate == "ON_DEMAND").await;
    let (kind, text) = refused(&daemon, "none", ask("plugin:lazy:x", json!(1))).await;
    assert_eq!(kind, "NotFound", "{text}");
    let lazy = daemon.health("lazy").await;
    assert_eq!((lazy.substate.as_str(), lazy.generation), ("ON_DEMAND", 0), "{lazy:?}");
    daemon.stop().await;
}
