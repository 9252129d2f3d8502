//! What a Python plugin has of its host, and what it adds to it.

use serde_json::{Value, json};
use stockade_proto::v1::{
    ApplyEffectRequest, BuildSimulationConfigRequest, EvaluateConditionRequest,
    extensions_client::ExtensionsClient,
};
use stockade_tests::{Client, Daemon, Options, eventually};

const ALL: &str = r#"concurrency = 4
[restart]
max_errors = 0
[permissions]
request = ["kv:read", "kv:write", "npc:read", "npc:write", "event:emit", "event:subscribe",
  "plugin:call:good", "group:behavior", "behavior:configure_simulation", "provider:double"]
"#;

const SERVICES: &str = r#"
from stockade import Context, HostError, Init, PermissionDenied, QuotaExceeded, tool


class Plugin:
    def __init__(self, init: Init):
        self.host = init.host
        self.host.kv.set("started", init.generation)

    @tool
    def store(self, ctx: Context) -> dict:
        ctx.kv.set("a", {"n": [1, None]})
        ctx.kv.set("b", b"\x00\xff")
        ctx.kv.set("short", 1, ttl=3600)
        swapped = [ctx.kv.compare_and_set("c", None, 1), ctx.kv.compare_and_set("c", None, 2)]
        got = {
            "a": ctx.kv.get("a"), "b": list(ctx.kv.get("b")), "none": ctx.kv.get("x", "default"),
            "swapped": swapped, "keys": list(ctx.kv.list()), "started": self.host.kv.get("started"),
            "deleted": [ctx.kv.delete("c"), ctx.kv.delete("c")],
        }
        return got

    @tool
    def entity(self, ctx: Context) -> dict:
        npc = ctx.entity("npc/7")
        npc.set_flag("met", True)
        npc.update_relationship("npc/8", {"trust": 0.5})
        npc.set_component("quest", {"step": 1})
        npc.update_component("quest", {"done": False})
        before = npc.get("components.quest")
        npc.delete_component("quest")
        other = npc.in_workspace("other")
        other.set_flag("met", "there")
        return {"before": before, "after": npc.get("components.quest", "gone"),
                "flag": npc.get("flags.met"), "other": other.get("flags.met")}

    @tool
    def refused(self, ctx: Context) -> dict:
        told = {}
        try:
            ctx.kv.get("plugin:other:x")
        except PermissionDenied as error:
            told["foreign"] = str(error)
        try:
            ctx.kv.set("large", "x" * (2 << 20))
        except QuotaExceeded as error:
            told["large"] = error.kind
        try:
            ctx.kv.set("nothing", object())
        except TypeError as error:
            told["type"] = str(error)
        told["silent"] = ctx.entity("session/1").on_denied("silent").get()
        try:
            ctx.require_permission("db:read")
        except PermissionError as error:
            told["required"] = str(error)
        told["has"] = [ctx.has_permission("kv:read"), ctx.has_permission("db:read")]
        return told

    @tool
    def calls(self, ctx: Context) -> dict:
        echoed = ctx.plugin("good").call("echo", text="hi")
        result, blobs = ctx.plugin("good").call_with_attachments("echo", text="x", blob=b"bytes")
        try:
            ctx.plugin("good").call("raise", text="no")
        except HostError as error:
            raised = [error.kind, str(error), type(error).__name__]
        ctx.metrics.counter("calls", 2, kind="echo")
        return {"echoed": echoed["text"], "blob": blobs["blob"].decode(), "raised": raised,
                "about": ctx.about()["plugin"]}

    @tool
    def odd(self, ctx: Context) -> dict:
        import os

        told = {}
        for name, value in (("huge", 10**400), ("nan", float("nan"))):
            try:
                ctx.kv.set("odd", value)
                told[name] = "stored"
            except (HostError, ValueError, TypeError) as error:
                told[name] = type(error).__name__
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                ctx.kv.set("forked", 1)
                text = "stored"
            except HostError as error:
                text = str(error)
            os.write(writer, text.encode())
            os._exit(0)
        os.waitpid(child, 0)
        told["child"] = os.read(reader, 1000).decode()
        ctx.kv.set("after", 1)
        return told

    @tool
    def listen(self, ctx: Context) -> list:
        heard = ctx.events.subscribe("plugin:good:*", "session.started", "tick:*")
        ctx.progress(0.5, "listening")
        event = heard.next(timeout=20)
        return [event.name, event.payload, event.source, heard.dropped]
