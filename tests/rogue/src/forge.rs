//! A process that claims to be another plugin, in every place where a message
//! could say so.

use std::os::{fd::FromRawFd as _, unix::net::UnixStream as StdStream};

use serde_json::{Value, json};
use stockade_proto::{
    host::{self as wire, host_client::HostClient},
    inherited::Channel,
};
use tokio::net::UnixStream;
use tonic::{Request, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

/// A request that says who asks, in a field that the host does not know.
#[derive(Clone, PartialEq, prost::Message)]
struct ForgedGet {
    #[prost(message, optional, tag = "1")]
    scope: Option<wire::Scope>,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(string, tag = "99")]
    plugin: String,
}

fn verdict<T>(reply: Result<T, Status>, read: impl Fn(T) -> Option<&'static str>) -> Value {
    match reply {
        Ok(reply) => json!(read(reply).unwrap_or("it worked")),
        Err(status) => match status.code() {
            tonic::Code::PermissionDenied
            | tonic::Code::InvalidArgument
            | tonic::Code::Unimplemented => json!("refused"),
            _ => json!(status.to_string()),
        },
    }
}

/// Tries everything; what came of each.
pub async fn report() -> Value {
    // SAFETY: in this mode nothing else uses the host channel.
    let socket = unsafe { StdStream::from_raw_fd(stockade_proto::fds::HOST) };
    socket.set_nonblocking(true).expect("nonblocking");
    let socket = UnixStream::from_std(socket).expect("socket");
    let (channel, connection) = Channel::connect(socket).await.expect("connect");
    tokio::spawn(connection);
    let mut host = HostClient::new(channel.clone());
    let none = |reply: tonic::Response<wire::KvGetResponse>| {
        reply.into_inner().value.is_none().then_some("nothing")
    };
    let mut report = serde_json::Map::new();
    for header in ["plugin", "x-plugin-id", "stockade-plugin", "authorization", "x-forwarded-for"] {
        let mut request = Request::new(wire::KvGetRequest { scope: None, key: "secret".into() });
        request.metadata_mut().insert(header, "victim".parse().expect("value"));
        report.insert(format!("header {header}"), verdict(host.kv_get(request).await, none));
    }
    let path = PathAndQuery::from_static("/stockade.host.v1.Host/KvGet");
    let forged = ForgedGet { scope: None, key: "secret".into(), plugin: "victim".into() };
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let codec = ProstCodec::<ForgedGet, wire::KvGetResponse>::default();
    let reply = grpc.unary(Request::new(forged), path, codec).await;
    report.insert("an unknown field".into(), verdict(reply, none));
    let full = wire::KvGetRequest { scope: None, key: "plugin:victim:secret".into() };
    report.insert("the victim's key".into(), verdict(host.kv_get(full).await, none));
    // Numbers of calls are each channel's own: none of these is this plugin's.
    for call_id in [1, 2, 3, u64::MAX] {
        let scope = Some(wire::Scope { call_id, ..Default::default() });
        let set = wire::KvSetRequest { scope, key: "secret".into(), ..Default::default() };
        let read = |reply: tonic::Response<wire::KvSetResponse>| {
            reply.into_inner().denied.then_some("denied")
        };
        report.insert(format!("call {call_id}"), verdict(host.kv_set(set).await, read));
    }
    let emit = wire::EmitRequest { name: "plugin:victim:x".into(), ..Default::default() };
    report.insert(
        "the victim's event".into(),
        verdict(host.emit(emit).await, |reply| reply.into_inner().denied.then_some("denied")),
    );
    // The operators' services are not on this channel.
    let path = PathAndQuery::from_static("/stockade.v1.Admin/GetDaemon");
    let codec = ProstCodec::<wire::GetSelfRequest, wire::GetSelfResponse>::default();
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let reply = grpc.unary(Request::new(wire::GetSelfRequest {}), path, codec).await;
    report.insert("the operators' services".into(), verdict(reply, |_| None));
    Value::Object(report)
}
