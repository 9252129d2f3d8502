//! Three hundred plugins: start, memory, idle, health in a storm.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    clients::percentile,
    report::{Report, Row},
    setup::Scene,
};

const MANY: usize = 300;

fn private_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let field = |name: &str| -> u64 {
        let line = text.lines().find(|line| line.starts_with(name)).expect("field");
        line.split_whitespace().nth(1).expect("value").parse::<u64>().expect("number") * 1024
    };
    field("Private_Dirty:") + field("Private_Clean:")
}

fn cpu_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let fields: Vec<u64> = stat
        .rsplit_once(')')
        .expect("stat")
        .1
        .split_whitespace()
        .filter_map(|field| field.parse().ok())
        .collect();
    // state is no number: utime and stime are the 11th and 12th numbers here.
    fields[10] + fields[11]
}

pub async fn measure(report: &mut Report) {
    let empty = Scene::start(None, &[], "").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let without = private_bytes(empty.pid());
    empty.stop().await;

    let names: Vec<String> = (0..MANY).map(|n| format!("p{n:03}")).collect();
    let plugins: Vec<(&str, String)> = names
        .iter()
        .map(|name| {
            let toml = format!("name = \"{name}\"\n[run]\nbinary = \"bin/minimal\"\n");
            (name.as_str(), toml)
        })
        .collect();
    let begin = Instant::now();
    let scene = Scene::start(None, &plugins, "").await;
    scene.all_serving(MANY).await;
    let cold = begin.elapsed();
    report.row(Row::new(
        "300 plugins from cold until all INITIALIZED",
        cold.as_secs_f64(),
        "s",
        6.0,
        1.5,
    ));

    tokio::time::sleep(Duration::from_secs(5)).await;
    let each = (private_bytes(scene.pid()) - without) as f64 / MANY as f64 / 1024.0;
    report.row(Row::new(
        "300 plugins: the daemon's private memory per plugin",
        each,
        "KiB",
        200.0,
        60.0,
    ));

    let ticks = cpu_ticks(scene.pid());
    let begin = Instant::now();
    tokio::time::sleep(Duration::from_secs(30)).await;
    let used = (cpu_ticks(scene.pid()) - ticks) as f64 / 100.0;
    let share = used / begin.elapsed().as_secs_f64() * 100.0;
    report.row(
        Row::new("300 plugins: the daemon's CPU when idle", share, "% of a core", 0.5, 0.1)
            .with("over 30 s".into()),
    );

    let mut times = storm(&scene).await;
    let p99 = percentile(&mut times, 0.99).as_secs_f64() * 1000.0;
    report.row(
        Row::new("GET /v1/plugins (300) while 100 crash together, p99", p99, "ms", 20.0, 5.0)
            .with(format!("{} requests", times.len())),
    );
    scene.stop().await;
}

/// Kills a hundred at once and asks for health until all are back.
async fn storm(scene: &Scene) -> Vec<Duration> {
    let victims: Vec<u32> = scene.list().await.iter().take(100).filter_map(|p| p.pid).collect();
    let mut stream = tokio::net::UnixStream::connect(scene.socket()).await.expect("connect");
    let mut times = Vec::new();
    for pid in victims {
        unsafe { libc::kill(pid as i32, libc::SIGKILL) };
    }
    let storm = Instant::now();
    while storm.elapsed() < Duration::from_secs(2) {
        let begin = Instant::now();
        get(&mut stream).await;
        times.push(begin.elapsed());
    }
    scene.all_serving(MANY).await;
    times
}

async fn get(stream: &mut tokio::net::UnixStream) {
    let request = b"GET /v1/plugins HTTP/1.1\r\nhost: localhost\r\n\r\n";
    stream.write_all(request).await.expect("write");
    let mut buffer = Vec::with_capacity(1 << 18);
    let mut expected = None;
    while expected.is_none_or(|all| buffer.len() < all) {
        let read = stream.read_buf(&mut buffer).await.expect("read");
        assert!(read > 0, "closed");
        if expected.is_none()
            && let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&buffer[..end]).to_lowercase();
            assert!(head.starts_with("http/1.1 200"), "{head}");
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            expected =
                Some(end + 4 + length.expect("length").trim().parse::<usize>().expect("number"));
        }
    }
}
