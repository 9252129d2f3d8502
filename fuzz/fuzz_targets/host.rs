//! Plays a plugin that asks its host: every method of the host channel, with its
//! permissions, with any bytes. It serves its calls channel well meanwhile.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use http::Request;
use libfuzzer_sys::fuzz_target;
use stockade_fuzz::{
    house::{self, House},
    input::Input,
    puppet::{self, Puppet, Stage},
    speech,
};
use tokio::{net::UnixStream, time::timeout};

/// For one script, and for one answer in it.
const SCRIPT: Duration = Duration::from_millis(400);
const ANSWER: Duration = Duration::from_millis(50);
/// Requests of one script.
const STEPS: usize = 64;

const METHODS: [&str; 18] = [
    "GetSelf",
    "CheckPermission",
    "KvGet",
    "KvSet",
    "KvDelete",
    "KvList",
    "KvCompareAndSet",
    "GetEntity",
    "SetFlag",
    "UpdateRelationship",
    "ChangeComponent",
    "Emit",
    "Subscribe",
    "Log",
    "Record",
    "CallTool",
    "ListProviders",
    "CallProvider",
];

struct Scene {
    house: House,
    stage: Stage,
}

static SCENE: LazyLock<Scene> = LazyLock::new(|| {
    let mut stage = None;
    let house = House::start(|plugins| stage = Some(Stage::set(plugins)), |_| {});
    Scene { house, stage: stage.expect("stage") }
});

async fn script(process: &Puppet, mut input: Input<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let channel = std::os::unix::net::UnixStream::from(process.host.try_clone()?);
    channel.set_nonblocking(true)?;
    let (mut sender, connection) = h2::client::handshake(UnixStream::from_std(channel)?).await?;
    tokio::spawn(connection);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let method = METHODS[input.choice(METHODS.len())];
        let request = Request::post(format!("http://localhost/stockade.host.v1.Host/{method}"))
            .header("te", "trailers")
            .header("content-type", "application/grpc")
            .body(())?;
        sender = timeout(ANSWER, sender.ready()).await??;
        let (answer, mut stream) = sender.send_request(request, false)?;
        let message = input.bytes();
        stream.send_data(speech::framed(&message, &mut input), false)?;
        speech::end(stream, &mut input);
        if input.byte() % 4 != 0
            && let Ok(Ok(answer)) = timeout(ANSWER, answer).await
        {
            let mut body = answer.into_body();
            let _ = timeout(ANSWER, body.data()).await;
        }
    }
    Ok(())
}

fuzz_target!(
    init: puppet::play(),
    |data: &[u8]| {
        let scene = &*SCENE;
        let process = scene.stage.next(&scene.house);
        house::runtime().block_on(async {
            let _ = timeout(SCRIPT, script(&process, Input::new(data))).await;
        });
        drop(process);
        scene.house.check();
    }
);
