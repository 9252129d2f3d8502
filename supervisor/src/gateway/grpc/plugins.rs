//! `stockade.v1.Plugins`: the list, one plugin, changes.

use std::pin::Pin;

use futures_util::Stream;
use stockade_proto::v1::{
    GetPluginRequest, GetPluginResponse, ListPluginsRequest, ListPluginsResponse, PluginChange,
    PluginHealth, PluginSetup, Tool, WatchPluginsRequest, plugins_server::Plugins,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    Supervisor,
    gateway::{
        report::{health, sandbox},
        wanted::Wanted,
        watch::{Told, Watch},
    },
    plugin::Handle,
};

pub(super) struct PluginsService {
    supervisor: Supervisor,
    watch: Watch,
}

impl PluginsService {
    pub(super) fn new(supervisor: &Supervisor, watch: &Watch) -> Self {
        PluginsService { supervisor: supervisor.clone(), watch: watch.clone() }
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
        let place = self.watch.grpc_place_for(&request, &request.get_ref().names)?;
        let wanted = Wanted::new(request.into_inner().names);
        let (sender, receiver) = mpsc::channel(1);
        let mut pictures = self.watch.pictures();
        tokio::spawn(async move {
            let _place = place;
            let mut told = Told::default();
            loop {
                let picture = pictures.borrow_and_update().clone();
                for (kind, health) in told.changes(&picture, &wanted) {
                    let health = Some(PluginHealth::clone(&health));
                    let change = PluginChange { kind: kind as i32, health };
                    if sender.send(Ok(change)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = pictures.changed() => if changed.is_err() { return },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
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
