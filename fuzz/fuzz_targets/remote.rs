//! Plays the service behind a remote plugin: heads, bodies and lengths that are none,
//! what it offers, what it answers. The daemon's side of it is `stockade-remote`, a
//! process like any plugin's.
#![no_main]

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use libfuzzer_sys::fuzz_target;
use stockade::{manifest::RemoteRules, plugin::Command};
use stockade_fuzz::{house::House, input::Input};

const NAME: &str = "remote";
/// What it offers, unless the input says something else.
const OFFER: &[u8] = br#"{"tools": [{"name": "t"}]}"#;
const TIME: Duration = Duration::from_millis(200);

/// What the service sends next, whole answers as they are.
static ANSWERS: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let listener = TcpListener::bind("127.0.0.1:0").expect("service");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    let house = House::start(
        |plugins| {
            let folder = plugins.join(NAME);
            std::fs::create_dir_all(&folder).expect("folder");
            let manifest = format!(
                "name = \"{NAME}\"\n[run.remote]\nendpoint = \"http://127.0.0.1:{port}\"\n\
                 protocol = \"http\"\ntimeout_ms = 150\ntools = [\"t\"]\n[restart]\n\
                 backoff_min = \"1ms\"\nbackoff_max = \"5ms\"\nmax_errors = 0\n"
            );
            std::fs::write(folder.join("plugin.toml"), manifest).expect("manifest");
        },
        |config| config.remote = RemoteRules::allowing(&["127.0.0.1"]).expect("an address"),
    );
    ready(&house);
    house
});

/// Waits until it serves, through stops and starts.
fn ready(house: &House) {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let ready = house.supervisor.ready(NAME, Duration::from_secs(20));
        match house.runtime.block_on(ready) {
            Ok(()) => return,
            Err(why) => assert!(Instant::now() < end, "the remote plugin never serves: {why:?}"),
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn answer(body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

fn serve(mut stream: TcpStream) {
    let mut buffer = [0; 64 << 10];
    // A request comes in one piece, or its rest is taken for the next one.
    while let Ok(size @ 1..) = stream.read(&mut buffer) {
        let next = ANSWERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let describing = buffer[..size].starts_with(b"GET");
        let usual = || answer(if describing { OFFER } else { br#"{"result": 1}"# });
        let bytes = next.unwrap_or_else(usual);
        if stream.write_all(&bytes).is_err() || !bytes.starts_with(b"HTTP/1.1 200") {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
}

fuzz_target!(|data: &[u8]| {
    let house = &*HOUSE;
    let mut input = Input::new(data);
    let restart = input.byte() < 16;
    let mut answers = Vec::new();
    while !input.is_empty() && answers.len() < 4 {
        answers.push(match input.byte() {
            0..=60 => input.bytes(),
            _ => answer(&input.bytes()),
        });
    }
    let calls = answers.len();
    *ANSWERS.lock().unwrap_or_else(PoisonError::into_inner) = answers;
    if restart {
        house.command(NAME, Command::Restart("the fuzz target".into()));
    }
    house.runtime.block_on(async {
        for _ in 0..calls.max(1) {
            house.call(NAME, TIME).await;
        }
    });
    // The next input finds it well again, whatever this one offered.
    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner).clear();
    if restart {
        house.command(NAME, Command::Reset("the fuzz target".into()));
        ready(house);
    }
    house.check();
});
