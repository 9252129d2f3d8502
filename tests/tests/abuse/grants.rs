//! Grants that lead elsewhere than they say, and what the daemon needs itself.

use libc::{ENOENT, O_CREAT, O_RDONLY, O_RDWR, SYS_open, SYS_symlink};
use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Options, manifest, write_file};

use crate::prison::{Prison, STANDARD, everybody};

fn writable(path: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::create_dir_all(path).expect("folder");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).expect("mode");
}

/// A link that the plugin made in its writable folder is no way out of what the
/// operator allows.
#[tokio::test]
async fn a_grant_is_where_it_leads() {
    for who in everybody() {
        let place = tempfile::tempdir().expect("folder");
        let at = |name: &str| place.path().join(name);
        writable(place.path());
        writable(&at("work"));
        writable(&at("hidden"));
        write_file(&at("hidden/secret"), "of the operator");
        let work = at("work").display().to_string();
        let link = at("work/link").display().to_string();
        let more = format!("fs = {{ read = [{link:?}], write = [{work:?}] }}");
        let prison = Prison::with(who, &more).await;
        let secret = at("work/link/secret").display().to_string();
        let calls = json!([[SYS_symlink, at("hidden").display().to_string(), link]]);
        assert_eq!(prison.attack(STANDARD, calls).await.last(), 0);
        let config = format!(
            "[sandbox]\nfs = {{ read = [{work:?}], write = [{work:?}] }}\n\
             [plugin.open.sandbox]\nallow_unsandboxed = true\n"
        );
        write_file(&prison.daemon.root.join("stockade.toml"), &config);
        prison.daemon.reload().await;
        prison.daemon.until(STANDARD, |health| health.generation == 2).await;
        prison.daemon.serving(STANDARD).await;
        let answers = prison.attack(STANDARD, json!([[SYS_open, secret, O_RDONLY]])).await;
        assert_eq!(answers.last(), -i64::from(ENOENT), "{who:?}");
        let (_, out, _) = prison.daemon.cli(&["describe", STANDARD]).await;
        assert!(out.contains("(it leads to "), "{out}");
        prison.end().await;
    }
}

/// The daemon's socket, its state, what decides what is run; a model that is
/// nobody's to read.
#[tokio::test]
async fn the_daemons_own_places_are_no_grants() {
    let daemon = Options::new().start().await;
    let outside = tempfile::tempdir().expect("folder");
    write_file(&outside.path().join("doors/model"), "x");
    write_file(&outside.path().join("allowed/model"), "x");
    let shown = |path: std::path::PathBuf| path.display().to_string();
    let root = shown(daemon.root.clone());
    // The socket lies beside the state: whoever names the folder of both is refused for
    // the state, so the socket is named itself, and by a link from elsewhere.
    let socket = shown(daemon.socket.clone());
    let link = shown(outside.path().join("allowed/door"));
    std::os::unix::fs::symlink(&daemon.socket, &link).expect("link");
    let model = shown(outside.path().join("doors/model"));
    let allowed = shown(outside.path().join("allowed"));
    let plugins = shown(daemon.root.join("plugins"));
    let binaries = shown(stockade_tests::target_dir());
    let counters = shown(daemon.root.join("state/counters"));
    for (name, more, reason) in [
        ("root", format!("[sandbox]\nfs = {{ read = [{root:?}] }}"), "the daemon's own state"),
        ("socket", format!("[sandbox]\nfs = {{ read = [{socket:?}] }}"), "the daemon's socket"),
        ("link", format!("[sandbox]\nfs = {{ read = [{link:?}] }}"), "the daemon's socket"),
        ("state", format!("[requires]\nmodels = {{ m = {counters:?} }}"), "the daemon's own state"),
        ("folders", format!("[sandbox]\nfs = {{ write = [{plugins:?}] }}"), "decides what is run"),
        (
            "programs",
            format!("[sandbox]\nfs = {{ write = [{binaries:?}] }}"),
            "decides what is run",
        ),
        (
            "model",
            format!("[requires]\nmodels = {{ m = {model:?} }}"),
            "outside of what the operator",
        ),
    ] {
        daemon.write_plugin(name, &manifest(name, &more));
        let config = format!("[plugin.model.sandbox]\nfs = {{ read = [{allowed:?}] }}\n");
        write_file(&daemon.root.join("stockade.toml"), &config);
        daemon.reload().await;
        let health = daemon.until(name, |health| health.state() == PluginState::Unavailable).await;
        assert!(health.reason.clone().expect("reason").contains(reason), "{name}: {health:?}");
    }
    // The control: what lies beside is nobody's.
    let beside = shown(outside.path().join("doors"));
    daemon.write_plugin(
        "fine",
        &manifest("fine", &format!("[sandbox]\nfs = {{ read = [{beside:?}] }}")),
    );
    daemon.reload().await;
    daemon.serving("fine").await;
    daemon.stop().await;
}

/// A path through /bin or /lib does not hide what they lead to.
#[tokio::test]
async fn grants_below_merged_folders_leave_them_whole() {
    let source = "class Plugin:\n    def run(self):\n        import subprocess\n        \
                  return subprocess.run('echo fine', shell=True, capture_output=True, text=True).stdout\n";
    let more = "interpreter = \"/bin/python3\"\n[sandbox]\nfs = { read = [\"/lib/udev\"] }\n";
    let daemon = Options::new().python("merged", more, source).start().await;
    daemon.serving("merged").await;
    assert_eq!(daemon.call("merged", "run", json!({})).await.unwrap(), json!("fine\n"));
    daemon.stop().await;
}

/// Files that a plugin made as the daemon's user are its own again under a
/// sandbox.
#[tokio::test]
async fn data_follows_the_plugin_from_user_to_user() {
    for who in everybody() {
        let prison = Prison::new(who).await;
        let file = |name: &str| prison.daemon.data(STANDARD).join(name).display().to_string();
        let make = |name: &str| json!([[SYS_open, file(name), O_CREAT | O_RDWR, 0o600]]);
        assert!(prison.attack(STANDARD, make("confined")).await.last() >= 0);
        let free = "[plugin.standard.sandbox]\nprofile = \"none\"\nallow_unsandboxed = true\n\
                    [plugin.open.sandbox]\nallow_unsandboxed = true\n";
        for (generation, config) in [(2, free), (3, "allow_unsandboxed = true\n")] {
            write_file(&prison.daemon.root.join("stockade.toml"), config);
            prison.daemon.reload().await;
            prison.daemon.until(STANDARD, |health| health.generation == generation).await;
            prison.daemon.serving(STANDARD).await;
            for name in ["confined", "free"] {
                let answers = prison.attack(STANDARD, make(name)).await;
                assert!(answers.last() >= 0, "{who:?} {generation} {name}: {answers:?}");
            }
        }
        prison.end().await;
    }
}

/// Strict executes one program; a script is two.
#[tokio::test]
async fn a_script_cannot_be_strict() {
    let daemon = Options::new().start().await;
    let directory = daemon.directory("script");
    write_file(&directory.join("bin/run"), "#!/bin/sh\nexit 1\n");
    let program = directory.join("bin/run");
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).expect("mode");
    let toml = "name = \"script\"\n[run]\nbinary = \"bin/run\"\n[sandbox]\nprofile = \"strict\"\n";
    write_file(&directory.join("plugin.toml"), toml);
    daemon.reload().await;
    let health = daemon.until("script", |health| health.state() == PluginState::Unavailable).await;
    assert!(health.reason.clone().expect("reason").contains("it is a script (#!)"), "{health:?}");
    daemon.stop().await;
}
