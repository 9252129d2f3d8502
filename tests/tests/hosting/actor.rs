//! A plugin that asks its host on request, and who watches it.

use serde_json::{Value, json};
use stockade_proto::v1::{
    ListProvenanceRequest, ProvenanceRecord, data_client::DataClient,
    extensions_client::ExtensionsClient, hosting_client::HostingClient,
    workspaces_client::WorkspacesClient,
};
use stockade_tests::{Client, Daemon, Options, Outcome};
use tonic::transport::Channel;

/// A manifest with these permissions; `more` are further keys of `[run]`.
pub fn asking(permissions: &[&str], more: &str) -> String {
    format!("{more}\n[restart]\nmax_errors = 0\n[permissions]\nrequest = {permissions:?}")
}

/// Everything that the host has.
pub const ALL: [&str; 10] = [
    "kv:read",
    "kv:write",
    "session:read",
    "session:write",
    "npc:read",
    "npc:write",
    "world:read",
    "event:emit",
    "event:subscribe",
    "plugin:call",
];

/// A daemon with the plugin `me`, which may everything.
pub async fn with_me() -> Daemon {
    let daemon = Options::new().rogue("me", &asking(&ALL, "concurrency = 4")).start().await;
    daemon.serving("me").await;
    daemon
}

/// One request of a plugin to its host.
pub async fn ask(client: &Client, plugin: &str, args: Value) -> Outcome {
    client.call(plugin, "host", args).await
}

/// The answer of a request that must work.
pub async fn answer(client: &Client, plugin: &str, args: Value) -> Value {
    ask(client, plugin, args).await.unwrap()
}

/// `op key value` that must work.
pub async fn op(client: &Client, op: &str, key: &str, value: Value) -> Value {
    answer(client, "me", json!({"op": op, "key": key, "value": value})).await
}

/// The class and message of a request that must fail.
pub async fn refused(client: &Client, plugin: &str, args: Value) -> (String, String) {
    let outcome = ask(client, plugin, args).await;
    assert!(!outcome.ok, "it worked: {outcome:?}");
    (outcome.error_type, outcome.error)
}

pub fn data(client: &Client) -> DataClient<Channel> {
    DataClient::new(client.channel())
}

pub fn extensions(client: &Client) -> ExtensionsClient<Channel> {
    ExtensionsClient::new(client.channel())
}

pub fn hosting(client: &Client) -> HostingClient<Channel> {
    HostingClient::new(client.channel())
}

pub fn workspaces(client: &Client) -> WorkspacesClient<Channel> {
    WorkspacesClient::new(client.channel())
}

/// Who changed this key.
pub async fn provenance(client: &Client, key: &str) -> Vec<ProvenanceRecord> {
    let request = ListProvenanceRequest { key: key.to_owned(), ..Default::default() };
    data(client).list_provenance(request).await.expect("provenance").into_inner().records
}
