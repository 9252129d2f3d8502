//! Conditions, effects, simulation configuration: whatever a plugin does, the
//! answer is false, null, or without its part.

use bytes::Bytes;
use serde_json::{Value, json};
use stockade_proto::v1::{
    ApplyEffectRequest, BuildSimulationConfigRequest, EnabledPlugins, EvaluateConditionRequest,
};
use stockade_tests::{Client, Daemon, Options, curl};

use crate::actor::{asking, extensions, workspaces};
use stockade_proto::v1::SetWorkspaceRequest;

const BEHAVIOR: [&str; 3] =
    ["behavior:extend_conditions", "behavior:extend_effects", "behavior:configure_simulation"];

async fn extended() -> Daemon {
    let daemon = Options::new()
        .port()
        .rogue("b", &asking(&BEHAVIOR, "args = [\"--extend\", \"\"]\nconcurrency = 4"))
        .rogue("denied", "args = [\"--extend\", \"\"]")
        .start()
        .await;
    daemon.serving("b").await;
    daemon.serving("denied").await;
    daemon
}

fn text(value: &Value) -> Bytes {
    value.to_string().into()
}

async fn evaluate(client: &Client, id: &str, context: Value, workspace: &str) -> (bool, String) {
    let request = EvaluateConditionRequest {
        condition_id: id.into(),
        context: text(&context),
        workspace: workspace.into(),
        ..Default::default()
    };
    let reply = extensions(client).evaluate_condition(request).await.expect("reply").into_inner();
    (reply.result, reply.error_type)
}

async fn apply(client: &Client, id: &str, context: Value, params: Value) -> (Value, String) {
    let request = ApplyEffectRequest {
        effect_id: id.into(),
        context: text(&context),
        params: text(&params),
        ..Default::default()
    };
    let reply = extensions(client).apply_effect(request).await.expect("reply").into_inner();
    (serde_json::from_slice(&reply.result).expect("JSON"), reply.error_type)
}

