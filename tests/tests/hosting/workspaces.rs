//! Workspaces: which plugins are enabled where.

use serde_json::{Value, json};
use stockade_proto::{
    limits,
    v1::{
        CallRequest, DeleteWorkspaceRequest, EnabledPlugins, GetWorkspaceRequest,
        SetWorkspaceRequest, WorkspacePluginRequest, workspaces_client::WorkspacesClient,
    },
};
use stockade_tests::{Client, Options};

use crate::actor::asking;

async fn call(
    client: &Client,
    workspace: &str,
    only: Option<&[&str]>,
) -> Result<(), tonic::Status> {
    let request = CallRequest {
        plugin: "good".into(),
        tool: "pid".into(),
        workspace: workspace.into(),
        enabled_plugins: only.map(|names| EnabledPlugins {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
        }),
        ..CallRequest::default()
    };
    client.tools().call(request).await.map(drop)
}

#[tokio::test]
async fn a_call_in_a_workspace_needs_the_plugin_enabled_there() {
    let daemon = Options::new().rogue("x", &asking(&["plugin:call"], "")).start().await;
    daemon.serving("x").await;
    call(&daemon, "w", None).await.expect("nobody has configured it");
    let (code, _, error) = daemon.cli(&["workspace", "enable", "w", "good"]).await;
    assert_eq!(code, 2, "enabling one must not silently disable the rest");
    assert!(error.contains("all are enabled there") && error.contains("--only"), "{error}");
    let (code, text, _) = daemon.cli(&["workspace", "disable", "w", "good"]).await;
    assert_eq!(code, 0);
    assert!(text.contains("plugins:  x"), "{text}");
    let refused = call(&daemon, "w", None).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "Plugin 'good' is not enabled in workspace 'w'. Run `stockade workspace enable w good`."
    );
    call(&daemon, "w", Some(&["good"])).await.expect("an explicit list has the last word");
    call(&daemon, "other", None).await.expect("another workspace");
    call(&daemon, "", Some(&["x"])).await.unwrap_err();
    // What is not enabled for a call is not enabled for the calls within it.
    let inner = json!({"op": "call", "key": "good.pid", "value": {}, "mode": "raise"});
    let within = async |names: &[&str]| {
        let request = CallRequest {
            plugin: "x".into(),
            tool: "host".into(),
            args: inner.to_string().into(),
            enabled_plugins: Some(EnabledPlugins {
                names: names.iter().map(|name| (*name).to_owned()).collect(),
            }),
            ..CallRequest::default()
        };
        daemon.tools().call(request).await.map(drop)
    };
    within(&["x", "good"]).await.expect("both");
    let refused = within(&["x"]).await.unwrap_err();
    assert!(refused.message().contains("not among the call's enabled_plugins"), "{refused}");
    assert_eq!(daemon.cli(&["workspace", "enable", "w", "good"]).await.0, 0);
    call(&daemon, "w", None).await.expect("enabled again");
    daemon.cli(&["workspace", "enable", "w", "x", "--only"]).await;
    call(&daemon, "w", None).await.unwrap_err();
    // It outlives the daemon.
    let folder = daemon.kill().await;
    let daemon = Options::new().rogue("x", "").start_in(folder).await;
    call(&daemon, "w", None).await.unwrap_err();
    let (_, text, _) = daemon.cli(&["workspace", "show", "w", "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(shown["document"], json!({"behavior": {"enabledPlugins": ["x"]}}));
    let (_, text, _) = daemon.cli(&["provenance", "--key", "w", "-o", "json"]).await;
    let records: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(records.as_array().expect("list").len(), 3);
    assert_eq!(daemon.cli(&["workspace", "delete", "w"]).await.0, 0);
    call(&daemon, "w", None).await.expect("all again");
    daemon.stop().await;
}

#[tokio::test]
async fn a_document_is_kept_whole_and_checked() {
    let daemon = Options::new().start().await;
    let document = r#"{"name": "Main", "behavior": {"enabledPlugins": ["good"], "simulationConfig": {"tick": 5}}}"#;
    let (code, _, error) = daemon.cli(&["workspace", "set", "main", document]).await;
    assert_eq!(code, 0, "{error}");
    daemon.cli(&["workspace", "enable", "main", "good"]).await;
    let (_, text, _) = daemon.cli(&["workspace", "show", "main", "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(shown["document"], serde_json::from_str::<Value>(document).expect("JSON"));
    // The last would become another number.
    for wrong in [
        "[]",
        "{\"behavior\": 1}",
        "{\"behavior\": {\"enabledPlugins\": [1]}}",
        "{",
        "{\"seed\": 123456789012345678901}",
    ] {
        assert_eq!(daemon.cli(&["workspace", "set", "main", wrong]).await.0, 2, "{wrong}");
    }
    assert_eq!(daemon.cli(&["workspace", "set", "a b", "{}"]).await.0, 2);
    let (_, text, _) = daemon.cli(&["workspace", "list"]).await;
    assert!(text.contains("main") && text.contains("good"), "{text}");
    daemon.stop().await;
}

/// They are kept in memory.
#[tokio::test]
async fn workspaces_are_bounded_together() {
    let daemon = Options::new().start().await;
    let mut workspaces = WorkspacesClient::new(daemon.client().channel());
    let large = format!("{{\"notes\":\"{}\"}}", "x".repeat(limits::DOCUMENT - 20));
    let set = |name: String| SetWorkspaceRequest { name, document: large.clone().into() };
    let mut there = 0;
    let refused = loop {
        match workspaces.set_workspace(set(format!("w{there}"))).await {
            Ok(_) => there += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(there, limits::WORKSPACE_BYTES / limits::DOCUMENT, "{refused}");
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    // One that is replaced, and one in the place of another, have room.
    workspaces.set_workspace(set("w0".into())).await.expect("replaced");
    let gone = DeleteWorkspaceRequest { name: "w1".into() };
    assert!(workspaces.delete_workspace(gone).await.expect("deleted").into_inner().deleted);
    workspaces.set_workspace(set("another".into())).await.expect("room");
    daemon.stop().await;
}

/// What would make the document unreadable is refused, and loses nothing.
#[tokio::test]
async fn a_list_that_does_not_fit_loses_nothing() {
    let daemon = Options::new().start().await;
    let mut workspaces = WorkspacesClient::new(daemon.client().channel());
    let document = format!("{{\"notes\":\"{}\"}}", "x".repeat(limits::DOCUMENT - 20));
    let set = SetWorkspaceRequest { name: "w".into(), document: document.clone().into() };
    workspaces.set_workspace(set).await.expect("fits");
    let enable = |names: Vec<String>, only| WorkspacePluginRequest {
        name: "w".into(),
        plugins: names,
        only,
    };
    let refused = workspaces.enable_plugin(enable(vec!["good".into()], true)).await;
    assert_eq!(refused.expect_err("does not fit").code(), tonic::Code::InvalidArgument);
    let get = || GetWorkspaceRequest { name: "w".into() };
    let there = workspaces.get_workspace(get()).await.expect("there").into_inner();
    assert!(there.all_enabled && there.document == document, "{} bytes", there.document.len());

    // A list that grows bit by bit has its bound, too.
    let set = SetWorkspaceRequest { name: "w".into(), document: "{\"keep\":1}".into() };
    workspaces.set_workspace(set).await.expect("set");
    let mut refused = None;
    for round in 0..5 {
        let names = (0..250).map(|n| format!("p{round}-{n}")).collect();
        match workspaces.enable_plugin(enable(names, round == 0)).await {
            Ok(_) => assert!(round < 4, "more than {} names", limits::PLUGIN_NAMES),
            Err(status) => refused = Some((round, status.code())),
        }
    }
    assert_eq!(refused, Some((4, tonic::Code::InvalidArgument)));
    let there = workspaces.disable_plugin(enable(vec!["p0-7".into()], false)).await;
    let there = there.expect("disabled").into_inner();
    assert_eq!(there.enabled_plugins.len(), 999);
    assert!(there.document.starts_with(b"{\"keep\":1,"), "kept");
    daemon.stop().await;
}
