//! The supervisor inside another program.

use std::time::Duration;

use stockade::{Config, Supervisor, ToolCall};

#[tokio::test]
async fn a_server_can_embed_the_supervisor() {
    let folder = tempfile::tempdir().expect("folder");
    let plugin = folder.path().join("plugins/rogue");
    std::fs::create_dir_all(plugin.join("bin")).expect("bin");
    std::fs::copy(stockade_tests::binary("rogue"), plugin.join("bin/rogue")).expect("rogue");
    std::fs::write(plugin.join("plugin.toml"), stockade_tests::manifest("rogue", ""))
        .expect("toml");
    let config = Config::new(folder.path().join("plugins"), folder.path().join("state"));
    let supervisor = Supervisor::start(config).await.expect("start");
    supervisor.ready("rogue", Duration::from_secs(30)).await.expect("ready");
    let call = |tool: &str, args: &'static str| ToolCall {
        plugin: "rogue".into(),
        tool: tool.into(),
        args: args.into(),
        ..ToolCall::default()
    };
    let outcome = supervisor.calls().run(call("ping", r#"{"text": "hi"}"#)).await;
    assert_eq!(outcome.json().expect("result"), "hi");
    let outcome = supervisor.calls().run(call("segfault", "{}")).await;
    let error = outcome.result.expect_err("it crashed");
    assert_eq!(error.error_type(), "WorkerCrashed");
    // The embedding program lives, and so does the next call.
    let outcome = supervisor.calls().run(call("ping", r#"{"text": "again"}"#)).await;
    assert_eq!(outcome.json().expect("result"), "again");
    // Of all that this program has started, the launcher above that plugin.
    let plugins = stockade_tests::left_in(&plugin);
    let pid = plugins.first().and_then(|one| one.split(' ').next()?.parse().ok());
    let launcher = stockade_tests::ancestor(pid.expect("pid"), "stockade-launch");
    let family = stockade_tests::Family::of(launcher.expect("launcher"), folder.path());
    assert!(family.left().len() >= 3, "launcher, init and plugin: {:?}", family.left());
    assert_eq!(supervisor.shutdown().await, Vec::<String>::new());
    drop(supervisor);
    assert_eq!(family.left(), Vec::<String>::new());
}
