//! Documents of entities: what a plugin may read and write of them, per workspace.

use serde_json::{Value, json};
use stockade_proto::v1::{GetDocumentRequest, ListDocumentsRequest, SetDocumentRequest};
use stockade_tests::Options;

use crate::actor::{ALL, answer, asking, data, op, provenance, refused, with_me};

#[tokio::test]
async fn a_plugin_writes_its_own_parts_and_reads_all() {
    let daemon = with_me().await;
    let host = json!({"components": {"core": {"hp": 10}}, "flags": {"host": true}});
    let set = SetDocumentRequest {
        workspace: String::new(),
        entity: "npc/7".into(),
        document: host.to_string().into(),
    };
    data(&daemon).set_document(set).await.expect("set");
    op(&daemon, "flag", "npc/7", json!({"name": "met", "value": true})).await;
    op(
        &daemon,
        "set_component",
        "npc/7",
        json!({"name": "humour", "value": {"a": 1, "b": {"x": 1}}}),
    )
    .await;
    let merged =
        op(&daemon, "update_component", "npc/7", json!({"name": "humour.x", "value": {"n": 1}}))
            .await;
    assert_eq!(merged, json!({"n": 1}));
    let (kind, text) = refused(
        &daemon,
        "me",
        json!({"op": "set_component", "key": "npc/7", "value": {"name": "humour ", "value": 1}}),
    )
    .await;
    assert_eq!(kind, "InvalidArgument", "{text}");
    let relation = json!({"name": "npc/8", "value": {"trust": 0.5, "deep": {"a": 1}}});
    op(&daemon, "relationship", "npc/7", relation).await;
    let patched =
        op(&daemon, "relationship", "npc/7", json!({"name": "npc/8", "value": {"deep": {"b": 2}}}))
            .await;
    assert_eq!(patched, json!({"trust": 0.5, "deep": {"b": 2}}), "a shallow merge");
    let document = op(&daemon, "entity", "npc/7", json!("")).await;
    assert_eq!(document["flags"], json!({"host": true, "plugin:me:met": true}));
    assert_eq!(document["meta"]["last_modified_by"], "plugin:me");
    assert_eq!(op(&daemon, "entity", "npc/7", json!("components.core.hp")).await, 10);
    assert_eq!(op(&daemon, "entity", "npc/7", json!("flags.met")).await, true, "its own");
    assert_eq!(op(&daemon, "entity", "npc/7", json!("components.humour.x.n")).await, 1);
    assert_eq!(
        op(&daemon, "delete_component", "npc/7", json!({"name": "humour.x"})).await,
        Value::Null
    );
    assert_eq!(op(&daemon, "entity", "npc/7", json!("components.humour.x")).await, Value::Null);
    let records = provenance(&daemon, "/npc/7*").await;
    let did: Vec<&str> = records.iter().map(|record| record.operation.as_str()).collect();
    assert!(
        did.contains(&"entity.set_flag") && did.contains(&"entity.delete_component"),
        "{did:?}"
    );
    daemon.stop().await;
}

#[tokio::test]
async fn protected_components_and_other_plugins_parts_are_refused() {
    let daemon = Options::new()
        .rogue("me", &asking(&ALL, ""))
        .rogue("reader", &asking(&["npc:read"], ""))
        .start()
        .await;
    daemon.serving("me").await;
    daemon.serving("reader").await;
    let component = |name: &str| json!({"op": "set_component", "key": "npc/7", "value": {"name": name, "value": {"x": 1}}});
    for name in [
        "core",
        "romance",
        "stealth",
        "mood",
        "behavior",
        "interactions",
        "quests",
        "Core",
        "plugin:other:x",
        "Plugin:other:x",
        "plugin/other/x",
    ] {
        let (kind, text) = refused(&daemon, "me", component(name)).await;
        assert_eq!(kind, "PermissionDenied", "{name}: {text}");
    }
    let flag =
        json!({"op": "flag", "key": "npc/7", "value": {"name": "plugin:other:x", "value": 1}});
    assert_eq!(refused(&daemon, "me", flag).await.0, "PermissionDenied");
    for with in ["plugin:other:x", "../x"] {
        let args =
            json!({"op": "relationship", "key": "npc/7", "value": {"name": with, "value": {}}});
        refused(&daemon, "me", args).await;
    }
    for entity in ["npc/", "npc", "thing/1", "npc/../1", "NPC/7"] {
        let args = json!({"op": "entity", "key": entity, "value": ""});
        assert_eq!(refused(&daemon, "me", args).await.0, "InvalidArgument", "{entity}");
    }
    let world = json!({"op": "flag", "key": "world/main", "value": {"name": "x", "value": 1}});
    assert_eq!(refused(&daemon, "me", world).await.0, "PermissionDenied");
    let mut write = component("own");
    write["mode"] = json!("raise");
    let (kind, text) = refused(&daemon, "reader", write).await;
    assert_eq!(kind, "PermissionDenied");
    assert!(text.contains("'state.npc.set_component'") && text.contains("'npc:write'"), "{text}");
    let nothing =
        answer(&daemon, "reader", json!({"op": "entity", "key": "npc/7", "value": ""})).await;
    assert_eq!(nothing, Value::Null, "nothing was written");
    daemon.stop().await;
}

