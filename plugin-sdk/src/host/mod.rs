//! What the supervisor offers to plugins, over the second inherited channel: keys
//! and values, documents of entities, events, metrics, other plugins' tools and
//! providers. Each needs a permission (`[permissions]` in plugin.toml).
//!
//! A method gives an [`Ask`], a request that has not been sent: `.wait()?` sends
//! it from a blocking tool, `.await?` from an async one.
//!
//! ```no_run
//! # use stockade_plugin_sdk::prelude::*;
//! # fn tool(ctx: &Context) -> Result<()> {
//! // kv:read, kv:write: this plugin's own keys, kept across restarts.
//! let visits: u64 = ctx.kv().get("visits").wait()?.unwrap_or(0);
//! ctx.kv().set("visits", &(visits + 1)).wait()?;
//! ctx.kv().set("token", "abc").ttl(std::time::Duration::from_secs(60)).wait()?;
//! let swapped = ctx.kv().compare_and_set("leader", None::<&str>, Some("me")).wait()?;
//!
//! // npc:read, npc:write: documents of entities, in the call's workspace.
//! let npc = ctx.entity("npc/7");
//! let hp: Option<i64> = npc.get("components.core.hp").wait()?;
//! npc.set_flag("met", &true).wait()?;
//! npc.update_relationship("npc/8", &serde_json::json!({"trust": 0.4})).wait()?;
//! npc.set_component("quest", &serde_json::json!({"step": 2})).wait()?;
//!
//! // event:emit, event:subscribe
//! ctx.events().emit("greeted", &serde_json::json!({"who": "Ada"})).wait()?;
//! let mut heard = ctx.events().subscribe(&["plugin:other:*"]).wait()?;
//! if let Some(event) = heard.next_within(std::time::Duration::from_secs(1)) {
//!     ctx.log(Level::Info, &format!("{} said {}", event.source, event.name));
//! }
//!
//! // log:emit: a line with fields. `ctx.log` writes plain ones and needs nothing.
//! ctx.host().log(Level::Info, "greeted", &[("who", "Ada")]).wait()?;
//!
//! // No permission needed: a plugin's own metrics.
//! ctx.metrics().counter("greetings", 1.0, &[("kind", "warm")]).wait()?;
//!
//! // plugin:call:hello: another plugin's tool, within this call's deadline.
//! let info = ctx.plugin("hello").call("greet", &serde_json::json!({"name": "Ada"})).wait()?;
//!
//! // What a server provides under a name of its own.
//! let weather = ctx.provider("world.weather", &serde_json::json!({"at": [1, 2]})).wait()?;
//!
//! // Refused without the permission: the empty value and a trace for the operator,
//! // an error with `or_raise`, nothing at all with `or_silent`.
//! let secret: Option<String> = ctx.kv().get("secret").or_raise().wait()?;
//! # let _ = (swapped, hp, info, weather, secret);
//! # Ok(()) }
//! ```

mod ask;
mod calls;
mod entity;
mod events;
mod kv;
mod metrics;

use std::sync::Arc;

use stockade_proto::{
    host::{
        CheckPermissionRequest, GetSelfRequest, ListProvidersRequest, LogRequest, Scope,
        host_client::HostClient,
    },
    inherited::{Channel, MAX_MESSAGE},
};
use tokio::{runtime::Handle, sync::OnceCell};

pub use ask::Ask;
pub use calls::{Plugin, ToolResult};
pub use entity::Entity;
pub(crate) use events::answer as event_answer;
pub use events::{Event, Events, Subscription};
pub use kv::{Keys, Kv, Set};
pub use metrics::Metrics;

use crate::{Error, Level, Result, adopt};

/// Who a plugin is, as the supervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfInfo {
    /// The plugin's name.
    pub plugin: String,
    /// The manifest's version.
    pub version: String,
    /// Counts this plugin's processes: 1 is the first.
    pub generation: u64,
    /// A writable directory that survives restarts.
    pub data_dir: String,
    /// Permissions granted.
    pub permissions: Vec<String>,
    /// What they open: `kv.read`, `events.emit`, `provider.world.weather`, …
    pub capabilities: Vec<String>,
}

/// A capability that a server or another plugin provides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderInfo {
    /// What [`crate::Context::provider`] takes.
    pub name: String,
    /// What a plugin must hold to ask.
    pub permission: String,
    /// For people.
    pub description: String,
    /// JSON Schema text, empty = anything.
    pub request_schema: String,
    /// JSON Schema text, empty = anything.
    pub response_schema: String,
    /// This plugin may ask.
    pub granted: bool,
}

/// The host, on behalf of a call or of the plugin itself. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Host {
    link: Option<Link>,
    scope: Scope,
}

