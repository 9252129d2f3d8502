//! `stockade.worker.v1.Worker`: what local plugins speak over their descriptor.

use std::{error::Error, net::SocketAddr, pin::Pin};

use futures_util::{Stream, StreamExt as _};
use serde_json::{Value, json};
use stockade_proto::worker::{
    self as wire, FromPlugin, ToPlugin, from_plugin, init_update,
    invoke::Kind,
    to_plugin,
    worker_server::{Worker, WorkerServer},
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Server};

use crate::{
    service::{Failure, Service, offer},
    signature,
};

pub(crate) async fn serve(address: SocketAddr) -> Result<(), Box<dyn Error>> {
    let worker = WorkerServer::new(Remote { service: Service::default() });
    Server::builder().add_service(worker).serve(address).await?;
    Ok(())
}

struct Remote {
    service: Service,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    let header = |name: &str| request.metadata().get(name)?.to_str().ok();
    match signature::check(header, b"") {
        true => Ok(()),
        false => Err(Status::unauthenticated("the signature is missing or wrong")),
    }
}

#[tonic::async_trait]
impl Worker for Remote {
    type InitStream = Replies<wire::InitUpdate>;
    type CallsStream = Replies<FromPlugin>;

    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloResponse>, Status> {
        check(&request)?;
        let hello = request.into_inner();
        Ok(Response::new(wire::HelloResponse {
            protocol_version: 1,
            supported_versions: vec![1],
            nonce: hello.nonce,
            sdk: "remote-example/1".to_owned(),
            features: Vec::new(),
        }))
    }

    async fn init(
        &self,
        request: Request<wire::InitRequest>,
    ) -> Result<Response<Self::InitStream>, Status> {
        check(&request)?;
        let update = wire::InitUpdate { update: Some(init_update::Update::Ready(ready())) };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(update)))))
    }

    async fn calls(
        &self,
        request: Request<Streaming<ToPlugin>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        check(&request)?;
        let mut incoming = request.into_inner();
        let (answers, outgoing) = mpsc::unbounded_channel();
        let service = self.service.clone();
        tokio::spawn(async move {
            while let Some(Ok(message)) = incoming.next().await {
                let frame = match message.frame {
                    Some(to_plugin::Frame::Invoke(invoke)) => answer(&service, &invoke),
                    Some(to_plugin::Frame::Ping(ping)) => {
                        from_plugin::Frame::Pong(wire::Pong { id: ping.id })
                    }
                    Some(to_plugin::Frame::Cancel(_) | to_plugin::Frame::Credit(_)) | None => {
                        continue;
                    }
                };
                if answers.send(FromPlugin { frame: Some(frame) }).is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(outgoing).map(Ok))))
    }

    async fn shutdown(
        &self,
        _: Request<wire::ShutdownRequest>,
    ) -> Result<Response<wire::ShutdownResponse>, Status> {
        Ok(Response::new(wire::ShutdownResponse {}))
    }
}

/// The offer as messages.
fn ready() -> wire::InitReady {
    let offer = offer();
    let list = |key: &str| offer[key].as_array().cloned().unwrap_or_default();
    let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let json_text = |value: &Value| match value {
        Value::Null => String::new(),
        value => value.to_string(),
    };
    let texts = |value: &Value| -> Vec<String> {
        let items = value.as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    wire::InitReady {
        tools: list("tools")
            .iter()
            .map(|tool| wire::ToolSpec {
                name: text(tool, "name"),
                description: text(tool, "description"),
                input_schema: json_text(&tool["input_schema"]),
                output_schema: json_text(&tool["output_schema"]),
                ..wire::ToolSpec::default()
            })
            .collect(),
        conditions: list("conditions")
            .iter()
            .map(|one| wire::Condition {
                name: text(one, "name"),
                description: text(one, "description"),
                required_context: texts(&one["required_context"]),
            })
            .collect(),
        effects: list("effects")
            .iter()
            .map(|one| wire::Effect {
                name: text(one, "name"),
                description: text(one, "description"),
                default_params: one["default_params"].to_string().into(),
            })
            .collect(),
        simulation_configs: list("simulation_configs")
            .iter()
            .map(|one| wire::SimulationConfig {
                name: text(one, "name"),
                description: text(one, "description"),
                priority: one["priority"].as_i64().unwrap_or(0) as i32,
            })
            .collect(),
        event_handlers: vec![wire::EventHandler {
            name: "events".to_owned(),
            patterns: texts(&offer["events"]),
        }],
        providers: Vec::new(),
    }
}

fn run(service: &Service, invoke: &wire::Invoke) -> Result<Value, Failure> {
    let args: Value = serde_json::from_slice(&invoke.args).unwrap_or_default();
    match invoke.kind() {
        Kind::Tool => service.run_tool(&invoke.tool, &args),
        Kind::Condition => service.evaluate(&invoke.tool, &args["context"]).map(Value::from),
        Kind::Effect => service.apply(&invoke.tool, &args["context"], &args["params"]),
        Kind::SimulationConfig => service.configure(&invoke.tool),
        Kind::Events => {
            let batch = invoke.events.iter().flat_map(|batch| &batch.events);
            batch.for_each(|event| service.hear(&event.name));
            Ok(json!({"failed": 0}))
        }
        Kind::Provider => Err(("KeyError", "it provides nothing".to_owned())),
    }
}

fn answer(service: &Service, invoke: &wire::Invoke) -> from_plugin::Frame {
    let call_id = invoke.call_id;
    match run(service, invoke) {
        Ok(result) => from_plugin::Frame::Done(wire::Done {
            call_id,
            result: result.to_string().into(),
            attachments: Vec::new(),
        }),
        Err((kind, message)) => from_plugin::Frame::Failed(wire::Failed {
            call_id,
            error_type: kind.to_owned(),
            message,
            traceback: String::new(),
        }),
    }
}
