//! The measuring ends: each prints `p50 …` or `rate …` and exits.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use stockade::{Config, Supervisor, ToolCall, lifecycle::State, plugin::Command};
use stockade_proto::v1::{
    Attachment, CallRequest, CallsRequest, EvaluateConditionRequest, calls_request,
    extensions_client::ExtensionsClient, tools_client::ToolsClient,
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};

pub async fn connect(socket: &str) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .expect("connect")
}

/// Two hundred bytes of arguments.
fn args() -> String {
    format!("{{\"text\":\"{}\"}}", "x".repeat(189))
}

pub fn request() -> CallRequest {
    CallRequest {
        plugin: "minimal".into(),
        tool: "ping".into(),
        args: args().into(),
        ..CallRequest::default()
    }
}

pub fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    times[((times.len() as f64 * share) as usize).min(times.len() - 1)]
}

fn print(mut times: Vec<Duration>) {
    println!("p50 {}", percentile(&mut times, 0.5).as_nanos() as f64 / 1000.0);
    println!("p99 {}", percentile(&mut times, 0.99).as_nanos() as f64 / 1000.0);
}

/// One in flight.
pub async fn unary(socket: &str, calls: usize) {
    let mut client = ToolsClient::new(connect(socket).await);
    let mut times = Vec::with_capacity(calls);
    for n in 0..calls + calls / 10 {
        let request = request();
        let begin = Instant::now();
        client.call(request).await.expect("call");
        if n >= calls / 10 {
            times.push(begin.elapsed());
        }
    }
    print(times);
}

