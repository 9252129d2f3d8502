//! Plays clients of the port against a whole daemon: HTTP/1 and HTTP/2, every method,
//! lengths that are none, sizes at every bound, requests that stop. Nobody else waits,
//! and nothing stays held.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use stockade_fuzz::{
    house::{self, House, program},
    input::Input,
    speech,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// For one script, and for one answer in it.
const SCRIPT: Duration = Duration::from_millis(400);
const ANSWER: Duration = Duration::from_millis(50);
/// Steps of one script.
const STEPS: usize = 64;

struct Scene {
    house: House,
    address: String,
    methods: Vec<String>,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let write = |plugins: &std::path::Path| {
        house::plugin(plugins, "target", &program("minimal"), "concurrency = 4");
    };
    let house = House::start(write, |config| config.listen = "127.0.0.1:0".parse().ok());
    let address = house.address();
    Scene { house, address, methods: methods() }
});

/// The path of every method that clients can call.
fn methods() -> Vec<String> {
    let files = prost_types::FileDescriptorSet::decode(stockade_proto::DESCRIPTORS);
    let files = files.expect("descriptors").file;
    let services = files.iter().flat_map(|file| {
        let package = file.package();
        file.service.iter().map(move |service| (format!("{package}.{}", service.name()), service))
    });
    services
        .flat_map(|(name, service)| {
            service.method.iter().map(move |method| format!("/{name}/{}", method.name()))
        })
        .collect()
}

const PAGES: [&str; 10] = [
    "/v1/plugins/target/tools/ping/run",
    "/v1/plugins/target/tools/ping/run?text=x",
    "/v1/plugins",
    "/v1/conditions/evaluate",
    "/v1/effects/apply",
    "/v1/simulation-config/build",
    "/v1/plugin-events",
    "/v1/workspaces/x",
    "/v1/kv/target",
    "/v1/events",
];

const TYPES: [&str; 5] = [
    "application/json",
    "multipart/form-data; boundary=x",
    "application/x-www-form-urlencoded",
    "image/jpeg",
    "application/grpc-web",
];

async fn script(scene: &Scene, mut input: Input<'_>) {
    let mut held = Vec::new();
    let mut http2 = None;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.byte() % 6 {
            0 => held.extend(raw(scene, &mut input).await),
            1 | 2 => held.extend(page(scene, &mut input).await),
            3 => http2 = None,
            _ => {
                if http2.is_none() {
                    http2 = connect(scene).await;
                }
                if let Some(sender) = &mut http2
                    && method(scene, sender, &mut input).await.is_err()
                {
                    http2 = None;
                }
            }
        }
    }
}

/// Bytes as they are, and whatever comes back.
async fn raw(scene: &Scene, input: &mut Input<'_>) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(&scene.address).await.ok()?;
    let _ = stream.write_all(&input.bytes()).await;
    if input.byte() % 2 == 0 {
        let _ = stream.shutdown().await;
    }
    drain(&mut stream).await;
    Some(stream)
}

/// A request over HTTP/1 with a body that is as long as it says, or not.
async fn page(scene: &Scene, input: &mut Input<'_>) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(&scene.address).await.ok()?;
    let method = ["POST", "GET", "PUT", "DELETE"][input.choice(4)];
    let page = PAGES[input.choice(PAGES.len())];
    let kind = TYPES[input.choice(TYPES.len())];
    let body = input.bytes();
    let length = match input.byte() {
        0 => input.bound(),
        _ => body.len(),
    };
    let head = format!(
        "{method} {page} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\n\
         content-length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.ok()?;
    let _ = timeout(ANSWER, stream.write_all(&body)).await;
    drain(&mut stream).await;
    Some(stream)
}

async fn drain(stream: &mut TcpStream) {
    let mut buffer = [0; 16 << 10];
    let _ = timeout(ANSWER, stream.read(&mut buffer)).await;
}

async fn connect(scene: &Scene) -> Option<SendRequest<Bytes>> {
    let stream = TcpStream::connect(&scene.address).await.ok()?;
    let (sender, connection) = h2::client::handshake(stream).await.ok()?;
    tokio::spawn(connection);
    Some(sender)
}

/// A call of a method: messages, an end, perhaps the answer.
async fn method(
    scene: &Scene,
    sender: &mut SendRequest<Bytes>,
    input: &mut Input<'_>,
) -> Result<(), h2::Error> {
    let path = &scene.methods[input.choice(scene.methods.len())];
    let mut request = Request::post(format!("http://localhost{path}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc");
    if input.byte() == 0 {
        request = request.header("grpc-timeout", input.text());
    }
    let Ok(request) = request.body(()) else { return Ok(()) };
    *sender = timeout(ANSWER, sender.clone().ready()).await.map_err(|_| h2::Reason::CANCEL)??;
    let (answer, mut stream) = sender.send_request(request, false)?;
    for _ in 0..=input.choice(4) {
        let message = input.bytes();
        let frame = speech::framed(&message, input);
        stream.send_data(frame, false)?;
    }
    speech::end(stream, input);
    if input.byte() % 4 == 0 {
        return Ok(());
    }
    if let Ok(Ok(answer)) = timeout(ANSWER, answer).await {
        let mut body = answer.into_body();
        let _ = timeout(ANSWER, async { while body.data().await.is_some() {} }).await;
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let scene = &*SCENE;
    // Of this input alone: with it go its connections.
    house::runtime().block_on(async {
        let _ = timeout(SCRIPT, script(scene, Input::new(data))).await;
    });
    scene.house.check();
});
