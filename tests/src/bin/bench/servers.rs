//! What is compared against: one process, one unary tonic call, a unix socket.

use std::pin::Pin;

use stockade_proto::v1::{
    CallRequest, CallResponse, CallUpdate, CallsRequest, CallsResponse,
    tools_server::{Tools, ToolsServer},
};
use tokio_stream::{Stream, wrappers::UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

struct Echo;

type Never<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Tools for Echo {
    type CallStreamStream = Never<CallUpdate>;
    type CallsStream = Never<CallsResponse>;

    async fn call(&self, request: Request<CallRequest>) -> Result<Response<CallResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(CallResponse {
            plugin: request.plugin,
            tool: request.tool,
            result: request.args,
            ..CallResponse::default()
        }))
    }

    async fn call_stream(
        &self,
        _: Request<CallRequest>,
    ) -> Result<Response<Self::CallStreamStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn calls(
        &self,
        _: Request<Streaming<CallsRequest>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// Serves until killed.
pub async fn direct(socket: &str) {
    let _ = std::fs::remove_file(socket);
    let listener = tokio::net::UnixListener::bind(socket).expect("bind");
    tonic::transport::Server::builder()
        .add_service(ToolsServer::new(Echo))
        .serve_with_incoming(UnixListenerStream::new(listener))
        .await
        .expect("serve");
}
