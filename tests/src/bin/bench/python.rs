//! Python plugins against a stock grpcio server that is called directly, and
//! against a bare interpreter.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use stockade_tests::{environments, python_host, write_file};
use tokio::process::{Child, Command};

use crate::{
    median,
    report::{Report, Row},
    role,
    setup::Scene,
};

const CALLS: &str = "5000";

const PLUGIN: &str = "
from stockade import tool

@tool
def ping(text: str):
    return {'text': text}

@tool
def size(data: bytes) -> int:
    return len(data)
";

fn environment() -> PathBuf {
    environments("client")
}

/// `more` goes behind `[run]`.
pub fn write_plugin(directory: &Path, more: &str) {
    let python = environment().join("bin/python").display().to_string();
    let toml =
        format!("name = \"minimal\"\n[run]\npython = \"plugin\"\ninterpreter = {python:?}\n{more}");
    write_file(&directory.join("plugin.toml"), &toml);
    write_file(&directory.join("plugin.py"), PLUGIN);
}

async fn grpcio_server(socket: &str) -> Child {
    let environment = environment();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/direct.py");
    let child = Command::new("taskset")
        .args(["-c", "0"])
        .arg(environment.join("bin/python"))
        .arg(script)
        .arg(socket)
        .arg(environment.join("generated"))
        .kill_on_drop(true)
        .spawn()
        .expect("server");
    while tokio::net::UnixStream::connect(socket).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child
}

pub async fn measure(report: &mut Report) {
    python_host();
    calls(report).await;
    starts(report).await;
}

async fn calls(report: &mut Report) {
    let pinned = Some("0");
    let home = tempfile::tempdir().expect("home");
    let direct = home.path().join("direct.sock").display().to_string();
    let mut server = grpcio_server(&direct).await;
    let scene = Scene::start_with(pinned, |place| write_plugin(place, "")).await;
    let socket = scene.socket();
    let place = home.path().join("embedded");
    write_plugin(&place.join("plugins/minimal"), "");
    let place = place.display().to_string();
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..3 {
        let runs: [&[&str]; 5] = [
            &["unary", &direct, CALLS],
            &["unary", &socket, CALLS],
            &["embedded", &place, CALLS],
            &["attachment", &direct, CALLS],
            &["attachment", &socket, CALLS],
        ];
        for (times, run) in times.iter_mut().zip(runs) {
            times.push(role(pinned, run).await["p50"]);
        }
    }
    let [base, daemon, embedded, large_base, large] = times.map(median);
    server.kill().await.expect("kill");
    scene.stop().await;
    report.note(format!(
        "A stock Python grpcio server called directly, pinned: p50 {base:.1} µs; with 200 KB \
         {large_base:.1} µs."
    ));
    report.row(
        Row::ratio("Python tool through the daemon, p50 / grpcio direct", daemon / base, 0.9, 0.6)
            .with(format!("{daemon:.1} µs")),
    );
    report.row(
        Row::ratio("the same through the embedded supervisor", embedded / base, 0.45, 0.25)
            .with(format!("{embedded:.1} µs")),
    );
    report.row(
        Row::ratio("Python tool with a 200 KB attachment", large / large_base, 1.0, 0.6)
            .with(format!("{large:.1} µs")),
    );
}

async fn starts(report: &mut Report) {
    let home = tempfile::tempdir().expect("home");
    write_plugin(&home.path().join("plugins/minimal"), "");
    let place = home.path().display().to_string();
    let (mut hosted, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        hosted.push(role(Some("0"), &["starts", &place, "60"]).await["p50"]);
        let python = environment().join("bin/python").display().to_string();
        bare.push(role(Some("0"), &["bare", &python, "60"]).await["p50"]);
    }
    let (hosted, bare) = (median(hosted), median(bare));
    report.row(
        Row::ratio(
            "spawn → INITIALIZED of a Python plugin, p50 / python3 -c pass",
            hosted / bare,
            3.0,
            1.6,
        )
        .with(format!("{:.1} ms against {:.1} ms", hosted / 1000.0, bare / 1000.0)),
    );
    let scene = Scene::start_with(None, |place| write_plugin(place, "")).await;
    let plugin = scene.list().await.remove(0).pid.expect("pid");
    let mut idle = Command::new(environment().join("bin/python"))
        .args(["-c", "import time; time.sleep(600)"])
        .env_clear()
        .kill_on_drop(true)
        .spawn()
        .expect("python");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let (plugin, idle_size) = (resident(plugin), resident(idle.id().expect("pid")));
    idle.kill().await.expect("kill");
    scene.stop().await;
    report.row(
        Row::new(
            "memory that the Python host adds to a bare interpreter",
            plugin - idle_size,
            "MiB",
            12.0,
            5.0,
        )
        .with(format!("resident, {plugin:.1} against {idle_size:.1} MiB")),
    );
}

/// Resident MiB of a process.
fn resident(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps");
    let line = text.lines().find(|line| line.starts_with("Rss:")).expect("Rss");
    let kib: f64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).expect("number");
    kib / 1024.0
}
