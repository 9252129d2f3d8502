//! `stockade.v1.Plugins`: the list, one plugin, changes.

use std::{collections::HashMap, pin::Pin, time::Duration};

use futures_util::Stream;
use stockade_proto::v1::{
    GetPluginRequest, GetPluginResponse, ListPluginsRequest, ListPluginsResponse, PluginChange,
    PluginHealth, PluginSetup, Tool, WatchPluginsRequest, plugin_change::Kind,
    plugins_server::Plugins,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    Supervisor,
    gateway::report::{health, sandbox},
    plugin::Handle,
};

/// A watcher is told of a change this soon; what changes back in between is
/// not told (RUNNING comes and goes with every call).
const TICK: Duration = Duration::from_millis(50);

pub(super) struct PluginsService {
    supervisor: Supervisor,
}

impl PluginsService {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        PluginsService { supervisor: supervisor.clone() }
    }
}

pub(super) fn not_found(name: &str) -> Status {
    Status::not_found(format!("Plugin '{name}' not found"))
}

#[tonic::async_trait]
impl Plugins for PluginsService {
    type WatchPluginsStream = Pin<Box<dyn Stream<Item = Result<PluginChange, Status>> + Send>>;

    async fn list_plugins(
        &self,
        _: Request<ListPluginsRequest>,
    ) -> Result<Response<ListPluginsResponse>, Status> {
        let list = health::list(&self.supervisor.registry().snapshot());
        Ok(Response::new(ListPluginsResponse {
            total: list.total,
            available: list.available,
            failed: list.failed,
            unavailable: list.unavailable,
            plugins: list.plugins.into_iter().map(PluginHealth::from).collect(),
        }))
    }

    async fn get_plugin(
        &self,
        request: Request<GetPluginRequest>,
    ) -> Result<Response<GetPluginResponse>, Status> {
        let name = request.into_inner().name;
        let handle = self.supervisor.plugin(&name).ok_or_else(|| not_found(&name))?;
        Ok(Response::new(GetPluginResponse {
            health: Some(health::health(&handle).into()),
            tools: tools(&handle),
            setup: Some(setup(&handle)),
        }))
    }

    async fn watch_plugins(
        &self,
        request: Request<WatchPluginsRequest>,
    ) -> Result<Response<Self::WatchPluginsStream>, Status> {
        let names = request.into_inner().names;
        let (sender, receiver) = mpsc::channel(64);
        let supervisor = self.supervisor.clone();
        tokio::spawn(async move {
            let mut known: HashMap<String, PluginHealth> = HashMap::new();
            loop {
                for change in changes(&supervisor, &names, &mut known) {
                    if sender.send(Ok(change)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(TICK) => {}
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

/// What is new since the last look.
fn changes(
    supervisor: &Supervisor,
    names: &[String],
    known: &mut HashMap<String, PluginHealth>,
) -> Vec<PluginChange> {
    let mut changes = Vec::new();
    let mut change = |kind: Kind, health: &PluginHealth| {
        changes.push(PluginChange { kind: kind as i32, health: Some(health.clone()) });
    };
    let plugins = supervisor.plugins();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|known| known == name);
    for (name, handle) in plugins.iter().filter(|(name, _)| wanted(name)) {
        let now = PluginHealth::from(health::health(handle));
        match known.get(&**name) {
            None => change(Kind::Present, &now),
            Some(before) if essence(before) != essence(&now) => change(Kind::Changed, &now),
            Some(_) => continue,
        }
        known.insert(name.to_string(), now);
    }
    known.retain(|name, last| {
        let there = plugins.contains_key(name.as_str());
        if !there {
            change(Kind::Removed, last);
        }
        there
    });
    changes
}

/// The fields whose change is told; counters and times run on.
fn essence(health: &PluginHealth) -> impl PartialEq {
    (
        (health.state, health.substate.clone(), health.reason.clone(), health.version.clone()),
        (health.pid, health.generation, health.restarts, health.last_exit.clone()),
        (health.missing.clone(), health.pending_change.clone(), health.progress.clone()),
    )
}

pub(crate) fn tools(handle: &Handle) -> Vec<Tool> {
    let snapshot = handle.snapshot();
    let Some(session) = &snapshot.session else { return Vec::new() };
    let tool = |tool: &crate::plugin::Tool| Tool {
        name: tool.spec.name.clone(),
        title: tool.spec.title.clone(),
        description: tool.spec.description.clone(),
        input_schema: tool.spec.input_schema.clone(),
        output_schema: tool.spec.output_schema.clone(),
        streams: tool.spec.streams,
    };
    session.tools.iter().map(tool).collect()
}

fn setup(handle: &Handle) -> PluginSetup {
    let snapshot = handle.snapshot();
    let manifest = snapshot.manifest.as_deref();
    let plan = snapshot.plan.as_deref();
    PluginSetup {
        manifest_path: manifest.map(|m| m.file.display().to_string()).unwrap_or_default(),
        manifest_json: manifest
            .and_then(|manifest| serde_json::to_string(manifest).ok())
            .unwrap_or_default(),
        command: plan.map(|plan| plan.argv.clone()).unwrap_or_default(),
        gpus: plan.map(|plan| plan.gpus.clone()).unwrap_or_default(),
        warnings: manifest
            .map(|manifest| manifest.warnings.iter().map(ToString::to_string).collect())
            .unwrap_or_default(),
        sandbox: sandbox::sandbox(handle).map(Into::into),
        data_dir: plan.map(|plan| plan.data_dir.display().to_string()).unwrap_or_default(),
    }
}
