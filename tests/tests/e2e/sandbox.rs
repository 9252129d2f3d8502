//! What operators see and decide of the sandbox.

use serde_json::{Value, json};
use stockade_proto::v1::PluginState;
use stockade_tests::{Options, curl, write_file};

/// The manifest of a plugin with these lines of `[sandbox]`.
fn wants(grants: &str) -> String {
    format!("[sandbox]\n{grants}")
}

#[tokio::test]
async fn an_untrusted_plugin_needs_nothing_but_its_manifest() {
    let daemon = Options::new().rogue("plain", "").port().start().await;
    let health = daemon.serving("plain").await;
    assert_eq!(health.sandbox, "standard");
    let (code, out, _) = daemon.cli(&["describe", "plain"]).await;
    assert_eq!(code, 0);
    for part in
        ["sandbox: standard", "namespaces holds: ", "landlock   holds: ABI ", "seccomp    holds: "]
    {
        assert!(out.contains(part), "{part}\n{out}");
    }
    let (_, out, _) = daemon.cli(&["describe", "plain", "-o", "json"]).await;
    let sandbox = serde_json::from_str::<Value>(&out).expect("JSON")["sandbox"].clone();
    assert_eq!((&sandbox["profile"], &sandbox["denied"]), (&json!("standard"), &json!([])));
    assert_eq!(sandbox["granted"], json!(["jit"]));
    let visible = sandbox["visible"].to_string();
    assert!(visible.contains("/usr") && !visible.contains("shadow"), "{visible}");
    let url = format!("http://{}/v1/plugins/plain/sandbox", daemon.address().await);
    let (status, body) = curl(&[&url]).await;
    assert_eq!(status, 200);
    assert_eq!(serde_json::from_str::<Value>(&body).expect("JSON"), sandbox);
    daemon.stop().await;
}

#[tokio::test]
async fn the_operators_word_is_the_last() {
    let place = tempfile::tempdir().expect("folder");
    let shown = |name: &str| place.path().join(name).display().to_string();
    write_file(&place.path().join("models/a"), "a");
    write_file(&place.path().join("private/b"), "b");
    let more = wants(&format!(
        "fs = {{ read = [{:?}, {:?}], write = [{:?}] }}\nnet = true\njit = true",
        shown("models"),
        shown("private"),
        shown("private")
    ));
    let config = format!(
        "[sandbox]\nnet = \"loopback\"\n[plugin.greedy.sandbox]\njit = false\n\
         fs = {{ read = [{:?}], write = [] }}\n",
        shown("models")
    );
    let daemon = Options::new().rogue("greedy", &more).config(&config).start().await;
    daemon.serving("greedy").await;
    let (_, out, _) = daemon.cli(&["describe", "greedy", "-o", "json"]).await;
    let sandbox = serde_json::from_str::<Value>(&out).expect("JSON")["sandbox"].clone();
    let granted = json!([format!("fs.read {}", shown("models")), "net loopback"]);
    assert_eq!(sandbox["granted"], granted, "{sandbox}");
    let denied = json!([
        "net true",
        format!("fs.read {}", shown("private")),
        format!("fs.write {}", shown("private")),
        "jit"
    ]);
    assert_eq!(sandbox["denied"], denied, "{sandbox}");
    // A changed word is a change of the plugin.
    write_file(&daemon.root.join("stockade.toml"), "");
    daemon.reload().await;
    daemon.until("greedy", |health| health.generation == 2).await;
    let (_, out, _) = daemon.cli(&["describe", "greedy"]).await;
    assert!(out.contains("net true, jit") && !out.contains("denied"), "{out}");
    daemon.stop().await;
}

