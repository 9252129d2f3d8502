//! `stockade.host.v1.Host` of one process: who asks is whose channel it is.

use std::{collections::BTreeSet, sync::Arc};

use stockade_proto::host::{self as wire, OnDenied, host_server::Host};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::{
    HostServices, check_json,
    events::{Batches, MAX_SUBSCRIPTIONS},
    names::NameError,
    permits, providers,
};
use crate::{
    capacity::{is_quick, limits, turn_for},
    manifest::known_permission,
    plugin::{CallScope, Caller, Chain, Rate, Stream as LogStream},
    store::{Author, DataError, check_workspace},
};

/// One process's channel.
pub(super) struct Channel {
    pub(super) host: HostServices,
    pub(super) caller: Caller,
    pub(super) name: Arc<str>,
    pub(super) actor: Arc<str>,
    pub(super) requests: Rate,
    writes: Rate,
    pub(super) events: Rate,
    /// What it may hear of at once.
    pub(super) subscriptions: Arc<Semaphore>,
}

/// A request that was let through.
pub(super) struct Granted {
    /// The call in flight that it belongs to.
    pub(super) call: Option<CallScope>,
    /// Who, for the record.
    pub(super) author: Author,
}

pub(super) type Reply<T> = Result<Response<T>, Status>;

/// The services that a permission opens, for `capabilities`.
const CAPABILITIES: [(&str, &[&str]); 12] = [
    ("kv.read", &["kv:read", "redis:read"]),
    ("kv.write", &["kv:write", "redis:write"]),
    ("state.session", &["session:read", "session:write"]),
    ("state.npc", &["npc:read", "npc:write"]),
    ("state.world", &["world:read"]),
    ("events.emit", &["event:emit"]),
    ("events.subscribe", &["event:subscribe"]),
    ("log", &["log:emit"]),
    ("plugin.call", &["plugin:call"]),
    ("conditions", &["behavior:extend_conditions"]),
    ("effects", &["behavior:extend_effects"]),
    ("simulation_config", &["behavior:configure_simulation"]),
];

impl Channel {
    pub(super) fn new(host: HostServices, caller: Caller) -> Self {
        let name: Arc<str> = caller.manifest.name.as_str().into();
        let quota = caller.manifest.quota;
        Channel {
            host,
            actor: format!("plugin:{name}").into(),
            name,
            requests: Rate::of(Some(quota.requests)),
            writes: Rate::of(Some(quota.writes)),
            events: Rate::of(Some(quota.events)),
            subscriptions: Arc::new(Semaphore::new(MAX_SUBSCRIPTIONS)),
            caller,
        }
    }

    fn has(&self, permission: &str) -> bool {
        self.caller.manifest.permissions.has(permission)
    }

    /// Lets a request through if one of `permissions` is granted. None: it is
    /// refused, and the caller wants the empty answer.
    pub(super) fn ask(
        &self,
        capability: &str,
        permissions: &[&str],
        scope: Option<wire::Scope>,
    ) -> Result<Option<Granted>, Status> {
        self.ask_or(capability, permissions, scope, OnDenied::Warn)
    }

    pub(super) fn ask_or(
        &self,
        capability: &str,
        permissions: &[&str],
        scope: Option<wire::Scope>,
        usual: OnDenied,
    ) -> Result<Option<Granted>, Status> {
        self.within(&self.requests, "requests")?;
        let scope = scope.unwrap_or_default();
        let held = permissions.iter().find(|permission| self.has(permission));
        let Some(held) = held else {
            let permission = permissions.first().copied().unwrap_or_default();
            let mode = match scope.on_denied() {
                OnDenied::Default => usual,
                said => said,
            };
            return self.refuse(capability, permission, mode);
        };
        self.host.inner.permits.used(&self.name, held);
        self.grant(scope).map(Some)
    }

    /// The empty answer, or an error; always a trace.
    fn refuse(
        &self,
        capability: &str,
        permission: &str,
        mode: OnDenied,
    ) -> Result<Option<Granted>, Status> {
        let text = permits::refusal(&self.name, capability, permission);
        let inner = &self.host.inner;
        inner.permits.refused(&inner.journal, &self.name, permission, &text);
        match mode {
            OnDenied::Raise => return Err(Status::permission_denied(text)),
            OnDenied::Silent => {}
            OnDenied::Warn | OnDenied::Default => self.remark(&text),
        }
        Ok(None)
    }

    /// A line in the plugin's log.
    fn remark(&self, text: &str) {
        let line = format!("plugin_permission_denied: {text}");
        self.caller.logs.push(
            self.caller.generation,
            LogStream::Supervisor,
            Some("warning"),
            &line,
        );
    }

    pub(super) fn within(&self, rate: &Rate, quota: &str) -> Result<(), Status> {
        if rate.take() {
            return Ok(());
        }
        self.host.inner.permits.over_quota(&self.name);
        Err(Status::resource_exhausted(format!(
            "Plugin '{}' asks more often than quota.{quota} allows; slow down, or raise it.",
            self.name
        )))
    }