/// Documents that nobody pays for do not stay.
#[tokio::test]
async fn a_document_in_which_nothing_is_left_is_none() {
    let daemon = with_me().await;
    let entities = async |after: &str| {
        let request = ListDocumentsRequest { after: after.into(), ..Default::default() };
        data(&daemon).list_documents(request).await.expect("list").into_inner()
    };
    for n in 0..3 {
        let part = json!({"name": "humour", "value": {"a": 1}});
        op(&daemon, "set_component", &format!("npc/{n}"), part).await;
    }
    assert_eq!(entities("").await.entities, ["npc/0", "npc/1", "npc/2"]);
    let rest = entities("npc/0").await;
    assert!(rest.entities == ["npc/1", "npc/2"] && !rest.more);
    op(&daemon, "delete_component", "npc/1", json!({"name": "humour"})).await;
    op(&daemon, "delete_component", "npc/9", json!({"name": "humour"})).await;
    assert_eq!(entities("").await.entities, ["npc/0", "npc/2"]);
    // What the host has set stays.
    for (entity, document) in
        [("npc/3", json!({"name": "Ada"})), ("npc/4", json!({"meta": {"name": "Ada"}}))]
    {
        let set = SetDocumentRequest {
            workspace: String::new(),
            entity: entity.into(),
            document: document.to_string().into(),
        };
        data(&daemon).set_document(set).await.expect("set");
        op(&daemon, "set_component", entity, json!({"name": "humour", "value": {"a": 1}})).await;
        op(&daemon, "delete_component", entity, json!({"name": "humour"})).await;
    }
    assert_eq!(entities("npc/2").await.entities, ["npc/3", "npc/4"]);
    daemon.stop().await;
}

#[tokio::test]
async fn documents_are_of_one_workspace() {
    let daemon = with_me().await;
    let mut flag = json!({"op": "flag", "key": "npc/7", "value": {"name": "met", "value": "a"}, "workspace": "a"});
    answer(&daemon, "me", flag.clone()).await;
    flag["workspace"] = json!("b");
    flag["value"]["value"] = json!("b");
    answer(&daemon, "me", flag).await;
    for (workspace, expected) in [("a", json!("a")), ("b", json!("b")), ("", Value::Null)] {
        let args =
            json!({"op": "entity", "key": "npc/7", "value": "flags.met", "workspace": workspace});
        assert_eq!(answer(&daemon, "me", args).await, expected, "{workspace}");
    }
    let request = GetDocumentRequest { workspace: "a".into(), entity: "npc/7".into() };
    let document = data(&daemon).get_document(request).await.expect("get").into_inner().document;
    let document: Value = serde_json::from_slice(&document.expect("there")).expect("JSON");
    assert_eq!(document["flags"], json!({"plugin:me:met": "a"}));
    // What could not be given back as it came is not taken.
    let request = SetDocumentRequest {
        workspace: "a".into(),
        entity: "npc/7".into(),
        document: r#"{"flags": {"n": -123456789012345678901}}"#.into(),
    };
    let refused = data(&daemon).set_document(request).await.expect_err("another number");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("-123456789012345678901"), "{refused}");
    daemon.stop().await;
}
