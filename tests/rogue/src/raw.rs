//! Misbehaviour on the wire: a worker that is not the SDK's.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::Stream;
use stockade_proto::{
    inherited,
    worker::{
        self as wire, FromPlugin, ToPlugin, from_plugin, init_update, to_plugin,
        worker_server::{Worker, WorkerServer},
    },
};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::bombs;

/// Serves fd 3 in one of these ways.
pub fn serve(mode: &str) {
    use std::os::fd::FromRawFd as _;
    // The rogue owns its descriptor 3, whatever it does with it.
    let socket = unsafe { std::os::unix::net::UnixStream::from_raw_fd(3) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        match mode {
            "silent" => std::future::pending().await,
            "close" => drop(socket),
            "garbage" => {
                use std::io::Write as _;
                let _ = (&socket).write_all(&[0x55; 4096]);
                std::future::pending().await
            }
            "partial" => {
                use std::io::Write as _;
                // Half of an HTTP/2 SETTINGS frame.
                let _ = (&socket).write_all(&[0, 0, 6, 4, 0]);
                std::future::pending().await
            }
            mode => {
                socket.set_nonblocking(true).unwrap();
                let io = tokio::net::UnixStream::from_std(socket).unwrap();
                let service = WorkerServer::new(Raw { mode: mode.to_owned() })
                    .max_encoding_message_size(usize::MAX);
                let _ = inherited::serve(io, service).await;
            }
        }
        if mode == "close" {
            std::future::pending::<()>().await;
        }
    });
}

