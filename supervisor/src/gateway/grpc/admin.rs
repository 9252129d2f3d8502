//! `stockade.v1.Admin`: what operators may change. By the unix socket, or with a
//! token of the role admin.

use std::time::Duration;

use stockade_proto::v1::{
    GetDaemonRequest, GetDaemonResponse, PluginActionRequest, PluginActionResponse, ReloadRequest,
    ReloadResponse, admin_server::Admin,
};
use tonic::{Request, Response, Status};

use super::{super::status, plugins::not_found, who};
use crate::{
    Supervisor,
    gateway::report::health,
    lifecycle::Substate,
    plugin::{Command, Handle, Snapshot},
};

pub(super) struct AdminService {
    supervisor: Supervisor,
}

impl AdminService {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        AdminService { supervisor: supervisor.clone() }
    }

    /// One action on one plugin; with `wait`, answered when it has settled.
    async fn act(
        &self,
        request: Request<PluginActionRequest>,
        command: impl FnOnce(String) -> Command,
    ) -> Result<Response<PluginActionResponse>, Status> {
        let who = who(&request)?;
        let request = request.into_inner();
        let handle =
            self.supervisor.plugin(&request.name).ok_or_else(|| not_found(&request.name))?;
        let command = command(who);
        let is_kept = command.is_kept();
        handle.order(command).await.map_err(status::overloaded)?;
        if is_kept {
            self.supervisor.noted(&request.name).await.map_err(Status::unavailable)?;
        }
        let mut snapshots = handle.watch();
        if request.wait {
            let timeout = match request.timeout_ms {
                0 => Duration::from_secs(3600),
                ms => Duration::from_millis(ms),
            };
            let _ = tokio::time::timeout(timeout, snapshots.wait_for(|now| settled(now))).await;
        }
        Ok(answer(&handle))
    }
}

fn answer(handle: &Handle) -> Response<PluginActionResponse> {
    Response::new(PluginActionResponse { health: Some(health::health(handle).into()) })
}

/// Nothing is under way.
fn settled(snapshot: &Snapshot) -> bool {
    match snapshot.substate {
        Substate::Starting
        | Substate::Queued
        | Substate::Stopping
        | Substate::Draining
        | Substate::Dying
        | Substate::Killing => false,
        // A killed process's tree may still be going.
        Substate::PreflightFailed => !snapshot.checking && snapshot.pid.is_none(),
        _ => !snapshot.checking,
    }
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn start_plugin(
        &self,
        request: Request<PluginActionRequest>,
    ) -> Result<Response<PluginActionResponse>, Status> {
        self.act(request, Command::Start).await
    }

    async fn stop_plugin(
        &self,
        request: Request<PluginActionRequest>,
    ) -> Result<Response<PluginActionResponse>, Status> {
        self.act(request, Command::Stop).await
    }

    async fn restart_plugin(
        &self,
        request: Request<PluginActionRequest>,
    ) -> Result<Response<PluginActionResponse>, Status> {
        self.act(request, Command::Restart).await
    }

    async fn reset_plugin(
        &self,
        request: Request<PluginActionRequest>,
    ) -> Result<Response<PluginActionResponse>, Status> {
        self.act(request, Command::Reset).await
    }

    async fn enable_plugin(
        &self,
        request: Request<PluginActionRequest>,
    ) -> Result<Response<PluginActionResponse>, Status> {
        self.act(request, Command::Enable).await
    }

    async fn disable_plugin(
        &self,
        request: Request<PluginActionRequest>,
    ) -> Result<Response<PluginActionResponse>, Status> {
        self.act(request, Command::Disable).await
    }

    async fn reload_plugin(
        &self,
        request: Request<PluginActionRequest>,
    ) -> Result<Response<PluginActionResponse>, Status> {
        who(&request)?;
        let request = request.into_inner();
        self.supervisor.plugin(&request.name).ok_or_else(|| not_found(&request.name))?;
        self.supervisor.reload().await;
        let handle =
            self.supervisor.plugin(&request.name).ok_or_else(|| not_found(&request.name))?;
        if request.wait {
            let mut snapshots = handle.watch();
            let _ = tokio::time::timeout(
                Duration::from_secs(3600),
                snapshots.wait_for(|now| settled(now)),
            )
            .await;
        }
        Ok(answer(&handle))
    }

    async fn reload(
        &self,
        request: Request<ReloadRequest>,
    ) -> Result<Response<ReloadResponse>, Status> {
        who(&request)?;
        let reloaded = self.supervisor.reload_all().await;
        Ok(Response::new(ReloadResponse {
            added: reloaded.added,
            changed: reloaded.changed,
            removed: reloaded.removed,
            problems: reloaded.problems,
        }))
    }

    async fn get_daemon(
        &self,
        request: Request<GetDaemonRequest>,
    ) -> Result<Response<GetDaemonResponse>, Status> {
        who(&request)?;
        let config = self.supervisor.config();
        Ok(Response::new(GetDaemonResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.supervisor.started().to_string(),
            state_dir: config.state_dir.display().to_string(),
            plugin_dirs: config.plugin_dirs.iter().map(|d| d.display().to_string()).collect(),
            listen: config.listen.map(|address| address.to_string()).unwrap_or_default(),
            socket: config.socket.display().to_string(),
            problems: self.supervisor.problems(),
        }))
    }
}