    /// Changes of stored data are counted besides.
    pub(super) fn may_write(&self) -> Result<(), Status> {
        self.within(&self.writes, "writes")
    }

    /// The call that it belongs to, and the workspace.
    fn grant(&self, scope: wire::Scope) -> Result<Granted, Status> {
        // A number that is not in flight in this very process is nobody's.
        let call = match scope.call_id {
            0 => None,
            id => self.caller.session().and_then(|session| session.scope(id)),
        };
        let of_call = call.as_ref().map(|call| call.workspace.clone()).unwrap_or_default();
        let workspace = match scope.workspace.as_str() {
            "" => of_call,
            said if *said == *of_call => of_call,
            said => {
                check_workspace(said).map_err(|error| self.data_error(error))?;
                if !self.host.inner.data.workspaces.allows(said, &self.name) {
                    let text =
                        format!("Plugin '{}' is not enabled in workspace '{said}'.", self.name);
                    return Err(self.name_error(NameError::Foreign(text)));
                }
                said.into()
            }
        };
        let author = Author {
            actor: self.actor.clone(),
            generation: self.caller.generation,
            call: call.as_ref().map(|call| call.call_id.clone()).unwrap_or_default(),
            workspace,
        };
        Ok(Granted { call, author })
    }

    /// A name that is not the caller's own is refused like a permission.
    pub(super) fn name_error(&self, error: NameError) -> Status {
        match error {
            NameError::Invalid(text) => Status::invalid_argument(text),
            NameError::Foreign(text) => {
                let inner = &self.host.inner;
                inner.permits.refused(&inner.journal, &self.name, "(not its own)", &text);
                Status::permission_denied(text)
            }
        }
    }

    /// The store's answer as a status. None of them ends the daemon.
    pub(super) fn data_error(&self, error: DataError) -> Status {
        let text = error.to_string();
        match error {
            DataError::Quota(_) => {
                self.host.inner.permits.over_quota(&self.name);
                Status::resource_exhausted(text)
            }
            DataError::Locked(_) => Status::aborted(text),
            DataError::Invalid(_) => Status::invalid_argument(text),
            DataError::Room(_) => Status::resource_exhausted(text),
            DataError::Full(_) | DataError::Busy | DataError::Broken(_) => {
                Status::unavailable(text)
            }
        }
    }

    /// The plugins that may run for a call that this one makes.
    pub(super) fn enabled(&self, call: Option<&CallScope>) -> Option<Arc<BTreeSet<String>>> {
        match call {
            Some(call) => call.enabled.clone(),
            None => self.caller.session()?.enabled(),
        }
    }

    /// The plugins through which a call comes that this one makes. One that
    /// belongs to no call in flight may come through any of them.
    pub(super) fn chain(&self, call: Option<&CallScope>) -> Chain {
        let mut chain: Vec<Arc<str>> = match call {
            Some(call) => call.chain.to_vec(),
            None => {
                let chains = self.caller.session().map(|session| session.chains());
                let mut names: Vec<Arc<str>> =
                    chains.iter().flatten().flat_map(|chain| chain.iter().cloned()).collect();
                names.sort();
                names.dedup();
                names
            }
        };
        chain.push(self.name.clone());
        chain.into()
    }

    /// JSON text; what is large is read by the crew.
    pub(super) async fn valid_json(&self, text: bytes::Bytes) -> Result<bytes::Bytes, Status> {
        if is_quick(&text) {
            return check_json(text).map_err(Status::invalid_argument);
        }
        let checked =
            self.host.calls().await.crew().run(&self.name, move || check_json(text)).await;
        let checked = checked.map_err(|why| Status::unavailable(why.to_string()))?;
        checked.map_err(Status::invalid_argument)
    }

    async fn answer_check_permission(
        &self,
        request: wire::CheckPermissionRequest,
    ) -> Reply<wire::CheckPermissionResponse> {
        let wire::CheckPermissionRequest { scope, permission } = request;
        self.within(&self.requests, "requests")?;
        let granted = self.has(&permission);
        let raise = scope.unwrap_or_default().on_denied() == OnDenied::Raise;
        if !granted && raise {
            let known = known_permission(&permission);
            let permission = if known { &permission } else { "(unknown)" };
            self.refuse("require_permission", permission, OnDenied::Raise)?;
        }
        Ok(Response::new(wire::CheckPermissionResponse { granted }))
    }
}

/// Bytes of a message: it travels in a header, whose size is bounded.
const MESSAGE: usize = limits::ERROR_TEXT / 4;

/// A message that fits.
fn cut(status: Status) -> Status {
    match status.message().len() > MESSAGE {
        true => Status::new(status.code(), limits::cut(status.message(), MESSAGE)),
        false => status,
    }
}

#[tonic::async_trait]
impl Host for Channel {
    type SubscribeStream = Batches;

