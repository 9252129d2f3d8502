//! A process that claims to be another plugin, in every place where a message
//! could say so. It tells what each attempt came to; the test says what is right.

use std::os::{fd::FromRawFd as _, unix::net::UnixStream as StdStream};

use serde_json::{Value, json};
use stockade_proto::{
    host::{self as wire, host_client::HostClient},
    inherited::Channel,
};
use tokio::net::UnixStream;
use tonic::{Request, Response, Status, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

/// Whom it claims to be, and the key that both plugins use.
const VICTIM: &str = "victim";
const KEY: &str = "secret";

/// Headers that might be believed.
const HEADERS: [&str; 5] =
    ["plugin", "x-plugin-id", "stockade-plugin", "authorization", "x-forwarded-for"];

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

/// The same, for a change.
#[derive(Clone, PartialEq, prost::Message)]
struct ForgedSet {
    #[prost(message, optional, tag = "1")]
    scope: Option<wire::Scope>,
    #[prost(string, tag = "2")]
    key: String,
    #[prost(message, optional, tag = "3")]
    value: Option<wire::KvValue>,
    #[prost(string, tag = "99")]
    plugin: String,
}

/// What came of an attempt: `refused`, `denied` (for want of a permission), or what
/// the answer says.
fn verdict<T>(reply: Result<Response<T>, Status>, read: impl Fn(T) -> String) -> Value {
    match reply {
        Ok(reply) => json!(read(reply.into_inner())),
        Err(status) => match status.code() {
            tonic::Code::PermissionDenied | tonic::Code::Unimplemented => json!("refused"),
            _ => json!(status.to_string()),
        },
    }
}

fn got(reply: wire::KvGetResponse) -> String {
    match (reply.denied, reply.value) {
        (true, _) => "denied".to_owned(),
        (false, None) => "nothing".to_owned(),
        (false, Some(value)) => format!("read {}", String::from_utf8_lossy(&value.data)),
    }
}

fn did(denied: bool, what: &str) -> String {
    if denied { "denied".to_owned() } else { what.to_owned() }
}

fn value(text: &str) -> Option<wire::KvValue> {
    Some(wire::KvValue { data: json!(text).to_string().into(), binary: false })
}

/// As whoever a header names.
fn claiming<T>(header: &'static str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(header, VICTIM.parse().expect("value"));
    request
}

/// The host channel, and its connection, which somebody has to poll.
pub async fn connect() -> (Channel, impl Future<Output = ()> + Send + 'static) {
    // SAFETY: in these modes nothing else uses the host channel.
    let socket = unsafe { StdStream::from_raw_fd(stockade_proto::fds::HOST) };
    socket.set_nonblocking(true).expect("nonblocking");
    let socket = UnixStream::from_std(socket).expect("socket");
    let (channel, connection) = Channel::connect(socket).await.expect("connect");
    (channel, async move {
        let _ = connection.await;
    })
}

/// Calls for large results of another plugin, and never reads one.
pub async fn asks_and_reads_nothing() {
    let (channel, connection) = connect().await;
    tokio::spawn(connection);
    for _ in 0..60 {
        let mut grpc = Grpc::new(channel.clone());
        let request = wire::CallToolRequest {
            plugin: "large".into(),
            tool: "huge".into(),
            args: r#"{"n":7}"#.into(),
            ..Default::default()
        };
        tokio::spawn(async move {
            grpc.ready().await.expect("ready");
            let path = PathAndQuery::from_static("/stockade.host.v1.Host/CallTool");
            let codec = ProstCodec::<wire::CallToolRequest, wire::CallToolResponse>::default();
            let answer = grpc.server_streaming(Request::new(request), path, codec).await;
            std::mem::forget(answer);
        });
    }
}

/// Tries everything; what came of each.
pub async fn report() -> Value {
    let (channel, connection) = connect().await;
    tokio::spawn(connection);
    let mut report = serde_json::Map::new();
    // While it has no value of its own, whatever it reads is somebody else's.
    reads(&channel, &mut report).await;
    foreign_names(&channel, &mut report).await;
    writes(&channel, &mut report).await;
    let mut host = HostClient::new(channel.clone());
    let own = wire::KvGetRequest { scope: None, key: KEY.into() };
    report.insert("its own value".into(), verdict(host.kv_get(own).await, got));
    // The operators' services are not on this channel.
    let path = PathAndQuery::from_static("/stockade.v1.Admin/GetDaemon");
    let codec = ProstCodec::<wire::GetSelfRequest, wire::GetSelfResponse>::default();
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let reply = grpc.unary(Request::new(wire::GetSelfRequest {}), path, codec).await;
    report.insert("operators: admin".into(), verdict(reply, |_| "it worked".to_owned()));
    Value::Object(report)
}

type Report = serde_json::Map<String, Value>;

/// Reads the key as somebody else.
async fn reads(channel: &Channel, report: &mut Report) {
    let mut host = HostClient::new(channel.clone());
    for header in HEADERS {
        let request = claiming(header, wire::KvGetRequest { scope: None, key: KEY.into() });
        report.insert(format!("read: header {header}"), verdict(host.kv_get(request).await, got));
    }
    let path = PathAndQuery::from_static("/stockade.host.v1.Host/KvGet");
    let forged = ForgedGet { scope: None, key: KEY.into(), plugin: VICTIM.into() };
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let codec = ProstCodec::<ForgedGet, wire::KvGetResponse>::default();
    let reply = grpc.unary(Request::new(forged), path, codec).await;
    report.insert("read: an unknown field".into(), verdict(reply, got));
    for call_id in [1, 2, 3, u64::MAX] {
        let scope = Some(wire::Scope { call_id, ..Default::default() });
        let get = wire::KvGetRequest { scope, key: KEY.into() };
        report.insert(format!("read: call {call_id}"), verdict(host.kv_get(get).await, got));
    }
    let list = wire::KvListRequest::default();
    let listed = |reply: wire::KvListResponse| did(reply.denied, &reply.keys.join(" "));
    report.insert("list: its own keys".into(), verdict(host.kv_list(list).await, listed));
}

/// Spells the victim's names out.
async fn foreign_names(channel: &Channel, report: &mut Report) {
    let mut host = HostClient::new(channel.clone());
    let key = format!("plugin:{VICTIM}:{KEY}");
    let get = wire::KvGetRequest { scope: None, key: key.clone() };
    report.insert("foreign: read".into(), verdict(host.kv_get(get).await, got));
    let set = wire::KvSetRequest { key: key.clone(), value: value("forged"), ..Default::default() };
    let reply = host.kv_set(set).await;
    report.insert("foreign: write".into(), verdict(reply, |r| did(r.denied, "written")));
    let swap = wire::KvCompareAndSetRequest {
        key: key.clone(),
        expected: value("theirs"),
        value: value("forged"),
        ..Default::default()
    };
    let reply = host.kv_compare_and_set(swap).await;
    report.insert("foreign: swap".into(), verdict(reply, |r| did(r.denied, "swapped")));
    let delete = wire::KvDeleteRequest { scope: None, key };
    let reply = host.kv_delete(delete).await;
    report.insert("foreign: delete".into(), verdict(reply, |r| did(r.denied, "deleted")));
    let list = wire::KvListRequest { prefix: format!("plugin:{VICTIM}:"), ..Default::default() };
    let reply = host.kv_list(list).await;
    report.insert("foreign: list".into(), verdict(reply, |r| did(r.denied, "listed")));
    let emit = wire::EmitRequest {
        name: format!("plugin:{VICTIM}:x"),
        payload: "1".into(),
        ..Default::default()
    };
    let reply = host.emit(emit).await;
    report.insert("foreign: event".into(), verdict(reply, |r| did(r.denied, "emitted")));
}

/// Changes what it may change, as somebody else.
async fn writes(channel: &Channel, report: &mut Report) {
    let mut host = HostClient::new(channel.clone());
    let set =
        || wire::KvSetRequest { key: KEY.into(), value: value("forged"), ..Default::default() };
    for header in HEADERS {
        let reply = host.kv_set(claiming(header, set())).await;
        let what = verdict(reply, |reply| did(reply.denied, "written"));
        report.insert(format!("write: header {header}"), what);
        let emit =
            wire::EmitRequest { name: "said".into(), payload: "1".into(), ..Default::default() };
        let reply = host.emit(claiming(header, emit)).await;
        let what = verdict(reply, |reply| did(reply.denied, "emitted"));
        report.insert(format!("emit: header {header}"), what);
    }
    let path = PathAndQuery::from_static("/stockade.host.v1.Host/KvSet");
    let forged =
        ForgedSet { scope: None, key: KEY.into(), value: value("forged"), plugin: VICTIM.into() };
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.expect("ready");
    let codec = ProstCodec::<ForgedSet, wire::KvSetResponse>::default();
    let reply = grpc.unary(Request::new(forged), path, codec).await;
    let what = verdict(reply, |reply| did(reply.denied, "written"));
    report.insert("write: an unknown field".into(), what);
    // Numbers of calls are each channel's own: the victim's call in flight has one of
    // these, and a workspace.
    for call_id in [1, 2, 3, u64::MAX] {
        let scope = Some(wire::Scope { call_id, ..Default::default() });
        let reply = host.kv_set(wire::KvSetRequest { scope: scope.clone(), ..set() }).await;
        let what = verdict(reply, |reply| did(reply.denied, "written"));
        report.insert(format!("write: call {call_id}"), what);
        let flag = wire::SetFlagRequest {
            scope,
            entity: "session/1".into(),
            key: "forged".into(),
            value: "1".into(),
        };
        let reply = host.set_flag(flag).await;
        let what = verdict(reply, |reply| did(reply.denied, "written"));
        report.insert(format!("flag: call {call_id}"), what);
    }
}