/// One in flight, as often as a bystander asks.
pub async fn pace(socket: &str, seconds: u64) {
    let mut client = ToolsClient::new(connect(socket).await);
    let (mut times, end) = (Vec::new(), Instant::now() + Duration::from_secs(seconds));
    while Instant::now() < end {
        let begin = Instant::now();
        client.call(request()).await.expect("call");
        times.push(begin.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    print(times);
}

/// A condition, one in flight.
pub async fn condition(socket: &str, calls: usize) {
    let mut client = ExtensionsClient::new(connect(socket).await);
    let mut times = Vec::with_capacity(calls);
    for n in 0..calls + calls / 10 {
        let request = EvaluateConditionRequest {
            condition_id: "plugin:minimal:is".into(),
            context: args().into(),
            ..EvaluateConditionRequest::default()
        };
        let begin = Instant::now();
        let reply = client.evaluate_condition(request).await.expect("reply").into_inner();
        assert!(reply.result, "{}", reply.reason);
        if n >= calls / 10 {
            times.push(begin.elapsed());
        }
    }
    print(times);
}

/// One in flight, with an attachment of 200 KB.
pub async fn attachment(socket: &str, calls: usize) {
    let mut client = ToolsClient::new(connect(socket).await)
        .max_decoding_message_size(64 << 20)
        .max_encoding_message_size(64 << 20);
    let data = bytes::Bytes::from(vec![7; 200_000]);
    let mut times = Vec::with_capacity(calls);
    for n in 0..calls + calls / 10 {
        let request = CallRequest {
            plugin: "minimal".into(),
            tool: "size".into(),
            attachments: vec![Attachment {
                name: "data".into(),
                data: data.clone(),
                ..Attachment::default()
            }],
            ..CallRequest::default()
        };
        let begin = Instant::now();
        let reply = client.call(request).await.expect("call").into_inner();
        if n >= calls / 10 {
            times.push(begin.elapsed());
        }
        assert_eq!(&reply.result[..], b"200000");
    }
    print(times);
}

/// Thirty-two in flight.
pub async fn parallel(socket: &str, calls: usize) {
    let channel = connect(socket).await;
    let run = async |each: usize| {
        let tasks: Vec<_> = (0..32)
            .map(|_| {
                let mut client = ToolsClient::new(channel.clone());
                tokio::spawn(async move {
                    for _ in 0..each {
                        client.call(request()).await.expect("call");
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.expect("task");
        }
    };
    run(calls / 320).await;
    let begin = Instant::now();
    run(calls / 32).await;
    println!("rate {}", calls as f64 / begin.elapsed().as_secs_f64());
}

/// Thirty-two in flight on one stream.
pub async fn multiplexed(socket: &str, calls: usize) {
    let mut client = ToolsClient::new(connect(socket).await);
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let mut answers =
        client.calls(UnboundedReceiverStream::new(receiver)).await.expect("calls").into_inner();
    let send = |id: u64| {
        let frame = Some(calls_request::Frame::Call(request()));
        sender.send(CallsRequest { id, frame }).expect("send");
    };
    let mut next = 0;
    for _ in 0..32 {
        send(next);
        next += 1;
    }
    let mut begin = Instant::now();
    for done in 0..calls + calls / 10 {
        if done == calls / 10 {
            begin = Instant::now();
        }
        let answer = answers.message().await.expect("message").expect("answer");
        let outcome = answer.outcome.expect("outcome");
        assert!(outcome.ok, "{outcome:?}");
        send(next);
        next += 1;
    }
    println!("rate {}", calls as f64 / begin.elapsed().as_secs_f64());
}

async fn supervisor(place: &str) -> Supervisor {
    let place = Path::new(place);
    let mut config = Config::new(place.join("plugins"), place.join("state"));
    // Only for plugins that ask for it: what the sandbox costs.
    config.allow_unsandboxed = true;
    config.worker = stockade_tests::binary("stockade-worker");
    config.python_host = stockade_tests::target_dir().join("python");
    Supervisor::start(config).await.expect("start")
}

/// One in flight, the supervisor in this process.
pub async fn embedded(place: &str, calls: usize) {
    let supervisor = supervisor(place).await;
    supervisor.ready("minimal", Duration::from_secs(30)).await.expect("ready");
    let args = bytes::Bytes::from(args());
    let mut times = Vec::with_capacity(calls);
    for n in 0..calls + calls / 10 {
        let call = ToolCall {
            plugin: "minimal".into(),
            tool: "ping".into(),
            args: args.clone(),
            ..ToolCall::default()
        };
        let begin = Instant::now();
        let outcome = supervisor.calls().run(call).await;
        if n >= calls / 10 {
            times.push(begin.elapsed());
        }
        assert!(outcome.ok(), "{outcome:?}");
    }
    print(times);
    supervisor.shutdown().await;
}

/// From the wish to start to INITIALIZED: checks, spawn, handshake, init.
pub async fn starts(place: &str, starts: usize) {
    let supervisor = supervisor(place).await;
    supervisor.ready("minimal", Duration::from_secs(30)).await.expect("ready");
    let handle = supervisor.plugin("minimal").expect("minimal");
    let mut snapshots = handle.watch();
    let mut times = Vec::new();
    for n in 0..starts + 5 {
        handle.command(Command::Stop("bench".into())).expect("stop");
        let stopped =
            |s: &std::sync::Arc<stockade::plugin::Snapshot>| s.substate.as_str() == "STOPPED";
        snapshots.wait_for(stopped).await.expect("stopped");
        let begin = Instant::now();
        handle.command(Command::Start("bench".into())).expect("start");
        snapshots.wait_for(|s| s.resting == State::Initialized).await.expect("started");
        if n >= 5 {
            times.push(begin.elapsed());
        }
    }
    print(times);
    supervisor.shutdown().await;
}

/// `python -c pass`, from spawn to exit.
pub fn bare(python: &str, starts: usize) {
    let mut times = Vec::new();
    for n in 0..starts + 5 {
        let begin = Instant::now();
        let mut command = std::process::Command::new(python);
        let status = command.args(["-c", "pass"]).env_clear().status().expect("python");
        assert!(status.success());
        if n >= 5 {
            times.push(begin.elapsed());
        }
    }
    print(times);
}
