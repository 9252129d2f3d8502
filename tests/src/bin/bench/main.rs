//! `make bench`: measures against direct tonic in the same run and writes
//! docs/benchmarks.md. Processes of a measurement are children of this one, so
//! that they can be pinned.

mod attacks;
mod clients;
mod confinement;
mod deaths;
mod fleet;
mod hosting;
mod python;
mod report;
mod setup;

use std::{collections::HashMap, process::Stdio, time::Duration};

use report::{Report, Row};
use setup::Scene;
use tokio::process::Command;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
    let arg = |n: usize| args.get(n).cloned().unwrap_or_default();
    runtime.block_on(async {
        match arg(0).as_str() {
            "unary" => clients::unary(&arg(1), arg(2).parse().expect("calls")).await,
            "pace" => clients::pace(&arg(1), arg(2).parse().expect("seconds")).await,
            "parallel" => clients::parallel(&arg(1), arg(2).parse().expect("calls")).await,
            "multiplexed" => clients::multiplexed(&arg(1), arg(2).parse().expect("calls")).await,
            "commits" => hosting::bare_commits(&arg(1), arg(2).parse().expect("commits")),
            "condition" => clients::condition(&arg(1), arg(2).parse().expect("calls")).await,
            "embedded" => clients::embedded(&arg(1), arg(2).parse().expect("calls")).await,
            "attachment" => clients::attachment(&arg(1), arg(2).parse().expect("calls")).await,
            "attack" => {
                let time = Duration::from_secs(arg(3).parse().expect("seconds"));
                attacks::attack(&arg(1), &arg(2), time, &arg(4)).await;
            }
            "bare" => clients::bare(&arg(1), arg(2).parse().expect("starts")),
            "starts" => clients::starts(&arg(1), arg(2).parse().expect("starts")).await,
            _ => measure(&arg(0)).await,
        }
    });
}

/// Runs this program in another role and reads the numbers it prints.
pub async fn role(pin: Option<&str>, args: &[&str]) -> HashMap<String, f64> {
    match pin {
        Some(cores) => role_by(&["taskset", "-c", cores], args).await,
        None => role_by(&["env"], args).await,
    }
}

/// The same by a command that runs it.
pub async fn role_by(by: &[&str], args: &[&str]) -> HashMap<String, f64> {
    let exe = std::env::current_exe().expect("own path");
    let mut command = Command::new(by[0]);
    command.args(&by[1..]).arg(exe);
    let output = command.args(args).stderr(Stdio::inherit()).output().await.expect("role");
    assert!(output.status.success(), "{args:?} failed: {}", output.status);
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// The direct tonic server in a process of its own.
pub async fn direct_server(pin: Option<&str>, socket: &str) -> tokio::process::Child {
    let mut command = Command::new("taskset");
    command.args(["-c", pin.unwrap_or("0,1")]).arg(stockade_tests::binary("direct")).arg(socket);
    let child = command.kill_on_drop(true).spawn().expect("server");
    while tokio::net::UnixStream::connect(socket).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    child
}

async fn measure(only: &str) {
    let mut report = Report::default();
    let wanted = |name: &str| only.is_empty() || only == name;
    if wanted("calls") {
        calls(&mut report).await;
    }
    if wanted("deaths") {
        deaths::measure(&mut report).await;
    }
    if wanted("fleet") {
        fleet::measure(&mut report).await;
    }
    if wanted("python") {
        python::measure(&mut report).await;
    }
    if wanted("confinement") {
        confinement::measure(&mut report).await;
    }
    if wanted("hosting") {
        hosting::measure(&mut report).await;
    }
    if wanted("attacks") {
        attacks::measure(&mut report).await;
    }
    report.write(only.is_empty());
}

const CALLS: &str = "20000";

async fn calls(report: &mut Report) {
    let pinned = Some("0");
    let folder = tempfile::tempdir().expect("folder");
    let direct = folder.path().join("direct.sock").display().to_string();

    let mut server = direct_server(pinned, &direct).await;
    let scene = Scene::start(pinned, &[("minimal", setup::minimal(""))], "").await;
    let socket = scene.socket();
    // Interleaved, so that a slow moment of the machine hits both.
    let (mut base, mut daemon, mut embedded) = (Vec::new(), Vec::new(), Vec::new());
    let home = tempfile::tempdir().expect("home");
    for round in 0..3 {
        base.push(role(pinned, &["unary", &direct, CALLS]).await["p50"]);
        daemon.push(role(pinned, &["unary", &socket, CALLS]).await["p50"]);
        let place = home.path().join(round.to_string());
        setup::write(&place.join("plugins/minimal"), "minimal", &setup::minimal(""));
        embedded
            .push(role(pinned, &["embedded", &place.display().to_string(), CALLS]).await["p50"]);
    }
    let (base, daemon, embedded) = (median(base), median(daemon), median(embedded));
    server.kill().await.expect("kill");
    scene.stop().await;
    report.note(format!("Direct unary tonic call over a unix socket, pinned: p50 {base:.1} µs."));
    report.row(
        Row::ratio("unary call through the daemon, p50 / direct", daemon / base, 2.3, 1.7)
            .with(format!("{daemon:.1} µs")),
    );
    report.row(
        Row::ratio("the same through the embedded supervisor", embedded / base, 1.0, 0.65)
            .with(format!("{embedded:.1} µs")),
    );

    let mut server = direct_server(None, &direct).await;
    let parallel = "concurrency = 32";
    let scene = Scene::start(None, &[("minimal", setup::minimal(parallel))], "").await;
    let socket = scene.socket();
    let (mut base, mut daemon, mut stream) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..3 {
        base.push(role(None, &["parallel", &direct, "60000"]).await["rate"]);
        daemon.push(role(None, &["parallel", &socket, "60000"]).await["rate"]);
        stream.push(role(None, &["multiplexed", &socket, "200000"]).await["rate"]);
    }
    let (base, daemon, stream) = (median(base), median(daemon), median(stream));
    server.kill().await.expect("kill");
    scene.stop().await;
    report.note(format!("Direct unary tonic, 32 in flight, not pinned: {base:.0} calls/s."));
    report.row(
        Row::more("32 in flight through the daemon, calls/s / direct", daemon / base, 0.6, 1.0)
            .with(format!("{daemon:.0}/s")),
    );
    report.row(
        Row::more("the same over the multiplexed stream", stream / base, 2.0, 5.0)
            .with(format!("{stream:.0}/s")),
    );
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
