//! GPUs, with a fake NVML library.

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Options, binary};

const NEED: &str = "[requires]\ngpu = { count = 1, memory = \"8GiB\", capability = \"8.0\" }";

fn with_nvml(gpus: &str) -> Options {
    let library = binary("libfake_nvml.so").display().to_string();
    Options::new()
        .config(&format!("nvml = \"{library}\""))
        .env("FAKE_GPUS", gpus)
        .rogue("gpu", NEED)
        .rogue("any", "[requires]\ngpu = true")
}

#[tokio::test]
async fn without_a_gpu_the_plugin_is_unavailable_and_says_what_was_looked_for() {
    let daemon = Options::new().rogue("gpu", NEED).start().await;
    let health = daemon.state("gpu", PluginState::Unavailable, "PREFLIGHT_FAILED").await;
    let reason = health.reason.expect("reason");
    let start = "Plugin requires GPU/CUDA but CUDA not available (looked for 1 GPU with 8GiB, \
                 compute capability 8.0; NVML (libnvidia-ml.so.1): ";
    assert!(reason.starts_with(start), "{reason}");
    assert_eq!(health.missing, ["cuda"]);
    daemon.stop().await;
    let daemon = with_nvml("fail").start().await;
    daemon.state("any", PluginState::Unavailable, "PREFLIGHT_FAILED").await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_fitting_gpu_is_assigned_by_its_uuid() {
    let daemon = with_nvml("GPU-small,Old Card,4,7,5;GPU-large,New Card,80,9,0").start().await;
    daemon.serving("gpu").await;
    daemon.serving("any").await;
    let seen = daemon.call("gpu", "surroundings", json!({})).await.unwrap();
    let names = seen["environment"].as_array().expect("environment");
    assert!(names.iter().any(|name| name == "CUDA_VISIBLE_DEVICES"));
    let (_, out, _) = daemon.cli(&["describe", "gpu", "-o", "json"]).await;
    let described: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(described["gpus"], json!(["GPU-large"]));
    assert_eq!(described["manifest"]["limits"]["memory"], 8u64 << 30);
    assert_eq!(described["manifest"]["limits"]["data"], json!(null), "no RLIMIT_DATA with a GPU");
    daemon.stop().await;
}

/// A GPU is a hole in the sandbox, and is said to be one; the operator may close it.
#[tokio::test]
async fn a_gpu_weakens_the_sandbox_and_says_so() {
    let daemon = with_nvml("GPU-large,New Card,80,9,0")
        .config("[plugin.gpu.sandbox]\ngpu = false")
        .start()
        .await;
    assert_eq!(daemon.serving("any").await.sandbox, "standard (weakened by gpu)");
    assert_eq!(daemon.serving("gpu").await.sandbox, "standard");
    let memfd = json!({"calls": [[libc::SYS_memfd_create, "x", 0]]});
    let granted = daemon.call("any", "attack", memfd.clone()).await.unwrap();
    assert!(granted["results"][0].as_i64().expect("result") >= 0, "{granted}");
    let denied = daemon.call("gpu", "attack", memfd).await.unwrap();
    assert_eq!(denied["results"][0], -i64::from(libc::ENOSYS), "{denied}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_gpu_that_does_not_fit_is_told_with_what_was_found() {
    let daemon = with_nvml("GPU-small,Old Card,4,7,5").start().await;
    daemon.serving("any").await;
    let health = daemon.state("gpu", PluginState::Unavailable, "PREFLIGHT_FAILED").await;
    let reason = health.reason.expect("reason");
    assert!(reason.contains("found Old Card with 4GiB, 7.5"), "{reason}");
    daemon.stop().await;
}

#[tokio::test]
async fn an_nvml_that_hangs_holds_up_nobody_else() {
    let daemon = with_nvml("hang").start().await;
    daemon.call("good", "ping", json!({"text": "x"})).await.unwrap();
    let health = daemon.state("any", PluginState::Unavailable, "PREFLIGHT_FAILED").await;
    let reason = health.reason.expect("reason");
    assert!(reason.contains("NVML did not answer within 10 s"), "{reason}");
    daemon.stop().await;
}