"#;

const EXTENSIONS: &str = r#"
from stockade import (condition, effect, on_event, provider, register_condition,
                      simulation_config, tool)

heard = []


@condition(requires=["npc_id"])
def is_seven(context):
    """Is it number seven?

    More that is not told.
    """
    return context["npc_id"] == 7


@condition
def raises(context, ctx):
    raise ValueError("no idea")


@effect(params={"amount": 1})
async def boost(context, params):
    return {"total": params["amount"] + context.get("by", 0)}


@simulation_config(priority=5)
def config(base):
    return {"tick": 3}


@on_event("plugin:other:*", "tick:*")
def hear(event, ctx):
    if event.payload == "bad":
        raise ValueError("a bad event")
    heard.append([event.name, event.payload, event.source])


@provider("provider:double", request_schema={"type": "object", "required": ["n"]})
def double(request, caller):
    return {"n": request["n"] * 2, "for": caller}


first = register_condition("by_hand", lambda context: True)
second = register_condition("by_hand", lambda context: False)


@tool
def told() -> dict:
    late = register_condition("late", lambda context: True)
    return {"heard": heard, "registered": [first, second, late]}
"#;

fn unwrapped(value: &Value) -> bytes::Bytes {
    value.to_string().into()
}

async fn started(name: &str, source: &str) -> Daemon {
    let daemon = Options::new().python(name, ALL, source).start().await;
    daemon.serving(name).await;
    daemon
}

#[tokio::test]
async fn a_tool_uses_the_hosts_services() {
    let daemon = started("p", SERVICES).await;
    let got = daemon.call("p", "store", json!({})).await.unwrap();
    assert_eq!(
        got,
        json!({"a": {"n": [1, null]}, "b": [0, 255], "none": "default", "swapped": [true, false],
               "keys": ["a", "b", "c", "short", "started"], "started": 1,
               "deleted": [true, false]})
    );
    let got = daemon.call("p", "entity", json!({})).await.unwrap();
    assert_eq!(
        got,
        json!({"before": {"step": 1, "done": false}, "after": "gone", "flag": true,
               "other": "there"})
    );
    let got = daemon.call("p", "refused", json!({})).await.unwrap();
    assert!(got["foreign"].as_str().expect("text").contains("not in the namespace"), "{got}");
    assert_eq!(got["large"], "QuotaExceeded");
    assert_eq!(got["silent"], Value::Null);
    assert!(got["required"].as_str().expect("text").contains("'db:read'"), "{got}");
    assert_eq!(got["has"], json!([true, false]));
    let got = daemon.call("p", "odd", json!({})).await.unwrap();
    assert_ne!(got["huge"], "stored", "{got}");
    assert!(got["child"].as_str().expect("text").contains("forked child has no host"), "{got}");
    let got = daemon.call("p", "calls", json!({})).await.unwrap();
    assert_eq!(
        got,
        json!({"echoed": "hi", "blob": "bytes", "raised": ["ValueError", "no", "ValueError"],
               "about": "p"})
    );
    daemon.stop().await;
}

async fn emit(client: &Client, name: &str, payload: Value) -> u32 {
    use stockade_proto::v1::{EmitEventRequest, hosting_client::HostingClient};
    let request =
        EmitEventRequest { name: name.into(), payload: unwrapped(&payload), workspace: "w".into() };
    let reply = HostingClient::new(client.channel()).emit_event(request).await.expect("emitted");
    reply.into_inner().subscribers
}

#[tokio::test]
async fn a_tool_waits_for_an_event() {
    let daemon = started("p", SERVICES).await;
    let client = daemon.client();
    let listening =
        tokio::spawn(async move { client.call("p", "listen", json!({})).await.unwrap() });
    eventually("it listens", || async {
        (emit(&daemon, "tick:1", json!({"n": 1})).await == 1).then_some(())
    })
    .await;
    let heard = listening.await.expect("listening");
    assert_eq!(heard, json!(["tick:1", {"n": 1}, "host", 0]));
    daemon.stop().await;
}

