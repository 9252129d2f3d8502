//! Shared libraries as plugins: in C and in Rust, confined like any other.

use std::{path::Path, process::Command};

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Daemon, Options, eventually, target_dir, write_file};

fn examples() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/examples")
}

/// Compiles a C source to `directory/name`.
fn compile(source: &Path, directory: &Path, name: &str) {
    std::fs::create_dir_all(directory).expect("directory");
    let include = examples().join("../library/include");
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-I"])
        .arg(include)
        .arg("-o")
        .arg(directory.join(name))
        .arg(source)
        .status()
        .expect("cc");
    assert!(status.success());
}

async fn sums(daemon: &Daemon) {
    let directory = daemon.directory("sums");
    compile(&examples().join("library-c/sums.c"), &directory, "libsums.so");
    std::fs::copy(examples().join("library-c/plugin.toml"), directory.join("plugin.toml"))
        .expect("plugin.toml");
    daemon.reload().await;
    daemon.serving("sums").await;
}

#[tokio::test]
async fn a_library_in_c_is_a_plugin_like_any_other() {
    let daemon = Options::new().bystander().start().await;
    sums(&daemon).await;
    assert_eq!(daemon.health("sums").await.sandbox, "strict");
    let total = daemon.call("sums", "sum", json!({"numbers": [1, 2.5, 3]})).await.unwrap();
    assert_eq!(total, json!(6.5));
    let outcome = daemon.call("sums", "sum", json!({"numbers": "three"})).await;
    assert_eq!(outcome.error_type, "InvalidArguments", "{outcome:?}");
    let outcome = daemon.call("sums", "count", json!({})).await;
    assert_eq!(
        (outcome.items.clone(), outcome.unwrap()),
        (vec![json!(1), json!(2), json!(3)], json!("done"))
    );
    let outcome = daemon.call_with("sums", "reverse", json!({}), &[("data", b"abc")], 0).await;
    assert_eq!(&outcome.attachments[0].1[..], b"cba");
    assert_eq!(outcome.unwrap()["data"], json!("attachment:turned"));
    eventually("the line is there", || async {
        let logs = daemon.logs("sums").await;
        logs.iter().any(|line| line.text == "turned around" && line.level == "info").then_some(())
    })
    .await;
    let outcome = daemon.call("sums", "reverse", json!({})).await;
    assert_eq!(
        (outcome.error_type.as_str(), outcome.error.as_str()),
        ("ValueError", "data is missing")
    );
    // What would take down a server that loads it itself costs one call.
    let outcome = daemon.call("sums", "crash", json!({})).await;
    assert_eq!(outcome.failed(), ("WorkerCrashed", "crash"));
    assert!(outcome.error.contains("SIGSEGV") && outcome.error.contains("in tool crash"));
    daemon.until("sums", |health| health.generation == 2).await;
    daemon.serving("sums").await;
    daemon.call("sums", "sum", json!({"numbers": [1]})).await.unwrap();
    daemon.stop().await;
}

#[tokio::test]
async fn a_library_in_rust_is_one_too() {
    let daemon = Options::new().start().await;
    let directory = daemon.directory("words");
    std::fs::create_dir_all(&directory).expect("directory");
    std::fs::copy(target_dir().join("libwords.so"), directory.join("libwords.so")).expect("built");
    std::fs::copy(examples().join("library-rust/plugin.toml"), directory.join("plugin.toml"))
        .expect("plugin.toml");
    daemon.reload().await;
    daemon.serving("words").await;
    let counts = daemon.call("words", "count", json!({"text": "a b a"})).await.unwrap();
    assert_eq!(counts, json!([["a", 2], ["b", 1]]));
    daemon.stop().await;
}

#[tokio::test]
async fn what_is_no_plugin_library_says_what_is_wrong_with_it() {
    let daemon = Options::new().start().await;
    let toml = |name: &str, library: &str| {
        format!("name = \"{name}\"\n[run]\nlibrary = \"{library}\"\n[restart]\nmax_deaths = 0\n")
    };
    let place = tempfile::tempdir().expect("folder");
    let source = |name: &str, text: &str| {
        let path = place.path().join(name);
        write_file(&path, text);
        path
    };
    let symbol = source("nothing.c", "int nothing;\n");
    compile(&symbol, &daemon.directory("nothing"), "lib.so");
    let newer = source(
        "newer.c",
        "#include <stockade.h>\nstatic const stockade_plugin p = {.abi = 9};\n\
         const stockade_plugin *stockade_plugin_v1(void) { return &p; }\n",
    );
    compile(&newer, &daemon.directory("newer"), "lib.so");
    let failing = source(
        "failing.c",
        "#include <stockade.h>\n\
         static int32_t init(stockade_call *s, const stockade_host *h, void **p) {\n\
         (void)p; h->fail(s, \"DeviceError\", \"no device\"); return 1; }\n\
         static const stockade_plugin p = {.abi = STOCKADE_ABI, .init = init};\n\
         const stockade_plugin *stockade_plugin_v1(void) { return &p; }\n",
    );
    compile(&failing, &daemon.directory("failing"), "lib.so");
    write_file(&daemon.directory("text").join("lib.so"), "not an ELF file");
    for name in ["nothing", "newer", "failing", "text", "absent"] {
        write_file(&daemon.directory(name).join("plugin.toml"), &toml(name, "lib.so"));
    }
    daemon.reload().await;
    for (name, state, reason) in [
        ("nothing", PluginState::Failed, "does not export stockade_plugin_v1"),
        ("newer", PluginState::Failed, "speaks version 9 of stockade.h; this host speaks 1"),
        ("failing", PluginState::Failed, "DeviceError: no device"),
        ("text", PluginState::Failed, "cannot load"),
        ("absent", PluginState::Unavailable, "Cannot load lib.so: no such file (ENOENT)"),
    ] {
        let health = daemon.until(name, |health| health.state() == state).await;
        assert!(health.reason.clone().expect("reason").contains(reason), "{name}: {health:?}");
    }
    daemon.stop().await;
}
