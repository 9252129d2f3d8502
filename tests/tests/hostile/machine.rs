//! Work that multiplies within the daemon: looks at processes, configurations,
//! pollers, and a standard error that nobody reads.

use std::{os::fd::AsRawFd as _, time::Duration};

use serde_json::{Value, json};
use stockade_proto::v1::{
    BuildSimulationConfigRequest, EvaluateConditionRequest, PluginState,
    extensions_client::ExtensionsClient,
};
use stockade_tests::{Client, Http, Options, manifest};

use crate::scene::{BUFFERED, MIB, QUICK, a_while, attacked, nothing_left, timed, under_attack};

/// Finding 12: children with very many mappings, whose memory takes long to count.
/// Nobody's start waits for the guard.
#[tokio::test]
async fn a_process_tree_that_is_slow_to_look_at_delays_nobody() {
    let more = format!("{QUICK}\n[limits]\nmemory = \"256MiB\"\nprocesses = 64");
    let daemon = attacked(Options::new().rogue("x", &more)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 64 * MIB, async {
        let args = json!({"n": 20_000, "mib": 40, "children": 10});
        let children = daemon.call("x", "mappings", args).await.unwrap();
        a_while().await;
        children.as_u64().expect("children")
    })
    .await;
    daemon.stop().await;
}

/// Finding 19: a base of 900 KB for each of 200 configurations.
#[tokio::test]
async fn a_base_is_not_copied_for_each_configuration() {
    let more = format!(
        "args = [\"--configurations\", \"200\"]\n{QUICK}\n[permissions]\nrequest = \
         [\"behavior:configure_simulation\"]"
    );
    let daemon = attacked(Options::new().rogue("x", &more)).await;
    daemon.serving("x").await;
    let base = json!({"simulationConfig": {"text": "x".repeat(900_000)}}).to_string();
    under_attack(&daemon, 96 * MIB, async {
        let mut built = 0;
        for _ in 0..2 {
            let request = BuildSimulationConfigRequest {
                base: base.clone().into(),
                ..BuildSimulationConfigRequest::default()
            };
            let mut extensions = ExtensionsClient::new(daemon.channel());
            let reply = extensions.build_simulation_config(request).await.expect("built");
            let reply = reply.into_inner();
            assert_eq!(reply.applied.len() + reply.skipped.len(), 200);
            built += 200;
        }
        built
    })
    .await;
    daemon.stop().await;
}

/// One client's configurations keep nobody else's out: each connection has its turn.
#[tokio::test]
async fn configurations_are_built_in_turn() {
    let daemon = attacked(Options::new().config(BUFFERED)).await;
    let base = |values: usize| json!({"simulationConfig": {"list": vec![0; values]}}).to_string();
    let build = async |client: Client, base: String| {
        let request = BuildSimulationConfigRequest {
            base: base.into(),
            ..BuildSimulationConfigRequest::default()
        };
        ExtensionsClient::new(client.channel()).build_simulation_config(request).await
    };
    let mut others = Vec::new();
    for _ in 0..70 {
        others.push(daemon.apart().await);
    }
    let others = others.into_iter().map(|client| build(client, base(60_000)));
    let own = async {
        let mut built = 0;
        for _ in 0..3 {
            let outcome = build(daemon.client(), base(30_000)).await;
            built += u32::from(outcome.map_err(|refused| eprintln!("{refused}")).is_ok());
        }
        built
    };
    let (_, built) = tokio::join!(futures_util::future::join_all(others), own);
    assert_eq!(built, 3, "one was refused");
    daemon.stop().await;
}

