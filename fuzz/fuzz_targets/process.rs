//! Plays a plugin's process against a whole daemon: answers to Hello and Init, frames
//! of calls in any order, with any ids, at any size. It costs its own calls.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::Request;
use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use stockade_fuzz::{
    house::{self, House},
    input::Input,
    puppet::{self, NAME, Stage},
    speech,
};
use stockade_proto::worker::{
    Done, Failed, FromPlugin, HelloRequest, HelloResponse, InitReady, InitUpdate, Item, Pong,
    Progress, ToPlugin, ToolSpec, from_plugin::Frame, init_update::Update, to_plugin,
};
use tokio::{net::UnixStream, time::timeout};

/// For one script, and for what the daemon may send in it.
const SCRIPT: Duration = Duration::from_millis(120);
const ANSWER: Duration = Duration::from_millis(5);
/// Frames of one script.
const STEPS: usize = 256;

struct Scene {
    house: House,
    stage: Stage,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let mut stage = None;
    let house = House::start(|plugins| stage = Some(Stage::set(plugins)), |_| {});
    Scene { house, stage: stage.expect("stage") }
});

/// Serves the channel as the input says.
async fn perform(channel: UnixStream, input: &mut Input<'_>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(channel).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        match request.uri().path().rsplit('/').next() {
            Some("Hello") => hello(request, respond, input, &mut connection).await?,
            Some("Init") => init(respond, input)?,
            Some("Calls") => return calls(request, respond, input, &mut connection).await,
            _ => {}
        }
    }
    Ok(())
}

type Connection = h2::server::Connection<UnixStream, Bytes>;

/// What comes in on this stream next, if anything does, while the connection is driven.
async fn data(body: &mut RecvStream, connection: &mut Connection) -> Option<Bytes> {
    tokio::select! {
        () = tokio::time::sleep(ANSWER) => None,
        data = body.data() => {
            let data = data?.ok()?;
            let _ = body.flow_control().release_capacity(data.len());
            Some(data)
        }
        _ = std::future::poll_fn(|context| connection.poll_closed(context)) => None,
    }
}

async fn hello(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    input: &mut Input<'_>,
    connection: &mut Connection,
) -> Result<(), h2::Error> {
    let mut body = request.into_body();
    let asked = data(&mut body, connection).await.unwrap_or_default();
    let asked = HelloRequest::decode(asked.get(5..).unwrap_or_default()).unwrap_or_default();
    let mut stream = respond.send_response(speech::head(), false)?;
    let answer = match input.byte() {
        0..=9 => input.bytes(),
        _ => HelloResponse { protocol_version: 1, nonce: asked.nonce, ..HelloResponse::default() }
            .encode_to_vec(),
    };
    send(&mut stream, &answer, input)?;
    speech::end(stream, input);
    Ok(())
}

fn init(mut respond: SendResponse<Bytes>, input: &mut Input<'_>) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(speech::head(), false)?;
    if input.byte() < 80 {
        for _ in 0..input.choice(8) {
            send(&mut stream, &input.bytes(), input)?;
        }
    }
    let mut ready = InitReady { tools: vec![tool(input)], ..InitReady::default() };
    while !input.is_empty() && input.byte() < 20 {
        ready.tools.push(ToolSpec { name: input.text(), ..tool(input) });
    }
    let update = InitUpdate { update: Some(Update::Ready(ready)) };
    send(&mut stream, &update.encode_to_vec(), input)?;
    speech::end(stream, input);
    Ok(())
}

fn tool(input: &mut Input<'_>) -> ToolSpec {
    let schema = |input: &mut Input<'_>| match input.byte() {
        0..=40 => input.text(),
        _ => String::new(),
    };
    ToolSpec {
        name: "t".into(),
        input_schema: schema(input),
        output_schema: schema(input),
        streams: input.byte() % 2 == 0,
        ..ToolSpec::default()
    }
}

async fn calls(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    input: &mut Input<'_>,
    connection: &mut Connection,
) -> Result<(), h2::Error> {
    let mut stream = respond.send_response(speech::head(), false)?;
    let mut body = request.into_body();
    let mut call = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        // The ids that it is asked with, so that some answers are answers.
        if input.byte() < 128 {
            let asked = data(&mut body, connection).await.unwrap_or_default();
            let asked = ToPlugin::decode(asked.get(5..).unwrap_or_default()).unwrap_or_default();
            if let Some(to_plugin::Frame::Invoke(invoke)) = asked.frame {
                call = invoke.call_id;
            }
        }
        let message = frame(call, input);
        send(&mut stream, &message, input)?;
    }
    speech::end(stream, input);
    // What was sent goes out.
    let sent = std::future::poll_fn(|context| connection.poll_closed(context));
    timeout(ANSWER, sent).await.unwrap_or(Ok(()))
}

fn frame(call: u64, input: &mut Input<'_>) -> Vec<u8> {
    let call_id = match input.byte() {
        0..=20 => u64::from(input.byte()),
        _ => call,
    };
    let frame = match input.byte() % 6 {
        0 => return input.bytes(),
        1 => Frame::Done(Done { call_id, result: input.bytes().into(), attachments: Vec::new() }),
        2 => Frame::Failed(Failed {
            call_id,
            error_type: input.text(),
            message: input.text(),
            traceback: String::from_utf8_lossy(&input.bytes()).into_owned(),
        }),
        3 => Frame::Progress(Progress { call_id, fraction: 0.5, message: input.text() }),
        4 => Frame::Item(Item { call_id, value: input.bytes().into(), attachments: Vec::new() }),
        _ => Frame::Pong(Pong { id: u64::from(input.byte()) }),
    };
    FromPlugin { frame: Some(frame) }.encode_to_vec()
}

fn send(
    stream: &mut SendStream<Bytes>,
    message: &[u8],
    input: &mut Input<'_>,
) -> Result<(), h2::Error> {
    stream.send_data(speech::framed(message, input), false)
}

fuzz_target!(
    init: puppet::play(),
    |data: &[u8]| {
        let scene = &*SCENE;
        let process = scene.stage.next(&scene.house);
        let mut input = Input::new(data);
        house::runtime().block_on(async {
            let channel = std::os::unix::net::UnixStream::from(process.channel);
            channel.set_nonblocking(true).expect("channel");
            let channel = UnixStream::from_std(channel).expect("channel");
            let calling = async {
                loop {
                    scene.house.call(NAME, Duration::from_millis(100)).await;
                    tokio::task::yield_now().await;
                }
            };
            let playing = timeout(SCRIPT, perform(channel, &mut input));
            tokio::select! {
                _ = playing => {}
                () = calling => {}
            }
        });
        scene.house.check();
    }
);