#[tokio::test]
async fn nothing_runs_unsandboxed_unless_the_operator_says_so() {
    let daemon = Options::new().rogue("free", &wants("profile = \"none\"")).start().await;
    let health = daemon.until("free", |health| health.state() == PluginState::Unavailable).await;
    let reason = health.reason.expect("reason");
    assert!(reason.contains("asks to run without a sandbox"), "{reason}");
    assert!(reason.contains("[plugin.free.sandbox]"), "{reason}");
    let config = "[plugin.free.sandbox]\nallow_unsandboxed = true\n";
    write_file(&daemon.root.join("stockade.toml"), config);
    daemon.reload().await;
    assert_eq!(daemon.serving("free").await.sandbox, "UNSANDBOXED");
    // Or the operator tightens it.
    let config = "[plugin.free.sandbox]\nprofile = \"strict\"\n";
    write_file(&daemon.root.join("stockade.toml"), config);
    daemon.reload().await;
    daemon.until("free", |health| health.sandbox == "strict").await;
    daemon.serving("free").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_grant_does_not_show_the_daemons_own() {
    let daemon = Options::new().start().await;
    let root = daemon.root.display().to_string();
    let grant = wants(&format!("fs = {{ read = [{root:?}] }}"));
    daemon.write_plugin("nosy", &stockade_tests::manifest("nosy", &grant));
    daemon.reload().await;
    let health = daemon.until("nosy", |health| health.state() == PluginState::Unavailable).await;
    let reason = health.reason.expect("reason");
    assert!(reason.contains("the daemon's own state. Grant a narrower folder"), "{reason}");
    daemon.stop().await;
}

/// A user namespace in which no further one can be made: what some distributions
/// and containers are like.
const WITHOUT_NAMESPACES: [&str; 4] = ["unshare", "--user", "--map-user=1000", "--keep-caps"];
const NO_MORE: &str = "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --ambient-caps=-all \
     --inh-caps=-all \"$@\"";

fn without_namespaces(options: Options) -> Options {
    let mut wrapper: Vec<String> = WITHOUT_NAMESPACES.map(str::to_owned).to_vec();
    wrapper.extend(["sh", "-c", NO_MORE, "sh"].map(str::to_owned));
    options.within(wrapper)
}

#[tokio::test]
async fn a_missing_layer_is_a_reason_not_to_start() {
    let options = Options::new().alone().rogue("plain", "");
    let daemon = without_namespaces(options).start().await;
    let health = daemon.until("plain", |health| health.state() == PluginState::Unavailable).await;
    let reason = health.reason.expect("reason");
    for part in [
        "Its sandbox cannot be built here; missing: namespaces (namespaces: ",
        "sysctl -w user.max_user_namespaces",
        "stockade doctor",
        "allow_degraded = true",
    ] {
        assert!(reason.contains(part), "{part}\n{reason}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_left_of_a_sandbox_is_said_and_holds() {
    let options = Options::new().alone().rogue("plain", "").config("allow_degraded = true");
    let daemon = without_namespaces(options).start().await;
    let health = daemon.serving("plain").await;
    let start = "degraded(landlock+seccomp): namespaces: ";
    assert!(health.sandbox.starts_with(start), "{}", health.sandbox);
    write_file(&daemon.root.join("secret"), "of the operator");
    let secret = daemon.root.join("secret").display().to_string();
    let home = daemon.data("plain").join("file").display().to_string();
    let calls = json!({"calls": [
        [libc::SYS_open, secret, libc::O_RDONLY],
        [libc::SYS_open, home, libc::O_CREAT | libc::O_RDWR, 0o600],
        [libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0],
        [libc::SYS_kill, daemon.pid(), 0],
        [libc::SYS_open, format!("/proc/{}/environ", daemon.pid()), libc::O_RDONLY],
        [libc::SYS_unshare, libc::CLONE_NEWUSER],
    ]});
    let results = daemon.call("plain", "attack", calls).await.unwrap()["results"].clone();
    let results: Vec<i64> = serde_json::from_value(results).expect("results");
    let no = |errno: i32| -i64::from(errno);
    assert_eq!(results[0], no(libc::EACCES));
    assert!(results[1] >= 0, "{results:?}");
    assert_eq!(results[2], no(libc::EPERM));
    assert_eq!(results[3], no(libc::EPERM), "Landlock keeps signals inside");
    assert_eq!(results[4], no(libc::EACCES));
    assert_eq!(results[5], no(libc::EPERM));
    let (_, out, _) = daemon.cli(&["describe", "plain"]).await;
    assert!(out.contains("namespaces MISSING: "), "{out}");
    daemon.stop().await;
}

#[tokio::test]
async fn doctor_tries_each_layer() {
    let daemon = Options::new().start().await;
    let (code, out, _) = daemon.cli(&["doctor"]).await;
    assert_eq!(code, 0, "{out}");
    for layer in ["users", "namespaces", "landlock", "seccomp", "cgroups"] {
        assert!(out.lines().any(|line| line.starts_with(layer)), "{layer}\n{out}");
    }
    let (_, out, _) = daemon.cli(&["doctor", "-o", "json"]).await;
    let list: Vec<Value> = serde_json::from_str(&out).expect("JSON");
    let namespaces = list.iter().find(|line| line["layer"] == "namespaces").expect("namespaces");
    assert_eq!((&namespaces["holds"], &namespaces["required"]), (&json!(true), &json!(true)));
    daemon.stop().await;
    // Where one is missing it says so, how to get it, and fails.
    let script =
        format!("set -- {} doctor; {NO_MORE}", stockade_tests::binary("stockade").display());
    let output = std::process::Command::new(WITHOUT_NAMESPACES[0])
        .args(&WITHOUT_NAMESPACES[1..])
        .args(["sh", "-c", &script])
        .env("HOME", "/nonexistent")
        .output()
        .expect("unshare");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("To get namespaces: run: sysctl -w user.max_user_namespaces"), "{text}");
    assert!(text.contains("The profile `standard` cannot be built here."), "{text}");
}

#[tokio::test]
async fn trace_prints_the_grants_that_a_plugin_would_need() {
    let place = tempfile::tempdir_in("/var/tmp").expect("folder");
    let shown = |name: &str| place.path().join(name).display().to_string();
    write_file(&place.path().join("models/a"), "a");
    write_file(&place.path().join("models/b"), "b");
    std::fs::create_dir(place.path().join("out")).expect("out");
    stockade_tests::give_to_test_user(place.path());
    let source = format!(
        "import ctypes, socket, subprocess, tempfile\n\
         open({:?}).read()\nopen({:?}).read()\n\
         class Plugin:\n\
         \x20   def work(self):\n\
         \x20       open({:?}, 'w').write('y')\n\
         \x20       with socket.socket() as s:\n\
         \x20           s.connect_ex(('127.0.0.1', 1))\n\
         \x20       subprocess.run(['true'], check=True)\n\
         \x20       ctypes.CDLL(None).unshare(0)\n\
         \x20       return tempfile.TemporaryFile().write(b'y')\n",
        shown("models/a"),
        shown("models/b"),
        shown("out/file"),
    );
    let daemon = Options::new().start().await;
    let plugin = daemon.root.join("elsewhere");
    write_file(&plugin.join("plugin.toml"), "name = \"needy\"\n[run]\npython = \"plugin\"\n");
    write_file(&plugin.join("plugin.py"), &source);
    stockade_tests::python_host();
    let directory = plugin.display().to_string();
    let (code, out, err) = daemon.cli(&["trace", &directory, "--for", "10ms"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(err.contains("runs without a sandbox"), "{err}");
    assert!(out.contains(&format!("fs = {{ read = [{:?}] }}", shown("models"))), "{out}");
    let line = ["trace", &directory, "--tool", "work", "--for", "10ms", "-o", "json"];
    let (code, out, err) = daemon.cli(&line).await;
    assert_eq!(code, 0, "{err}");
    let needs: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(needs["fs"], json!({"read": [shown("models")], "write": [shown("out")]}));
    assert_eq!((&needs["net"], &needs["refused"]["unshare"]), (&json!("loopback"), &json!(1)));
    // With what it printed, the plugin runs confined.
    let (_, grants, _) = daemon.cli(&line[..6]).await;
    let toml = format!("name = \"needy\"\n[run]\npython = \"plugin\"\n{grants}");
    write_file(&daemon.directory("needy").join("plugin.py"), &source);
    write_file(&daemon.directory("needy").join("plugin.toml"), &toml);
    // As root the plugin is another user than the one that made the folder.
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::Permissions::from_mode(0o777);
    for path in [place.path().to_owned(), place.path().join("out")] {
        std::fs::set_permissions(path, mode.clone()).expect("mode");
    }
    std::fs::remove_file(place.path().join("out/file")).expect("file");
    daemon.reload().await;
    daemon.serving("needy").await;
    assert_eq!(daemon.call("needy", "work", json!({})).await.unwrap(), 1);
    assert_eq!(daemon.health("needy").await.sandbox, "standard");
    let (code, _, err) = daemon.cli(&["trace", "nobody"]).await;
    assert_eq!(code, 4, "{err}");
    assert!(err.contains("neither a plugin's directory nor a plugin of"), "{err}");
    daemon.stop().await;
}
