//! `stockade.v1.Observability`: how plugins have fared.

use stockade_proto::v1::{
    GetMetricsRequest, GetMetricsResponse, ResetMetricsRequest, ResetMetricsResponse,
    observability_server::Observability,
};
use tonic::{Request, Response, Status};

use super::who;
use crate::{Supervisor, gateway::report};

pub(super) struct ObservabilityService {
    supervisor: Supervisor,
}

impl ObservabilityService {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        ObservabilityService { supervisor: supervisor.clone() }
    }
}

/// What the sources' clients know.
pub(crate) fn no_metrics(plugin: &str) -> String {
    format!("Metrics not found for plugin '{plugin}'")
}

/// Forgets what was measured; None: there is no such plugin.
pub(crate) fn reset(supervisor: &Supervisor, plugin: Option<&str>) -> Option<String> {
    match plugin {
        Some(plugin) => {
            supervisor.plugin(plugin)?.metrics().reset();
            Some(format!("Metrics reset for plugin '{plugin}'"))
        }
        None => {
            supervisor.plugins().values().for_each(|handle| handle.metrics().reset());
            Some("All plugin metrics reset".to_owned())
        }
    }
}

#[tonic::async_trait]
impl Observability for ObservabilityService {
    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        who(&request)?;
        let plugin = request.into_inner().plugin_id;
        let mut all = report::metrics::all(&self.supervisor.registry().snapshot());
        if !plugin.is_empty() {
            all.plugins.retain(|name, _| *name == plugin);
            if all.plugins.is_empty() {
                return Err(Status::not_found(no_metrics(&plugin)));
            }
        }
        Ok(Response::new(all))
    }

    async fn reset_metrics(
        &self,
        request: Request<ResetMetricsRequest>,
    ) -> Result<Response<ResetMetricsResponse>, Status> {
        who(&request)?;
        let plugin = request.into_inner().plugin_id;
        let which = Some(plugin.as_str()).filter(|plugin| !plugin.is_empty());
        let message =
            reset(&self.supervisor, which).ok_or_else(|| Status::not_found(no_metrics(&plugin)))?;
        Ok(Response::new(ResetMetricsResponse { status: "ok".to_owned(), message }))
    }
}