    async fn get_self(&self, _: Request<wire::GetSelfRequest>) -> Reply<wire::GetSelfResponse> {
        let manifest = &self.caller.manifest;
        self.within(&self.requests, "requests")?;
        // Everybody's providers are looked through.
        turn_for(usize::MAX).await;
        let calls = manifest.permissions.granted.iter().any(|one| one.starts_with("plugin:call"));
        let open = CAPABILITIES.iter().filter(|(name, any)| {
            any.iter().any(|one| self.has(one)) || (*name == "plugin.call" && calls)
        });
        let mut capabilities: Vec<String> = open.map(|(name, _)| (*name).to_owned()).collect();
        let providers = providers::list(&self.host, &self.name).await;
        let usable = providers.iter().filter(|(_, one)| self.has(&one.permission));
        capabilities.extend(usable.map(|(name, _)| format!("provider.{name}")));
        Ok(Response::new(wire::GetSelfResponse {
            plugin: manifest.name.clone(),
            version: manifest.version.clone().unwrap_or_default(),
            generation: self.caller.generation,
            data_dir: self.caller.data_dir.display().to_string(),
            permissions: manifest.permissions.granted.iter().cloned().collect(),
            capabilities,
        }))
    }

    async fn check_permission(
        &self,
        request: Request<wire::CheckPermissionRequest>,
    ) -> Reply<wire::CheckPermissionResponse> {
        self.answer_check_permission(request.into_inner()).await.map_err(cut)
    }

    async fn kv_get(&self, request: Request<wire::KvGetRequest>) -> Reply<wire::KvGetResponse> {
        self.get_value(request.into_inner()).await.map_err(cut)
    }

    async fn kv_set(&self, request: Request<wire::KvSetRequest>) -> Reply<wire::KvSetResponse> {
        self.set_value(request.into_inner()).await.map_err(cut)
    }

    async fn kv_delete(
        &self,
        request: Request<wire::KvDeleteRequest>,
    ) -> Reply<wire::KvDeleteResponse> {
        self.delete_value(request.into_inner()).await.map_err(cut)
    }

    async fn kv_list(&self, request: Request<wire::KvListRequest>) -> Reply<wire::KvListResponse> {
        self.list_values(request.into_inner()).await.map_err(cut)
    }

    async fn kv_compare_and_set(
        &self,
        request: Request<wire::KvCompareAndSetRequest>,
    ) -> Reply<wire::KvCompareAndSetResponse> {
        self.compare_and_set_value(request.into_inner()).await.map_err(cut)
    }

    async fn get_entity(
        &self,
        request: Request<wire::GetEntityRequest>,
    ) -> Reply<wire::GetEntityResponse> {
        self.read_entity(request.into_inner()).await.map_err(cut)
    }

    async fn set_flag(
        &self,
        request: Request<wire::SetFlagRequest>,
    ) -> Reply<wire::ChangeResponse> {
        self.write_flag(request.into_inner()).await.map_err(cut)
    }

    async fn update_relationship(
        &self,
        request: Request<wire::UpdateRelationshipRequest>,
    ) -> Reply<wire::ChangeResponse> {
        self.write_relationship(request.into_inner()).await.map_err(cut)
    }

    async fn change_component(
        &self,
        request: Request<wire::ChangeComponentRequest>,
    ) -> Reply<wire::ChangeResponse> {
        self.write_component(request.into_inner()).await.map_err(cut)
    }

    async fn emit(&self, request: Request<wire::EmitRequest>) -> Reply<wire::EmitResponse> {
        self.emit_event(request.into_inner()).await.map_err(cut)
    }

    async fn subscribe(
        &self,
        request: Request<wire::SubscribeRequest>,
    ) -> Reply<Self::SubscribeStream> {
        self.hear(request.into_inner()).map_err(cut)
    }

    async fn log(&self, request: Request<wire::LogRequest>) -> Reply<wire::LogResponse> {
        self.write_log(request.into_inner()).map_err(cut)
    }

    async fn record(&self, request: Request<wire::RecordRequest>) -> Reply<wire::RecordResponse> {
        self.record_metric(request.into_inner()).map_err(cut)
    }

    async fn call_tool(
        &self,
        request: Request<wire::CallToolRequest>,
    ) -> Reply<wire::CallToolResponse> {
        self.answer_call_tool(request.into_inner()).await.map_err(cut)
    }

    async fn list_providers(
        &self,
        _: Request<wire::ListProvidersRequest>,
    ) -> Reply<wire::ListProvidersResponse> {
        self.within(&self.requests, "requests")?;
        turn_for(usize::MAX).await;
        let list = providers::list(&self.host, &self.name).await;
        let bytes = providers::described(&list);
        let room = self.caller.account.charge(bytes);
        let _room = room.map_err(|why| Status::resource_exhausted(why.to_string()))?;
        let manifest = self.caller.manifest.clone();
        let told =
            move || providers::to_wire(list, |permission| manifest.permissions.has(permission));
        let told = self.host.calls().await.crew().run(&self.name, told).await;
        let providers = told.map_err(|why| Status::resource_exhausted(why.to_string()))?;
        turn_for(bytes).await;
        Ok(Response::new(wire::ListProvidersResponse { providers }))
    }

    async fn call_provider(
        &self,
        request: Request<wire::CallProviderRequest>,
    ) -> Reply<wire::CallProviderResponse> {
        self.answer_call_provider(request.into_inner()).await.map_err(cut)
    }
}
