//! `grpc.health.v1`: one service name per plugin, "" for the daemon.

use std::pin::Pin;

use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_server::Health,
};

use crate::{
    Supervisor,
    capacity::limits,
    gateway::{report::health, watch::Watch},
};

pub(super) struct HealthService {
    supervisor: Supervisor,
    watch: Watch,
}

impl HealthService {
    pub(super) fn new(supervisor: &Supervisor, watch: &Watch) -> Self {
        HealthService { supervisor: supervisor.clone(), watch: watch.clone() }
    }
}

fn status(serving: bool) -> ServingStatus {
    match serving {
        true => ServingStatus::Serving,
        false => ServingStatus::NotServing,
    }
}

/// None for a name that is not known.
fn check(supervisor: &Supervisor, service: &str) -> Option<ServingStatus> {
    if service.is_empty() {
        return Some(status(!supervisor.registry().snapshot().draining));
    }
    let handle = supervisor.plugin(service)?;
    Some(status(health::serving(&handle.snapshot())))
}

/// What is asked for, which no gate has bounded: the message is not ours.
fn name(request: HealthCheckRequest) -> Result<String, Status> {
    let (has, most) = (request.service.len(), limits::NAME);
    match has <= most {
        true => Ok(request.service),
        false => Err(Status::invalid_argument(format!(
            "service has {has} bytes; a plugin's name has at most {most}"
        ))),
    }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status as i32 }
}

#[tonic::async_trait]
impl Health for HealthService {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = name(request.into_inner())?;
        let status = check(&self.supervisor, &service)
            .ok_or_else(|| Status::not_found(format!("Plugin '{service}' not found")))?;
        Ok(Response::new(response(status)))
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let place = self.watch.grpc_place(&request)?;
        let service = name(request.into_inner())?;
        let supervisor = self.supervisor.clone();
        let mut registry = supervisor.registry().watch();
        let mut pictures = self.watch.pictures();
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let _place = place;
            let mut last = None;
            loop {
                // A name that is not known yet may come: SERVICE_UNKNOWN.
                let now = match service.is_empty() {
                    true => check(&supervisor, ""),
                    false => pictures.borrow_and_update().serving(&service).map(status),
                };
                let now = now.unwrap_or(ServingStatus::ServiceUnknown);
                if last != Some(now) {
                    last = Some(now);
                    if sender.send(Ok(response(now))).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    changed = pictures.changed() => if changed.is_err() { return },
                    changed = registry.changed(), if service.is_empty() => {
                        if changed.is_err() { return }
                    }
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
