//! Bytes on the daemon's socket: HTTP/1, HTTP/2, neither. It answers or hangs up,
//! and serves the next one.
#![no_main]

use std::{sync::LazyLock, time::Duration};

use libfuzzer_sys::fuzz_target;
use stockade::{Config, Supervisor, gateway};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::Runtime,
};

struct House {
    runtime: Runtime,
    doors: gateway::Doors,
    _supervisor: Supervisor,
    _folder: tempfile::TempDir,
}

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let folder = tempfile::tempdir_in("/dev/shm").expect("folder");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("runtime");
    let mut config = Config::new(folder.path().join("plugins"), folder.path().join("state"));
    config.worker = "/bin/true".into();
    config.watch = false;
    let (supervisor, doors) = runtime.block_on(async {
        let supervisor = Supervisor::start(config).await.expect("supervisor");
        let doors = gateway::open(&supervisor).await.expect("doors");
        (supervisor, doors)
    });
    House { runtime, doors, _supervisor: supervisor, _folder: folder }
});

async fn connect(house: &House) -> UnixStream {
    UnixStream::connect(&house.doors.socket).await.expect("connect")
}

/// What is answered within the time.
async fn answer(stream: &mut UnixStream, patience: Duration) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(patience, stream.read_to_end(&mut answer)).await;
    answer
}

fuzz_target!(|data: &[u8]| {
    let house = &*HOUSE;
    house.runtime.block_on(async {
        let mut outsider = connect(house).await;
        let _ = outsider.write_all(data).await;
        let _ = outsider.shutdown().await;
        answer(&mut outsider, Duration::from_millis(200)).await;
        let mut next = connect(house).await;
        let request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        next.write_all(request).await.expect("request");
        let answer = answer(&mut next, Duration::from_secs(8)).await;
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    });
});
