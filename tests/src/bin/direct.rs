//! What calls are compared against: one unary tonic call over a unix socket.
//! A program of its own, as a server is in life.

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

fn main() {
    let socket = std::env::args().nth(1).expect("socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("runtime").block_on(async {
        let _ = std::fs::remove_file(&socket);
        let listener = tokio::net::UnixListener::bind(&socket).expect("bind");
        tonic::transport::Server::builder()
            .add_service(ToolsServer::new(Echo))
            .serve_with_incoming(UnixListenerStream::new(listener))
            .await
            .expect("serve");
    });
}