/// A tiny request for a configuration of a workspace whose own one is a hundred times
/// as large when it is read: many of them, on one connection and on several.
#[tokio::test]
async fn many_small_requests_for_large_configurations_hold_little() {
    let daemon = attacked(Options::new().config(BUFFERED)).await;
    let config = format!(r#"{{"x":[{}0]}}"#, r#"{"":0},"#.repeat(148_000));
    let text = format!(r#"{{"behavior":{{"simulationConfig":{config}}}}}"#);
    let mut http = Http::unix(&daemon.socket).await.expect("connect");
    http.head("PUT", "/v1/workspaces/w", "application/json", text.len()).await.expect("send");
    http.write(text.as_bytes()).await.expect("send");
    assert_eq!(http.reply().await.expect("an answer").status, 200);
    under_attack(&daemon, 384 * MIB, async {
        let mut built = 0;
        for connections in [1, 8] {
            let mut clients = Vec::new();
            for _ in 0..connections {
                clients.push(daemon.apart().await);
            }
            let all =
                clients.iter().flat_map(|client| (0..64).map(move |_| client)).map(|client| {
                    let request = BuildSimulationConfigRequest {
                        workspace: "w".into(),
                        ..BuildSimulationConfigRequest::default()
                    };
                    let mut extensions = ExtensionsClient::new(client.channel());
                    let build =
                        async move { extensions.build_simulation_config(request).await.is_ok() };
                    tokio::time::timeout(Duration::from_secs(5), build)
                });
            let all = futures_util::future::join_all(all).await;
            built += all.into_iter().filter(|built| *built == Ok(true)).count() as u64;
        }
        built
    })
    .await;
    daemon.stop().await;
}

/// A plugin that does not answer costs each configuration of a server its time, and not
/// one after the other.
#[tokio::test]
async fn configurations_of_one_connection_wait_together() {
    let more = format!(
        "args = [\"--stuck\", \"1\"]\nconcurrency = 64\n{QUICK}\n[permissions]\nrequest = \
         [\"behavior:configure_simulation\"]"
    );
    let daemon = Options::new().rogue("x", &more).start().await;
    daemon.serving("x").await;
    let build = async || {
        let mut extensions = ExtensionsClient::new(daemon.channel());
        let built = extensions.build_simulation_config(BuildSimulationConfigRequest::default());
        let built = built.await.expect("built").into_inner();
        assert_eq!(built.skipped.len(), 1, "it answers");
    };
    let (_, alone) = timed(build()).await;
    let (_, all) = timed(futures_util::future::join_all((0..20).map(|_| build()))).await;
    eprintln!("one {alone:?}, 20 {all:?}");
    assert!(all < alone * 5, "20 took {all:?}, one {alone:?}");
    daemon.stop().await;
}

/// One client's large contexts keep out nobody else's large arguments of the same plugin.
#[tokio::test]
async fn large_contexts_of_one_leave_others_their_calls() {
    let more = format!(
        "args = [\"--conditions\", \"1\"]\nconcurrency = 8\n{QUICK}\n[permissions]\nrequest = \
         [\"behavior:extend_conditions\"]"
    );
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", &more)).await;
    daemon.serving("x").await;
    let player =
        format!(r#"{{"name":"{}","items":[{}0]}}"#, "x".repeat(800_000), "0,".repeat(50_000));
    let context = format!(r#"{{"player":{player}}}"#);
    let (flooding, other) = (daemon.apart().await, daemon.apart().await);
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let flood = (0..64).map(|_| async {
        let mut asked = 0;
        while !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            let request = EvaluateConditionRequest {
                condition_id: "plugin:x:c0".into(),
                context: context.clone().into(),
                ..EvaluateConditionRequest::default()
            };
            let mut extensions = ExtensionsClient::new(flooding.channel());
            asked += u64::from(extensions.evaluate_condition(request).await.is_ok());
        }
        asked
    });
    let calls = async {
        let args = json!({"text": "x".repeat(300_000)});
        for _ in 0..20 {
            let (outcome, took) = timed(other.call("x", "echo", args.clone())).await;
            assert!(outcome.ok, "{} after {took:?}", outcome.error);
            assert!(took < Duration::from_secs(5), "a call took {took:?}");
        }
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    under_attack(&daemon, 256 * MIB, async {
        let (asked, ()) = tokio::join!(futures_util::future::join_all(flood), calls);
        asked.into_iter().sum()
    })
    .await;
    daemon.stop().await;
}

/// Configurations that together would be gigabytes in memory, and default parameters that
/// would be read and written at each application.
#[tokio::test]
async fn configurations_are_bounded_together() {
    let more = format!(
        "args = [\"--configurations\", \"64\", \"--objects\", \"150000\"]\n{QUICK}\n[permissions]\n\
         request = [\"behavior:configure_simulation\", \"behavior:extend_effects\"]"
    );
    let daemon = attacked(Options::new().config(BUFFERED).rogue("x", &more)).await;
    daemon.serving("x").await;
    under_attack(&daemon, 256 * MIB, async {
        let build = async || {
            let mut extensions = ExtensionsClient::new(daemon.channel());
            let built = extensions.build_simulation_config(BuildSimulationConfigRequest::default());
            let built = built.await.expect("built").into_inner();
            assert_eq!(built.applied.len() + built.skipped.len(), 64);
            assert!(built.applied.len() <= 1, "{:?}", built.applied);
            1
        };
        let mut all = 0;
        for _ in 0..3 {
            all += build().await;
        }
        all
    })
    .await;
    let refused = daemon.logs("x").await;
    let refused = refused.iter().find(|line| line.text.contains("default parameters have"));
    assert!(refused.is_some_and(|line| line.text.contains("effect \"e\" was not registered")));
    daemon.stop().await;
}

/// Seconds of processor that a process has had.
fn processor(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("stat");
    let (_, tail) = stat.rsplit_once(')').expect("name");
    let fields: Vec<u64> =
        tail.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    (fields[11] + fields[12]) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// Processor time of an idle daemon over a few seconds.
async fn idle(pid: u32) -> f64 {
    let before = processor(pid);
    a_while().await;
    a_while().await;
    processor(pid) - before
}

async fn start_often(client: &Client, times: usize) -> u64 {
    let mut started = 0;
    for _ in 0..times / 20 {
        let all = (0..20)
            .map(|_| async { client.admin().start_plugin(client.action_now("x")).await.is_ok() });
        let all = futures_util::future::join_all(all).await;
        started += all.into_iter().filter(|ok| *ok).count() as u64;
    }
    started
}

/// Finding 21: whoever is started again and again without its model is looked
/// after by one poller. The path is long, so that many would be noticed.
#[tokio::test]
async fn a_missing_model_has_one_poller() {
    let daemon = attacked(Options::new()).await;
    let deep = daemon.root.join(format!("deep/{}", vec!["a"; 200].join("/")));
    std::fs::create_dir_all(&deep).expect("folders");
    let model = deep.join("model.onnx");
    let more = format!("[requires]\nmodels = {{ m = {:?} }}", model.display().to_string());
    daemon.write_plugin("x", &manifest("x", &more));
    daemon.reload().await;
    daemon.until("x", |health| health.state() == PluginState::Unavailable).await;
    let control = idle(daemon.pid()).await;
    under_attack(&daemon, 64 * MIB, start_often(&daemon, 3000)).await;
    daemon.until("x", |health| health.state() == PluginState::Unavailable).await;
    let after = idle(daemon.pid()).await;
    assert!(after <= control + 0.3, "{after:.2} s of processor, {control:.2} s before");
    // And it looks: the plugin starts when its model comes.
    std::fs::write(&model, "weights").expect("model");
    stockade_tests::give_to_test_user(&daemon.root.join("deep"));
    daemon.serving("x").await;
    daemon.stop().await;
}

/// Bytes that wait in a pipe.
fn unread(pipe: &std::fs::File) -> i32 {
    let mut bytes = 0;
    let asked = unsafe { libc::ioctl(pipe.as_raw_fd(), libc::FIONREAD, &mut bytes) };
    assert_eq!(asked, 0, "FIONREAD");
    bytes
}

/// Finding 26: standard error is a full pipe that nobody reads. Health and calls
/// go on, and SIGTERM is obeyed.
#[tokio::test]
async fn a_standard_error_that_nobody_reads_stops_nobody() {
    // Opened for reading, too: it fills, and writing to it never fails.
    let script = "mkfifo err && exec \"$@\" 2<>err";
    let wrapper = ["sh", "-c", script, "sh"].map(str::to_owned).to_vec();
    let options =
        Options::new().within(wrapper).config("log = \"stockade=debug\"").rogue("x", QUICK);
    let mut daemon = attacked(options.config("shutdown_timeout = \"5s\"")).await;
    daemon.serving("x").await;
    let pipe = std::fs::File::open(daemon.root.join("err")).expect("the pipe");
    under_attack(&daemon, 64 * MIB, async {
        // Full when more has been said and no more is in it.
        let (mut before, mut same) = (-1, 0);
        for _ in 0..500 {
            let args = json!({"text": "x".repeat(3000)});
            let outcome = daemon.call("x", "words_then_exit", args).await;
            assert!(!outcome.ok, "{outcome:?}");
            daemon.serving("x").await;
            let names = json!({"kind": "plugin", "n": 10, "bytes": 5000});
            let _: Value = daemon.call("x", "long_names", names).await.result;
            let now = unread(&pipe);
            same = if now > 16_000 && now == before { same + 1 } else { 0 };
            if same == 3 {
                break;
            }
            before = now;
        }
        assert_eq!(same, 3, "the pipe never became full: {} bytes", unread(&pipe));
        // More is said, which nobody can write any more.
        for _ in 0..5 {
            daemon.call("x", "words_then_exit", json!({"text": "x"})).await;
            daemon.serving("x").await;
        }
        a_while().await;
        unread(&pipe) as u64
    })
    .await;
    daemon.signal(libc::SIGTERM);
    let (code, took) = timed(daemon.ended()).await;
    assert_eq!(code, Some(0));
    assert!(took.as_secs() < 10, "the end took {took:?}");
    nothing_left(&mut daemon).await;
}
