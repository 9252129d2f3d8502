//! Calls over gRPC: unary, streaming, many on one stream.

use std::collections::HashMap;

use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stockade_proto::{
    limits,
    v1::{
        CallRequest, CallsRequest, CallsResponse, CancelCall, calls_request,
        tools_client::ToolsClient,
    },
};
use stockade_tests::{Daemon, Options};
use tokio_stream::{Stream, StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::{
    codec::{BufferSettings, Codec},
    transport::{Channel, Endpoint},
};
use tonic_prost::{ProstDecoder, ProstEncoder};
use tonic_types::StatusExt as _;

fn request(tool: &str, args: Value) -> CallRequest {
    CallRequest {
        plugin: "good".into(),
        tool: tool.into(),
        args: args.to_string().into(),
        ..CallRequest::default()
    }
}

#[tokio::test]
async fn a_unary_failure_carries_its_details() {
    let daemon = Options::new().start().await;
    let mut tools = daemon.tools();
    let reply = tools.call(request("ping", json!({"text": "x"}))).await.expect("call").into_inner();
    assert_eq!((&*reply.result, reply.generation), (&b"\"x\""[..], 1));
    let status = tools.call(request("raise", json!({"text": "no"}))).await.expect_err("raised");
    assert_eq!((status.code(), status.message()), (tonic::Code::Internal, "no"));
    let info = status.get_error_details().error_info().expect("ErrorInfo").clone();
    assert_eq!((info.reason.as_str(), info.domain.as_str()), ("ValueError", "stockade"));
    assert_eq!(info.metadata["plugin"], "good");
    assert_eq!(info.metadata["delivered"], "true");
    let status = tools.call(request("exit", json!({"n": 9}))).await.expect_err("died");
    assert_eq!(status.code(), tonic::Code::Aborted);
    let info = status.get_error_details().error_info().expect("ErrorInfo").clone();
    assert_eq!(info.metadata["cause"], "exit_code");
    // A deadline of gRPC's own.
    daemon.serving("good").await;
    let mut late = tonic::Request::new(request("wait", json!({"n": 60_000})));
    late.set_timeout(std::time::Duration::from_millis(100));
    let status = tools.call(late).await.expect_err("late");
    let codes = [tonic::Code::DeadlineExceeded, tonic::Code::Cancelled];
    assert!(codes.contains(&status.code()), "{status:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn items_and_progress_come_before_the_outcome() {
    let daemon = Options::new().start().await;
    let outcome = daemon.call("good", "count", json!({"n": 500})).await;
    assert_eq!(outcome.items, (0..500).map(Value::from).collect::<Vec<_>>());
    assert!(!outcome.progress.is_empty());
    assert_eq!(outcome.unwrap(), 500);
    daemon.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_holds_back_the_tool_alone() {
    let daemon = Options::new().start().await;
    let mut slow = daemon
        .tools()
        .call_stream(request("count", json!({"n": 100_000})))
        .await
        .expect("call")
        .into_inner();
    slow.message().await.expect("message").expect("first");
    // Others on the same plugin are not held back.
    for _ in 0..50 {
        daemon.call("good", "ping", json!({"text": "x"})).await.unwrap();
    }
    assert_eq!(daemon.health("good").await.in_flight, 1, "the tool waits for its credit");
    drop(slow);
    daemon.until("good", |health| health.in_flight == 0).await;
    daemon.stop().await;
}

/// A plugin's own library knows what the daemon reads.
#[tokio::test]
async fn results_are_as_large_as_max_result_allows() {
    let bounds = "max_result = \"100MiB\"\nmax_buffered = \"2GiB\"";
    let daemon = Options::new().config(bounds).rogue("large", "").start().await;
    daemon.serving("large").await;
    let result = daemon.call("large", "huge", json!({"n": 80})).await;
    assert!(result.ok, "{}", result.error);
    let beyond = daemon.call("large", "huge", json!({"n": 105})).await;
    assert!(beyond.error.contains("raise max_result"), "{}", beyond.error);
    daemon.stop().await;
}

#[tokio::test]
async fn json_has_a_bound_of_its_depth() {
    let daemon = Options::new().start().await;
    daemon.serving("good").await;
    // The arguments themselves are one of them.
    let deep = |depth: usize| (1..depth).fold(json!(1), |inner, _| json!([inner]));
    let args = |depth| json!({"text": "t", "deep": deep(depth)});
    let most = daemon.call("good", "echo", args(limits::JSON_DEPTH)).await;
    assert!(most.ok, "{most:?}");
    let beyond = daemon.call("good", "echo", args(limits::JSON_DEPTH + 1)).await;
    assert_eq!(beyond.failed().0, "InvalidArguments");
    assert!(beyond.error.contains("more than 127 objects and arrays"), "{}", beyond.error);
    daemon.stop().await;
}

#[tokio::test]
async fn attachments_travel_as_bytes() {
    let daemon = Options::new().start().await;
    let blob: Vec<u8> = (0..2_000_000u32).map(|n| n as u8).collect();
    let outcome =
        daemon.call_with("good", "echo", json!({"text": "t"}), &[("blob", &blob)], 0).await;
    assert_eq!(outcome.result, json!({"text": "t", "blob": "attachment:blob"}));
    assert_eq!(outcome.attachments, [("blob".to_owned(), blob)]);
    let outcome =
        daemon.call_with("good", "echo", json!({"text": "t"}), &[("other", b"x")], 0).await;
    assert_eq!(outcome.failed().0, "InvalidArguments");
    assert_eq!(outcome.error, "other: no binary argument of this tool (blob)");
    daemon.stop().await;
}

/// Each message in a frame of its own, as most clients of gRPC send them.
#[derive(Default)]
struct OneByOne;

impl Codec for OneByOne {
    type Encode = CallsRequest;
    type Decode = CallsResponse;
    type Encoder = ProstEncoder<CallsRequest>;
    type Decoder = ProstDecoder<CallsResponse>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(BufferSettings::new(128, 1))
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::default()
    }
}

/// A connection whose client keeps few answers that nobody reads.
async fn small_window(daemon: &Daemon) -> Channel {
    let socket = daemon.socket.clone();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::from_static("http://localhost").initial_stream_window_size(65_535);
    endpoint.connect_with_connector(connect).await.expect("connect")
}

async fn one_by_one(
    channel: Channel,
    requests: impl Stream<Item = CallsRequest> + Send + 'static,
) -> tonic::Streaming<CallsResponse> {
    let mut grpc = tonic::client::Grpc::new(channel);
    grpc.ready().await.expect("ready");
    let path = PathAndQuery::from_static("/stockade.v1.Tools/Calls");
    let answers = grpc.streaming(tonic::Request::new(requests), path, OneByOne).await;
    answers.expect("calls").into_inner()
}

/// What became of calls that were sent without a pause; the first of them was cancelled
/// when `until` answers had come.
async fn unpaced(daemon: &Daemon, plugin: &str, calls: u64, until: u64) -> HashMap<String, u64> {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    for id in 0..calls {
        let (tool, args) = match id {
            0 => ("wait", json!({"n": 600_000})),
            _ => ("ping", json!({"text": "x"})),
        };
        let call = CallRequest { plugin: plugin.into(), ..request(tool, args) };
        let frame = Some(calls_request::Frame::Call(call));
        sender.send(CallsRequest { id, frame }).expect("send");
    }
    let mut answers = one_by_one(daemon.channel(), UnboundedReceiverStream::new(receiver)).await;
    let mut sender = Some(sender);
    let (mut outcomes, mut came) = (HashMap::<String, u64>::new(), 0);
    loop {
        if came == until
            && let Some(sender) = sender.take()
        {
            let frame = Some(calls_request::Frame::Cancel(CancelCall {}));
            sender.send(CallsRequest { id: 0, frame }).expect("cancel");
        }
        let Some(answer) = answers.message().await.expect("answer") else { break };
        came += 1;
        let outcome = answer.outcome.expect("outcome");
        *outcomes.entry(outcome.error_type).or_default() += 1;
    }
    assert_eq!(came, calls, "{outcomes:?}");
    assert_eq!(outcomes.remove("Cancelled"), Some(1), "{outcomes:?}");
    let ping = request("ping", json!({"text": "x"}));
    daemon.tools().call(ping).await.expect("the connection goes on");
    outcomes
}

#[tokio::test]
async fn a_stream_takes_calls_without_a_pause() {
    let long = "concurrency = 1\nqueue = { size = 10000, timeout = \"10m\" }";
    let daemon = Options::new().rogue("x", long).start().await;
    daemon.serving("x").await;
    // All that a queue does not take is refused, and the connection goes on.
    let outcomes = unpaced(&daemon, "good", 20_000, 10_000).await;
    assert_eq!(outcomes.values().sum::<u64>(), 19_999, "{outcomes:?}");
    assert!(outcomes.keys().all(|kind| ["", "QueueFull"].contains(&kind.as_str())), "{outcomes:?}");
    // Of one stream so many wait, and each further one is told.
    let outcomes = unpaced(&daemon, "x", 6_000, 1_000).await;
    let (ran, refused) = (outcomes[""], outcomes["QueueFull"]);
    assert!(ran >= limits::CALLS_WAITING as u64 && refused >= 1_000, "{outcomes:?}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_stream_whose_answers_nobody_reads_ends_and_its_connection_goes_on() {
    let daemon = Options::new().start().await;
    let (sent, all_sent) = tokio::sync::oneshot::channel();
    let mut sent = Some(sent);
    let many = limits::ANSWERS as u64 * 2;
    let requests = tokio_stream::iter(0..=many).map(move |id| {
        if id == many {
            let _ = sent.take().map(|sent| sent.send(()));
        }
        let call = request("ping", json!({"text": "x"}));
        CallsRequest { id, frame: Some(calls_request::Frame::Call(call)) }
    });
    let requests = requests.chain(tokio_stream::pending());
    let channel = small_window(&daemon).await;
    let mut answers = one_by_one(channel.clone(), requests).await;
    all_sent.await.expect("everything is read");
    let mut came = 0;
    let status = loop {
        match answers.message().await {
            Ok(Some(_)) => came += 1,
            Ok(None) => panic!("it ended without a reason after {came} answers"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), tonic::Code::ResourceExhausted, "{status:?} after {came} answers");
    assert!((limits::ANSWERS..2 * limits::ANSWERS).contains(&came), "{came} answers");
    let ping = request("ping", json!({"text": "x"}));
    ToolsClient::new(channel).call(ping).await.expect("the connection goes on");
    daemon.stop().await;
}

/// An id that is under way is no other call's, and who goes leaves nothing behind.
#[tokio::test]
async fn an_id_that_is_under_way_is_refused() {
    let many = "concurrency = 4\nqueue = { size = 100, timeout = \"10m\" }";
    let daemon = Options::new().rogue("x", many).start().await;
    daemon.serving("x").await;
    let requests = tokio_stream::iter(0..60).map(|_| {
        let wait = request("wait", json!({"n": 600_000}));
        let call = CallRequest { plugin: "x".into(), ..wait };
        CallsRequest { id: 7, frame: Some(calls_request::Frame::Call(call)) }
    });
    let nothing = tokio_stream::once(CallsRequest { id: 8, frame: None });
    let requests = requests.chain(nothing);
    let mut answers = one_by_one(daemon.channel(), requests).await;
    for _ in 0..60 {
        let answer = answers.message().await.expect("message").expect("answer");
        let outcome = answer.outcome.expect("outcome");
        assert_eq!(outcome.error_type, "InvalidArguments", "{outcome:?}");
    }
    daemon.until("x", |health| health.in_flight == 1 && health.queued == 0).await;
    drop(answers);
    daemon.until("x", |health| health.in_flight == 0 && health.queued == 0).await;
    daemon.stop().await;
}

#[tokio::test]
async fn many_calls_share_one_stream() {
    let daemon = Options::new().start().await;
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut answers = daemon
        .tools()
        .calls(UnboundedReceiverStream::new(receiver))
        .await
        .expect("calls")
        .into_inner();
    let send = |id: u64, tool: &str, args: Value| {
        let frame = Some(calls_request::Frame::Call(request(tool, args)));
        sender.send(CallsRequest { id, frame }).expect("send");
    };
    send(1000, "wait", json!({"n": 600_000}));
    for id in 0..200 {
        send(id, "ping", json!({"text": id.to_string()}));
    }
    send(500, "raise", json!({"text": "no"}));
    send(501, "nothing", json!({}));
    let mut got = HashMap::new();
    while got.len() < 202 {
        let answer = answers.message().await.expect("message").expect("answer");
        got.insert(answer.id, answer.outcome.expect("outcome"));
    }
    for id in 0..200 {
        assert_eq!(*got[&id].result, *format!("\"{id}\"").as_bytes());
    }
    assert_eq!((got[&500].error_type.as_str(), got[&500].delivered), ("ValueError", true));
    assert_eq!((got[&501].error_type.as_str(), got[&501].delivered), ("ToolNotFound", false));
    let cancel = calls_request::Frame::Cancel(CancelCall {});
    sender.send(CallsRequest { id: 1000, frame: Some(cancel) }).expect("cancel");
    daemon.until("good", |health| health.in_flight == 0).await;
    let answer = answers.message().await.expect("message").expect("answer");
    assert_eq!(
        (answer.id, answer.outcome.expect("outcome").error_type.as_str()),
        (1000, "Cancelled")
    );
    // A client that has said all still gets its answers.
    for id in 2000..2010 {
        let frame = Some(calls_request::Frame::Call(request("sleep", json!({"n": 100}))));
        sender.send(CallsRequest { id, frame }).expect("send");
    }
    drop(sender);
    for _ in 2000..2010 {
        let answer = answers.message().await.expect("message").expect("answer");
        assert!(answer.outcome.expect("outcome").ok);
    }
    assert!(answers.message().await.expect("end").is_none());
    daemon.stop().await;
}

#[tokio::test]
async fn a_call_waits_for_a_plugin_that_starts() {
    let daemon = Options::new().rogue("rogue", "args = [\"--slow-init\", \"5\"]").start().await;
    let outcome = daemon.call("rogue", "pid", json!({})).await;
    assert!(outcome.unwrap().is_u64());
    let outcome = daemon.call_with("rogue", "sleep", json!({"n": 1}), &[], 60_000).await;
    assert_eq!(outcome.unwrap(), 1);
    daemon.admin().restart_plugin(daemon.action_now("rogue")).await.expect("restart");
    daemon.until("rogue", |health| health.substate == "STARTING").await;
    let outcome = daemon.call_with("rogue", "pid", json!({}), &[], 20).await;
    assert_eq!(outcome.failed().0, "TimeoutError");
    assert!(outcome.error.starts_with("The plugin was not ready within the call's deadline"));
    assert!(!outcome.delivered);
    daemon.stop().await;
}
