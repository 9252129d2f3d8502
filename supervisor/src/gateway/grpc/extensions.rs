//! `stockade.v1.Extensions`: conditions, effects, simulation configuration.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use stockade_proto::v1::{
    ApplyEffectRequest, ApplyEffectResponse, BuildSimulationConfigRequest,
    BuildSimulationConfigResponse, EnabledPlugins, EvaluateConditionRequest,
    EvaluateConditionResponse, ListExtensionsRequest, ListExtensionsResponse, SkippedConfig,
    extensions_server::Extensions,
};
use tonic::{Request, Response, Status};

use super::super::status;
use crate::{
    Supervisor,
    gateway::{body::Reservation, report, texts::turn, whole},
    services::Unbuilt,
};

pub(super) struct ExtensionsService {
    supervisor: Supervisor,
}

impl ExtensionsService {
    pub(super) fn new(supervisor: &Supervisor) -> Self {
        ExtensionsService { supervisor: supervisor.clone() }
    }
}

/// Why it was not asked, or not answered. What is wrong with the request is an error.
fn told(why: Option<(String, String)>) -> Result<(String, String), Status> {
    match why {
        Some((kind, text)) if kind == "InvalidArguments" => Err(Status::invalid_argument(text)),
        why => Ok(why.unwrap_or_default()),
    }
}

fn names(enabled: Option<EnabledPlugins>) -> Option<Arc<BTreeSet<String>>> {
    enabled.map(|only| Arc::new(only.names.into_iter().collect()))
}

fn timeout(ms: u64) -> Option<Duration> {
    (ms > 0).then(|| Duration::from_millis(ms))
}

#[tonic::async_trait]
impl Extensions for ExtensionsService {
    async fn list_extensions(
        &self,
        request: Request<ListExtensionsRequest>,
    ) -> Result<Response<ListExtensionsResponse>, Status> {
        let reservation = request.extensions().get::<Reservation>().cloned();
        let supervisor = self.supervisor.clone();
        let make = move || report::extensions::extensions(&supervisor);
        whole::message(&self.supervisor, reservation, make).await
    }

    async fn evaluate_condition(
        &self,
        request: Request<EvaluateConditionRequest>,
    ) -> Result<Response<EvaluateConditionResponse>, Status> {
        let request = request.into_inner();
        let answer = self
            .supervisor
            .services()
            .evaluate_condition(
                turn(),
                &request.condition_id,
                request.context,
                &request.workspace,
                names(request.enabled_plugins),
                timeout(request.timeout_ms),
            )
            .await;
        let (error_type, reason) = told(answer.why)?;
        Ok(Response::new(EvaluateConditionResponse { result: answer.result, reason, error_type }))
    }

    async fn apply_effect(
        &self,
        request: Request<ApplyEffectRequest>,
    ) -> Result<Response<ApplyEffectResponse>, Status> {
        let request = request.into_inner();
        let answer = self
            .supervisor
            .services()
            .apply_effect(
                turn(),
                &request.effect_id,
                (request.context, request.params),
                &request.workspace,
                names(request.enabled_plugins),
                timeout(request.timeout_ms),
            )
            .await;
        let (error_type, reason) = told(answer.why)?;
        Ok(Response::new(ApplyEffectResponse { result: answer.result, reason, error_type }))
    }

    async fn build_simulation_config(
        &self,
        request: Request<BuildSimulationConfigRequest>,
    ) -> Result<Response<BuildSimulationConfigResponse>, Status> {
        let request = request.into_inner();
        let base = Some(request.base).filter(|base| !base.is_empty());
        let services = self.supervisor.services();
        let enabled = names(request.enabled_plugins);
        let built = services.build_simulation_config(turn(), base, &request.workspace, enabled);
        let built = built.await.map_err(|why| match why {
            Unbuilt::Invalid(why) => Status::invalid_argument(why),
            Unbuilt::Overloaded(why) => status::overloaded(why),
        })?;
        let skipped = built.skipped.into_iter();
        Ok(Response::new(BuildSimulationConfigResponse {
            config: built.config,
            applied: built.applied,
            skipped: skipped
                .map(|(provider_id, reason)| SkippedConfig { provider_id, reason })
                .collect(),
        }))
    }
}
