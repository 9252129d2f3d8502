//! What the sandbox costs and how fast it ends things: launches per profile, a
//! tree of forty, a memory hog.

use std::time::{Duration, Instant};

use stockade_proto::v1::tools_client::ToolsClient;

use crate::{
    clients::{connect, percentile},
    deaths::{RESTARTS, call},
    median, python,
    report::{Report, Row},
    role,
    setup::{Scene, minimal, write},
};

const STARTS: &str = "100";
const TREE: usize = 40;

pub async fn measure(report: &mut Report) {
    launches(report).await;
    for profile in ["none", "standard"] {
        tree(report, profile).await;
    }
    hog(report).await;
}

fn sandboxed(profile: &str) -> String {
    format!("[sandbox]\nprofile = \"{profile}\"\n")
}

/// Interleaved, so that a slow moment of the machine hits all.
async fn launches(report: &mut Report) {
    let home = tempfile::tempdir().expect("home");
    let place = |name: &str| home.path().join(name);
    let profiles = ["none", "standard", "strict"];
    for profile in profiles {
        let toml = minimal(&sandboxed(profile));
        write(&place(profile).join("plugins/minimal"), "minimal", &toml);
        let directory = place(&format!("python-{profile}")).join("plugins/minimal");
        python::write_plugin(&directory, &sandboxed(profile));
    }
    let mut times = vec![Vec::new(); profiles.len() * 2];
    for _ in 0..3 {
        for (n, profile) in profiles.iter().enumerate() {
            for (m, name) in [(*profile).to_owned(), format!("python-{profile}")].iter().enumerate()
            {
                let place = place(name).display().to_string();
                let took = role(Some("0"), &["starts", &place, STARTS]).await["p50"];
                times[n + m * profiles.len()].push(took);
            }
        }
    }
    let times: Vec<f64> = times.into_iter().map(|times| median(times) / 1000.0).collect();
    for (what, times) in [("native", &times[..3]), ("Python", &times[3..])] {
        let [none, standard, strict] = [times[0], times[1], times[2]];
        let detail = format!("{standard:.1} ms against {none:.1} ms; strict {strict:.1} ms");
        report.row(
            Row::ratio(
                &format!("launch of a {what} plugin: standard / none, p50"),
                standard / none,
                3.0,
                1.5,
            )
            .with(detail),
        );
    }
}

/// The descendants of a process that sleep: the orphans, once they have executed.
fn sleeps(pid: u32) -> Vec<u32> {
    let name = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut found = stockade::machine::descendants(pid);
    found.retain(|pid| name(pid).trim() == "sleep");
    found
}

/// From the SIGKILL of the main process until the last of forty double-forked,
/// setsid'd processes is gone.
async fn tree(report: &mut Report, profile: &str) {
    let toml = format!(
        "name = \"rogue\"\n[run]\nbinary = \"bin/rogue\"\n{RESTARTS}\n{}",
        sandboxed(profile)
    );
    let scene = Scene::start(None, &[("rogue", toml)], "allow_unsandboxed = true").await;
    let mut tools = ToolsClient::new(connect(&scene.socket()).await);
    let mut times = Vec::new();
    for _ in 0..30 {
        while tools.call(call("rogue", "ping", "{}")).await.is_err() {}
        tools.call(call("rogue", "orphans", &format!("{{\"n\":{TREE}}}"))).await.expect("tree");
        let main = scene.list().await.remove(0).pid.expect("pid");
        let orphans = loop {
            let orphans = sleeps(scene.pid());
            if orphans.len() == TREE {
                break orphans;
            }
        };
        let begin = Instant::now();
        unsafe { libc::kill(main as i32, libc::SIGKILL) };
        while orphans.iter().any(|pid| stockade::machine::is_alive(*pid)) {}
        times.push(begin.elapsed());
    }
    scene.stop().await;
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    report.row(
        Row::new(
            &format!("a tree of 40 that left its session is gone (profile {profile}), p99"),
            ms(percentile(&mut times, 0.99)),
            "ms",
            50.0,
            15.0,
        )
        .with(format!("p50 {:.1} ms", ms(percentile(&mut times, 0.5)))),
    );
}

/// From the crossing of the limit until the hog is gone, without cgroups.
async fn hog(report: &mut Report) {
    const LIMIT: u64 = 300 << 20;
    let toml = format!(
        "name = \"rogue\"\n[run]\nbinary = \"bin/rogue\"\n{RESTARTS}\n[limits]\nmemory = \"300MiB\"\n"
    );
    let scene = Scene::start(None, &[("rogue", toml)], "").await;
    let mut tools = ToolsClient::new(connect(&scene.socket()).await);
    let mut times = Vec::new();
    for _ in 0..30 {
        while tools.call(call("rogue", "ping", "{}")).await.is_err() {}
        let main = scene.list().await.remove(0).pid.expect("pid");
        let watcher = std::thread::spawn(move || {
            let mut crossed = None;
            while stockade::machine::is_alive(main) {
                if crossed.is_none() && stockade::machine::resident(main) > LIMIT {
                    crossed = Some(Instant::now());
                }
            }
            crossed.map(|crossed| crossed.elapsed())
        });
        // Below limits.data, which would end it in its own allocator.
        let args = "{\"kind\":\"anonymous\",\"mib\":1100}";
        tools.call(call("rogue", "hog", args)).await.expect_err("killed");
        // Killed between two looks of ours: no measurement.
        times.extend(watcher.join().expect("watcher"));
    }
    scene.stop().await;
    assert!(times.len() >= 20, "seen crossing its limit {} times of 30", times.len());
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    report.row(
        Row::new(
            "a memory hog is gone after crossing its limit (the guard), p99",
            ms(percentile(&mut times, 0.99)),
            "ms",
            100.0,
            30.0,
        )
        .with(format!("p50 {:.1} ms", ms(percentile(&mut times, 0.5)))),
    );
}