/// The connection; made at the first use.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    client: Arc<OnceCell<HostClient<Channel>>>,
    runtime: Handle,
    /// The process that it belongs to; a forked child has none.
    process: u32,
}

impl Link {
    pub(crate) fn new(runtime: Handle) -> Self {
        Link { client: Arc::default(), runtime, process: std::process::id() }
    }

    async fn client(&self) -> Result<HostClient<Channel>> {
        let client = self
            .client
            .get_or_try_init(|| async {
                let io = adopt::host()?;
                let (channel, connection) = Channel::connect(io).await?;
                tokio::spawn(connection);
                Ok::<_, Error>(
                    HostClient::new(channel)
                        .max_decoding_message_size(MAX_MESSAGE)
                        .max_encoding_message_size(MAX_MESSAGE),
                )
            })
            .await?;
        Ok(client.clone())
    }
}

impl Host {
    /// On behalf of the call of this number; 0 = of the plugin itself.
    pub(crate) fn of(link: Option<Link>, call_id: u64, workspace: &str) -> Self {
        let workspace = workspace.to_owned();
        Host { link, scope: Scope { call_id, workspace, ..Scope::default() } }
    }

    /// A line in the plugin's log with fields (`log:emit`); silent when it is not
    /// granted. [`crate::Context::log`] needs no permission.
    pub fn log(&self, level: Level, message: &str, fields: &[(&str, &str)]) -> Ask<()> {
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warning",
            Level::Error => "error",
        };
        let (level, message) = (level.to_owned(), message.to_owned());
        let fields =
            fields.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        self.ask(|mut client, scope| async move {
            let request = LogRequest { scope: Some(scope), level, message, fields };
            client.log(request).await?;
            Ok(())
        })
    }

    /// Who this plugin is.
    pub fn get_self(&self) -> Ask<SelfInfo> {
        self.ask(|mut client, _| async move {
            let reply = client.get_self(GetSelfRequest {}).await?.into_inner();
            Ok(SelfInfo {
                plugin: reply.plugin,
                version: reply.version,
                generation: reply.generation,
                data_dir: reply.data_dir,
                permissions: reply.permissions,
                capabilities: reply.capabilities,
            })
        })
    }

    /// True when the permission is granted; with [`Ask::or_raise`] it must be.
    pub fn has_permission(&self, permission: &str) -> Ask<bool> {
        let permission = permission.to_owned();
        self.ask(|mut client, scope| async move {
            let request = CheckPermissionRequest { scope: Some(scope), permission };
            Ok(client.check_permission(request).await?.into_inner().granted)
        })
    }

    /// What servers and other plugins provide now.
    pub fn providers(&self) -> Ask<Vec<ProviderInfo>> {
        self.ask(|mut client, _| async move {
            let reply = client.list_providers(ListProvidersRequest {}).await?.into_inner();
            let list = reply.providers.into_iter().map(|one| ProviderInfo {
                name: one.name,
                permission: one.permission,
                description: one.description,
                request_schema: one.request_schema,
                response_schema: one.response_schema,
                granted: one.granted,
            });
            Ok(list.collect())
        })
    }

    /// This plugin's keys and values (`kv:read`, `kv:write`).
    pub fn kv(&self) -> Kv {
        Kv(self.clone())
    }

    /// The document of `session/ID`, `npc/ID` or `world/ID`.
    pub fn entity(&self, entity: &str) -> Entity {
        Entity { host: self.clone(), name: entity.to_owned() }
    }

    /// Events (`event:emit`, `event:subscribe`).
    pub fn events(&self) -> Events {
        Events(self.clone())
    }

    /// This plugin's own metrics.
    pub fn metrics(&self) -> Metrics {
        Metrics(self.clone())
    }

    /// Another plugin (`plugin:call` or `plugin:call:NAME`).
    pub fn plugin(&self, name: &str) -> Plugin {
        Plugin { host: self.clone(), name: name.to_owned() }
    }

    /// Asks a provider; both directions are checked against its schemas.
    pub fn provider<Q: serde::Serialize>(&self, name: &str, request: &Q) -> Ask<serde_json::Value> {
        calls::provider(self, name, request)
    }
}

/// The status as an error of its own kind.
pub(crate) fn error_of(status: &tonic::Status) -> Error {
    use tonic::Code;
    let kind = match status.code() {
        Code::PermissionDenied => "PermissionDenied",
        // A message beyond what the channel takes is one, too.
        Code::ResourceExhausted | Code::OutOfRange => "QuotaExceeded",
        Code::InvalidArgument => "InvalidArgument",
        Code::NotFound => "NotFound",
        Code::DeadlineExceeded => "TimeoutError",
        Code::Aborted => "StoreLocked",
        Code::Unavailable => "Unavailable",
        _ => "HostError",
    };
    Error::new(kind, status.message())
}