struct Raw {
    mode: String,
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Worker for Raw {
    type InitStream = Replies<wire::InitUpdate>;
    type CallsStream = Replies<FromPlugin>;

    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloResponse>, Status> {
        let hello = request.into_inner();
        let mut reply = wire::HelloResponse {
            protocol_version: 1,
            supported_versions: vec![1],
            nonce: hello.nonce,
            sdk: "rogue".into(),
            features: Vec::new(),
        };
        match self.mode.as_str() {
            "wrong-nonce" => reply.nonce = "guessed".into(),
            "new-version" => {
                reply.protocol_version = 0;
                reply.supported_versions = vec![7, 8];
            }
            "old-version" => {
                reply.protocol_version = 0;
                reply.supported_versions = vec![0];
            }
            "huge-hello" => reply.sdk = "x".repeat(100 << 20),
            "no-hello" => std::future::pending().await,
            "die-after-hello" => {
                tokio::spawn(async {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    std::process::exit(4);
                });
            }
            _ => {}
        }
        Ok(Response::new(reply))
    }

    async fn init(
        &self,
        _: Request<wire::InitRequest>,
    ) -> Result<Response<Self::InitStream>, Status> {
        if self.mode == "die-after-hello" {
            std::future::pending::<()>().await;
        }
        let one = |update| {
            let update = wire::InitUpdate { update: Some(update) };
            let stream: Self::InitStream = Box::pin(tokio_stream::once(Ok(update)));
            Ok(Response::new(stream))
        };
        if let Some(failed) = bombs::failure(&self.mode) {
            return one(init_update::Update::Failed(failed));
        }
        let mut tool = wire::ToolSpec {
            name: if self.mode == "forge" { "forge" } else { "t" }.into(),
            output_schema: match self.mode.as_str() {
                "forge" => String::new(),
                _ => r#"{"type":"integer"}"#.into(),
            },
            input_schema: match self.mode.as_str() {
                "bad-schema" => r#"{"type":"nonsense"}"#.into(),
                _ => String::new(),
            },
            ..wire::ToolSpec::default()
        };
        bombs::schemas(&self.mode, &mut tool);
        one(init_update::Update::Ready(wire::InitReady { tools: vec![tool], ..Default::default() }))
    }

    async fn calls(
        &self,
        request: Request<Streaming<ToPlugin>>,
    ) -> Result<Response<Self::CallsStream>, Status> {
        let mut incoming = request.into_inner();
        let (sender, receiver) = mpsc::unbounded_channel();
        let mode = self.mode.clone();
        // Said, and not yet on its way.
        let waiting = Arc::new(AtomicUsize::new(0));
        let said = waiting.clone();
        tokio::spawn(async move {
            let say = |frame| {
                said.fetch_add(1, Ordering::Relaxed);
                let _ = sender.send(FromPlugin { frame: Some(frame) });
            };
            if mode == "early-pong" {
                // The answer to all pings that will ever be.
                say(from_plugin::Frame::Pong(wire::Pong { id: u64::MAX }));
            }
            while let Some(Ok(message)) = incoming.next().await {
                match message.frame {
                    Some(to_plugin::Frame::Ping(ping)) => {
                        say(from_plugin::Frame::Pong(wire::Pong { id: ping.id }));
                    }
                    Some(to_plugin::Frame::Invoke(invoke)) => {
                        answer(&mode, invoke.call_id, &say, &said).await;
                    }
                    _ => {}
                }
            }
        });
        let frames = UnboundedReceiverStream::new(receiver).map(move |frame| {
            waiting.fetch_sub(1, Ordering::Relaxed);
            Ok(frame)
        });
        Ok(Response::new(Box::pin(frames)))
    }

    async fn shutdown(
        &self,
        _: Request<wire::ShutdownRequest>,
    ) -> Result<Response<wire::ShutdownResponse>, Status> {
        Err(Status::unimplemented("rogue"))
    }
}

async fn answer(
    mode: &str,
    call_id: u64,
    say: &impl Fn(from_plugin::Frame),
    waiting: &AtomicUsize,
) {
    if let Some(done) = bombs::result(mode, call_id) {
        return say(from_plugin::Frame::Done(done));
    }
    let done = |call_id, result: &[u8]| {
        from_plugin::Frame::Done(wire::Done {
            call_id,
            result: result.to_vec().into(),
            attachments: Vec::new(),
        })
    };
    match mode {
        "forge" => {
            let report = crate::forge::report().await;
            say(done(call_id, report.to_string().as_bytes()));
        }
        "deaf" => {
            crate::forge::asks_and_reads_nothing().await;
            say(done(call_id, b"42"));
        }
        "crumbs-to-host" => {
            crate::crumbs::ask().await;
            say(done(call_id, b"42"));
        }
        "crumbs" => crate::crumbs::answer().await,
        "no-answer" => {}
        "early-pong" => drop(unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) }),
        "tracebacks" => tracebacks(say, waiting).await,
        "not-json" => say(done(call_id, b"{oops")),
        "wrong-schema" => say(done(call_id, b"\"text\"")),
        "huge-message" => say(done(call_id, &vec![b'1'; 100 << 20])),
        "flood" => {
            for n in 0..2_000_000u64 {
                say(from_plugin::Frame::Pong(wire::Pong { id: n }));
                if n % 1000 == 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
        "progress-flood" => {
            // No faster than they leave: its own memory is not what is tried.
            for _ in 0..2_000_000u64 {
                while waiting.load(Ordering::Relaxed) > 2000 {
                    tokio::task::yield_now().await;
                }
                let message = "again".into();
                say(from_plugin::Frame::Progress(wire::Progress {
                    call_id,
                    fraction: 0.5,
                    message,
                }));
            }
        }
        "items-without-credit" => {
            for _ in 0..1000 {
                say(from_plugin::Frame::Item(wire::Item {
                    call_id,
                    value: "1".into(),
                    attachments: Vec::new(),
                }));
            }
        }
        "stray" => {
            // Answers to calls that were never made, then the right one, twice.
            say(done(call_id + 1000, b"666"));
            say(done(call_id, b"42"));
            say(done(call_id, b"43"));
        }
        _ => say(done(call_id, b"42")),
    }
}

/// Failures of calls that were never made, each with a long traceback: as many
/// frames as may answer nothing, and no more of them waiting than fit into memory.
async fn tracebacks(say: &impl Fn(from_plugin::Frame), waiting: &AtomicUsize) {
    let traceback = "x\n".repeat(8192);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    loop {
        tick.tick().await;
        if waiting.load(Ordering::Relaxed) > 2000 {
            continue;
        }
        for _ in 0..15 {
            say(from_plugin::Frame::Failed(wire::Failed {
                call_id: u64::MAX,
                error_type: "E".into(),
                message: String::new(),
                traceback: traceback.clone(),
            }));
        }
    }
}