#[tokio::test]
async fn decorators_register_what_extends_the_host() {
    let daemon = started("x", EXTENSIONS).await;
    let mut extensions = ExtensionsClient::new(daemon.channel());
    for (id, context, expected) in [
        ("plugin:x:is_seven", json!({"npc_id": 7}), (true, "")),
        ("plugin:x:is_seven", json!({"npc_id": 8}), (false, "")),
        ("plugin:x:is_seven", json!({}), (false, "MissingContext")),
        ("plugin:x:raises", json!({}), (false, "ValueError")),
        ("plugin:x:by_hand", json!({}), (true, "")),
        ("plugin:x:late", json!({}), (false, "UnknownCondition")),
    ] {
        let request = EvaluateConditionRequest {
            condition_id: id.into(),
            context: unwrapped(&context),
            ..Default::default()
        };
        let reply = extensions.evaluate_condition(request).await.expect("reply").into_inner();
        assert_eq!((reply.result, reply.error_type.as_str()), expected, "{id} {}", reply.reason);
    }
    let request = ApplyEffectRequest {
        effect_id: "effect:plugin:x:boost".into(),
        context: unwrapped(&json!({"by": 2})),
        ..Default::default()
    };
    let reply = extensions.apply_effect(request).await.expect("reply").into_inner();
    assert_eq!(&reply.result[..], b"{\"total\":3}", "{}", reply.reason);
    let built = extensions.build_simulation_config(BuildSimulationConfigRequest::default()).await;
    assert_eq!(&built.expect("built").into_inner().config[..], b"{\"tick\":3}");
    for payload in [json!("fine"), json!("bad"), json!({"last": true})] {
        emit(&daemon, "tick:1", payload).await;
    }
    let told = eventually("it has heard them", || async {
        let told = daemon.call("x", "told", json!({})).await.unwrap();
        (told["heard"].as_array().map(Vec::len) == Some(2)).then_some(told)
    })
    .await;
    assert_eq!(told["heard"][1], json!(["tick:1", {"last": true}, "host"]));
    assert_eq!(told["registered"], json!([true, false, false]), "the first stays, late is late");
    let (_, text, _) = daemon.cli(&["extensions", "-o", "json"]).await;
    let list: Value = serde_json::from_str(&text).expect("JSON");
    let conditions = list["conditions"]["list"].as_array().expect("list");
    let seven = conditions.iter().find(|one| one["condition_id"] == "plugin:x:is_seven");
    assert_eq!(seven.expect("registered")["description"], "Is it number seven?");
    assert_eq!(list["providers"]["list"][0]["name"], "plugin:x:double");
    let (_, text, _) = daemon.cli(&["describe", "x", "-o", "json"]).await;
    let described: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(described["tools"].as_array().map(Vec::len), Some(1), "they are no tools");
    daemon.stop().await;
}

#[tokio::test]
async fn methods_of_a_class_extend_the_host_too() {
    let source = r#"
from stockade import condition, on_event, provider


class Plugin:
    def __init__(self):
        self.limit = 5

    @condition(name="below")
    def is_below(self, context):
        return context["n"] < self.limit

    @provider("provider:double")
    def double(self, request):
        return request * 2

    def greet(self, name: str) -> str:
        return f"Hello, {name}!"
"#;
    let daemon = started("m", source).await;
    let request = EvaluateConditionRequest {
        condition_id: "plugin:m:below".into(),
        context: unwrapped(&json!({"n": 3})),
        ..Default::default()
    };
    let reply = ExtensionsClient::new(daemon.channel()).evaluate_condition(request).await;
    assert!(reply.expect("reply").into_inner().result);
    assert_eq!(daemon.call("m", "greet", json!({"name": "Ada"})).await.unwrap(), "Hello, Ada!");
    assert_eq!(daemon.call("m", "is_below", json!({})).await.failed().0, "ToolNotFound");
    daemon.stop().await;
}
