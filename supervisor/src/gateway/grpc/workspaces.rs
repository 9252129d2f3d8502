//! `stockade.v1.Workspaces`: which plugins are enabled where.

use stockade_proto::v1::{
    DeleteWorkspaceRequest, DeleteWorkspaceResponse, GetWorkspaceRequest, ListWorkspacesRequest,
    ListWorkspacesResponse, ReopenWorkspacesRequest, ReopenWorkspacesResponse, SetWorkspaceRequest,
    Workspace, WorkspacePluginRequest, workspaces_server::Workspaces,
};
use tonic::{Request, Response, Status};

use super::{data::data_error, who};
use crate::{
    Supervisor,
    gateway::{body::Reservation, report::data, texts, whole},
    store::{Author, Data},
};

pub(super) struct WorkspacesService {
    supervisor: Supervisor,
}

impl WorkspacesService {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        WorkspacesService { supervisor: supervisor.clone() }
    }

    fn data(&self) -> &std::sync::Arc<Data> {
        self.supervisor.services().data()
    }
}

/// Who makes a change of a workspace.
pub(crate) fn author(who: &str, workspace: &str) -> Author {
    Author {
        actor: format!("operator {who}").into(),
        workspace: workspace.into(),
        ..Author::default()
    }
}

#[tonic::async_trait]
impl Workspaces for WorkspacesService {
    async fn list_workspaces(
        &self,
        request: Request<ListWorkspacesRequest>,
    ) -> Result<Response<ListWorkspacesResponse>, Status> {
        who(&request)?;
        let reservation = request.extensions().get::<Reservation>().cloned();
        let all = self.data().workspaces.all();
        let closed = self.data().workspaces.closed().unwrap_or_default();
        let make = move || {
            let all = all.iter().map(|(name, one)| data::workspace(name, Some(one)));
            ListWorkspacesResponse { workspaces: all.collect(), closed }
        };
        whole::message(&self.supervisor, reservation, make).await
    }

    async fn get_workspace(
        &self,
        request: Request<GetWorkspaceRequest>,
    ) -> Result<Response<Workspace>, Status> {
        who(&request)?;
        let name = request.into_inner().name;
        Ok(Response::new(data::known_workspace(&name, &self.data().workspaces)))
    }

    async fn set_workspace(
        &self,
        request: Request<SetWorkspaceRequest>,
    ) -> Result<Response<Workspace>, Status> {
        let who = who(&request)?;
        let SetWorkspaceRequest { name, document } = request.into_inner();
        let what = "the document is no JSON object";
        let document = texts::json(&self.supervisor, document, what).await?;
        let set = self.data().set_workspace(author(&who, &name), &name, document).await;
        Ok(Response::new(data::workspace(&name, Some(&*set.map_err(data_error)?))))
    }

    async fn delete_workspace(
        &self,
        request: Request<DeleteWorkspaceRequest>,
    ) -> Result<Response<DeleteWorkspaceResponse>, Status> {
        let who = who(&request)?;
        let name = request.into_inner().name;
        let deleted = self.data().delete_workspace(author(&who, &name), &name).await;
        let deleted = deleted.map_err(data_error)?;
        Ok(Response::new(DeleteWorkspaceResponse { deleted }))
    }

    async fn enable_plugin(
        &self,
        request: Request<WorkspacePluginRequest>,
    ) -> Result<Response<Workspace>, Status> {
        let who = who(&request)?;
        let WorkspacePluginRequest { name, plugins, only } = request.into_inner();
        let author = author(&who, &name);
        let set = self.data().enable_in_workspace(author, &name, plugins, only).await;
        Ok(Response::new(data::workspace(&name, Some(&*set.map_err(data_error)?))))
    }

    async fn disable_plugin(
        &self,
        request: Request<WorkspacePluginRequest>,
    ) -> Result<Response<Workspace>, Status> {
        let who = who(&request)?;
        let WorkspacePluginRequest { name, plugins, .. } = request.into_inner();
        let all = self.supervisor.plugins().keys().map(ToString::to_string).collect();
        let author = author(&who, &name);
        let set = self.data().disable_in_workspace(author, &name, plugins, all).await;
        Ok(Response::new(data::workspace(&name, Some(&*set.map_err(data_error)?))))
    }

    async fn reopen_workspaces(
        &self,
        request: Request<ReopenWorkspacesRequest>,
    ) -> Result<Response<ReopenWorkspacesResponse>, Status> {
        let author = author(&who(&request)?, "");
        let reopened = self.data().reopen_workspaces(author).await.map_err(data_error)?;
        Ok(Response::new(ReopenWorkspacesResponse { reopened }))
    }
}