#[tokio::test]
async fn a_condition_is_true_only_if_it_ran_and_said_so() {
    let daemon = extended().await;
    let cases = [
        ("plugin:b:is", json!({"so": true}), true, ""),
        ("plugin:b:is", json!({"so": false}), false, ""),
        ("plugin:b:is", json!({}), false, "MissingContext"),
        ("plugin:b:nothing", json!({}), false, "UnknownCondition"),
        ("plugin:nobody:is", json!({"so": true}), false, "UnknownCondition"),
        ("plugin:denied:is", json!({"so": true}), false, "UnknownCondition"),
        ("effect:plugin:b:boost", json!({}), false, "UnknownCondition"),
        ("is", json!({"so": true}), false, "UnknownCondition"),
        ("plugin:b:raises", json!({}), false, "ValueError"),
        ("plugin:b:slow", json!({}), false, "TimeoutError"),
        ("plugin:b:dies", json!({}), false, "WorkerCrashed"),
        ("plugin:b:is", json!({"so": true}), true, ""),
    ];
    for (id, context, result, kind) in cases {
        if kind.is_empty() {
            daemon.until("b", |health| health.substate == "READY" || health.pid.is_some()).await;
        }
        let mut got = evaluate(&daemon, id, context.clone(), "").await;
        if got.1 == "TimeoutError" && kind.is_empty() {
            // Its successor was still on its way.
            daemon.serving("b").await;
            got = evaluate(&daemon, id, context, "").await;
        }
        assert_eq!(got, (result, kind.to_owned()), "{id}");
    }
    let (_, told, _) = daemon.cli(&["metrics", "b", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    let behavior = &told["behavior_extensions"];
    assert_eq!(behavior["condition_evaluations"], 6, "only real runs count: {told}");
    assert_eq!(behavior["condition_failures"], 3);
    assert_eq!(told["requests"]["total"], 0);
    daemon.stop().await;
}

#[tokio::test]
async fn an_effect_is_null_unless_it_ran() {
    let daemon = extended().await;
    let boosted =
        apply(&daemon, "effect:plugin:b:boost", json!({"npc_id": 7}), json!({"by": 2.5})).await;
    assert_eq!(boosted, (json!({"total": 3.5, "for": 7}), String::new()), "the default lies under");
    let boosted = apply(&daemon, "effect:plugin:b:boost", json!({}), json!({"amount": 0})).await;
    assert_eq!(boosted.0["total"], 0.0);
    for (id, kind) in [
        ("effect:plugin:b:fails", "ValueError"),
        ("effect:plugin:b:nothing", "UnknownEffect"),
        ("plugin:b:boost", "UnknownEffect"),
        ("effect:plugin:denied:boost", "UnknownEffect"),
    ] {
        assert_eq!(apply(&daemon, id, json!({}), json!({})).await, (Value::Null, kind.to_owned()));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn configuration_is_merged_by_priority_and_the_users_word_stays() {
    let daemon = extended().await;
    let build = async |base: Option<Value>, workspace: &str, enabled: Option<EnabledPlugins>| {
        let request = BuildSimulationConfigRequest {
            base: base.map(|base| text(&base)).unwrap_or_default(),
            workspace: workspace.into(),
            enabled_plugins: enabled,
        };
        let reply = extensions(&daemon).build_simulation_config(request).await?.into_inner();
        let config: Value = serde_json::from_slice(&reply.config).expect("JSON");
        Ok::<_, tonic::Status>((config, reply.applied, reply.skipped))
    };
    let base = json!({"simulationConfig": {"user": "mine", "weights": {"low": 9}}});
    let (config, applied, skipped) = build(Some(base.clone()), "", None).await.expect("built");
    let expected =
        json!({"tick": 2, "weights": {"low": 9, "both": 2}, "user": "mine", "seen": "mine"});
    assert_eq!(config, expected);
    assert_eq!(applied, ["plugin:b:low", "plugin:b:high"]);
    let skipped: Vec<&str> = skipped.iter().map(|one| one.provider_id.as_str()).collect();
    assert_eq!(skipped, ["plugin:b:fails", "plugin:b:list"]);
    let none = Some(EnabledPlugins::default());
    let (config, applied, _) = build(Some(base.clone()), "", none).await.expect("built");
    assert_eq!((config, applied.len()), (json!({"user": "mine", "weights": {"low": 9}}), 0));
    let mut listed = base.clone();
    listed["enabledPlugins"] = json!(["other"]);
    assert_eq!(build(Some(listed), "", None).await.expect("built").1.len(), 0);
    // Without a base the workspace's own is taken.
    let document = text(&json!({"behavior": {"simulationConfig": {"tick": 99}}}));
    let set = SetWorkspaceRequest { name: "main".into(), document };
    workspaces(&daemon).set_workspace(set).await.expect("set");
    assert_eq!(build(None, "main", None).await.expect("built").0["tick"], 99);
    let wrong = build(Some(json!({"simulationConfig": 1})), "", None).await.unwrap_err();
    assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
    daemon.stop().await;
}

#[tokio::test]
async fn workspaces_and_explicit_lists_decide_who_is_asked() {
    let daemon = extended().await;
    let disable = |names: &'static [&'static str]| {
        let document = text(&json!({"behavior": {"enabledPlugins": names}}));
        SetWorkspaceRequest { name: "w".into(), document }
    };
    workspaces(&daemon).set_workspace(disable(&[])).await.expect("set");
    let so = json!({"so": true});
    assert_eq!(evaluate(&daemon, "plugin:b:is", so.clone(), "w").await.1, "DisabledInWorkspace");
    assert!(evaluate(&daemon, "plugin:b:is", so.clone(), "unknown").await.0, "absent = all");
    let request = EvaluateConditionRequest {
        condition_id: "plugin:b:is".into(),
        context: text(&so),
        workspace: "w".into(),
        enabled_plugins: Some(EnabledPlugins { names: vec!["b".into()] }),
        ..Default::default()
    };
    let reply = extensions(&daemon).evaluate_condition(request).await.expect("reply");
    assert!(reply.into_inner().result, "an explicit list has the last word");
    workspaces(&daemon).set_workspace(disable(&["b"])).await.expect("set");
    assert!(evaluate(&daemon, "plugin:b:is", so, "w").await.0);
    daemon.stop().await;
}

#[tokio::test]
async fn the_same_by_http_and_in_the_command() {
    let daemon = extended().await;
    let base = format!("http://{}", daemon.address().await);
    let post = async |path: &str, body: Value| {
        let url = format!("{base}{path}");
        let data = body.to_string();
        let (status, text) = curl(&["-X", "POST", "-d", &data, &url]).await;
        (status, serde_json::from_str::<Value>(&text).unwrap_or_default())
    };
    let (status, reply) = post(
        "/v1/conditions/evaluate",
        json!({"condition_id": "plugin:b:is", "context": {"so": true}}),
    )
    .await;
    assert_eq!((status, reply), (200, json!({"result": true, "reason": null, "error_type": null})));
    let (status, reply) =
        post("/v1/conditions/evaluate", json!({"condition_id": "plugin:b:raises"})).await;
    assert_eq!(
        (status, &reply["result"], &reply["reason"]),
        (200, &json!(false), &json!("no idea"))
    );
    let (status, reply) = post(
        "/v1/effects/apply",
        json!({"effect_id": "effect:plugin:b:boost", "params": {"amount": 4}, "context": {}}),
    )
    .await;
    assert_eq!((status, &reply["result"]["total"]), (200, &json!(4.0)));
    let (status, reply) =
        post("/v1/simulation-config/build", json!({"enabled_plugins": ["b"]})).await;
    assert_eq!((status, &reply["config"]["tick"]), (200, &json!(2)));
    assert_eq!(post("/v1/conditions/evaluate", json!({"conditionid": "x"})).await.0, 422);
    let (_, told, _) = daemon.cli(&["extensions", "-o", "json"]).await;
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!(told["registry_locked"], true);
    assert_eq!(told["conditions"]["by_plugin"], json!({"b": 5}));
    assert_eq!(told["effects"]["list"][0]["default_params"], json!({"amount": 1.0}));
    assert_eq!(told["simulation_configs"]["providers"][0]["priority"], 10);
    let (_, table, _) = daemon.cli(&["extensions"]).await;
    assert!(table.contains("effect:plugin:b:boost") && table.contains("priority 20"), "{table}");
    daemon.stop().await;
}
