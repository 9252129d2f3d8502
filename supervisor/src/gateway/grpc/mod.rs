//! The gRPC services of `stockade.v1`, grpc.health.v1 and reflection.

mod admin;
pub(super) mod data;
mod events;
mod extensions;
mod health;
mod hosting;
mod multiplexed;
pub(super) mod observability;
mod plugins;
mod tools;
mod wire;
pub(super) mod workspaces;

use stockade_proto::{
    DESCRIPTORS,
    v1::{
        admin_server::AdminServer, data_server::DataServer, events_server::EventsServer,
        extensions_server::ExtensionsServer, hosting_server::HostingServer,
        observability_server::ObservabilityServer, plugins_server::PluginsServer,
        workspaces_server::WorkspacesServer,
    },
};
use tonic::{Request, Status, service::Routes};
use tonic_health::pb::health_server::HealthServer;

use crate::{
    Supervisor,
    capacity::limits,
    gateway::{
        door::{Caller, NOT_HERE},
        watch::Watch,
    },
};

pub(super) use tools::ToolsService;

/// Messages are a little larger than the payloads they hold.
const ENVELOPE: usize = 1 << 20;

/// A server's answer to a plugin, and its envelope.
pub(super) const PROVIDED: usize = limits::HOST_MESSAGE + (1 << 10);

/// Who asks, if it may act as an operator.
fn who<T>(request: &Request<T>) -> Result<String, Status> {
    let who = request.extensions().get::<Caller>().and_then(Caller::admin);
    who.ok_or_else(|| Status::permission_denied(NOT_HERE))
}

/// The service of calls, apart from the others: its path is the shortest.
pub(super) fn tools(supervisor: &Supervisor) -> ToolsService {
    ToolsService::new(supervisor, supervisor.config().max_request + ENVELOPE)
}

/// Everything else.
pub(super) fn routes(supervisor: &Supervisor, watch: &Watch) -> Routes {
    let mut routes = Routes::default()
        .add_service(PluginsServer::new(plugins::PluginsService::new(supervisor, watch)))
        .add_service(AdminServer::new(admin::AdminService::new(supervisor)))
        .add_service(EventsServer::new(events::EventsService::new(supervisor, watch)))
        .add_service(ExtensionsServer::new(extensions::ExtensionsService::new(supervisor)))
        .add_service(
            HostingServer::new(hosting::HostingService::new(supervisor, watch))
                .max_decoding_message_size(PROVIDED),
        )
        .add_service(DataServer::new(data::DataService::new(supervisor)))
        .add_service(WorkspacesServer::new(workspaces::WorkspacesService::new(supervisor)))
        .add_service(ObservabilityServer::new(observability::ObservabilityService::new(supervisor)))
        .add_service(HealthServer::new(health::HealthService::new(supervisor, watch)));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    if let Ok(service) = reflection().build_v1() {
        routes = routes.add_service(service);
    }
    if let Ok(service) = reflection().build_v1alpha() {
        routes = routes.add_service(service);
    }
    routes
}
