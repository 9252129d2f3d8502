//! HTTP with curl, as a user would.

use std::path::Path;

use serde_json::{Value, json};
use stockade_tests::{Client, Options};
use tokio::process::Command;

/// Status, headers (lower case) and body.
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {}", String::from_utf8_lossy(&self.body)))
    }
}

pub async fn curl(args: &[&str]) -> Answer {
    let output = Command::new("curl")
        .args(["-s", "-S", "-i", "--max-time", "60"])
        .args(args)
        .output()
        .await
        .expect("curl");
    let text = &output.stdout;
    let mut rest = &text[..];
    loop {
        let end = rest.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| {
            panic!(
                "no answer: {} {}",
                String::from_utf8_lossy(text),
                String::from_utf8_lossy(&output.stderr)
            )
        });
        let head = String::from_utf8_lossy(&rest[..end]).to_lowercase();
        let status = head.split_whitespace().nth(1).expect("status").parse().expect("number");
        rest = &rest[end + 4..];
        if status != 100 {
            return Answer { status, head, body: rest.to_vec() };
        }
    }
}

/// A request over the unix socket.
pub async fn on_socket(client: &Client, path: &str, args: &[&str]) -> Answer {
    let socket = client.socket.display().to_string();
    let url = format!("http://localhost{path}");
    curl(&[&["--unix-socket", &socket, &url], args].concat()).await
}

fn photo() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/examples/image/photo.jpg");
    path.display().to_string()
}

/// A daemon with the example image plugin.
pub async fn with_image() -> stockade_tests::Daemon {
    let daemon = Options::new()
        .plugin("image", "name = \"image\"\nversion = \"0.1.0\"\n[run]\nbinary = \"bin/image\"\n")
        .port()
        .start()
        .await;
    std::fs::copy(stockade_tests::binary("image"), daemon.directory("image").join("bin/image"))
        .expect("image");
    daemon.serving("image").await;
    daemon
}

#[tokio::test]
async fn a_picture_goes_in_as_json_multipart_and_raw() {
    let daemon = with_image().await;
    let base = format!("http://{}", daemon.address().await);
    let run = |tool: &str| format!("{base}/v1/plugins/image/tools/{tool}/run");

    // Multipart: fields are arguments, files are binary arguments.
    let part = format!("image=@{};type=image/jpeg", photo());
    let answer = curl(&[&run("thumbnail"), "-F", "width=64", "-F", &part]).await;
    assert_eq!(answer.status, 200);
    let outcome = answer.json();
    assert_eq!((&outcome["ok"], &outcome["result"]["width"]), (&json!(true), &json!(64)));
    let base64 = outcome["result"]["thumbnail"].as_str().expect("base64");
    assert!(base64.starts_with("/9j/"), "a JPEG in base64");

    // A number that could not be passed on as it came is refused.
    let large = "width=123456789012345678901";
    let answer = curl(&[&run("thumbnail"), "-F", large, "-F", &part]).await;
    let error = answer.json()["error"].to_string();
    assert!(answer.status == 422 && error.contains("64 bits"), "{error}");

    // A part `args` with JSON does the same.
    let answer = curl(&[&run("thumbnail"), "-F", "args={\"width\": 32}", "-F", &part]).await;
    assert_eq!(answer.json()["result"]["width"], 32);

    // Raw: the body is the only binary argument, the query the others; the
    // attachment comes back as it is.
    let body = format!("@{}", photo());
    let url = format!("{}?width=48", run("thumbnail"));
    let answer = curl(&[
        url.as_str(),
        "--data-binary",
        &body,
        "-H",
        "content-type: image/jpeg",
        "-H",
        "accept: image/jpeg",
    ])
    .await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: image/jpeg"), "{}", answer.head);
    assert_eq!(&answer.body[..3], b"\xff\xd8\xff");

    // JSON: base64 where the schema says binary.
    let request = json!({"args": {"image": base64}});
    let answer = curl(&[
        &run("describe"),
        "-H",
        "content-type: application/json",
        "-d",
        &request.to_string(),
    ])
    .await;
    assert_eq!(answer.json()["result"]["width"], 64);

    // Progress and the outcome as lines.
    let answer = curl(&[
        run("describe").as_str(),
        "-H",
        "content-type: application/json",
        "-H",
        "accept: application/x-ndjson",
        "-d",
        &request.to_string(),
    ])
    .await;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).expect("line")).collect();
    assert_eq!(lines[0]["progress"]["message"], "decoded");
    assert_eq!(lines.last().expect("outcome")["outcome"]["ok"], true);
    daemon.stop().await;
}

#[tokio::test]
async fn statuses_are_those_of_the_table() {
    let daemon = Options::new()
        .rogue("rogue", "queue = { size = 0 }\n[restart]\nbackoff_min = \"30s\"\nmax_deaths = 99")
        .rogue("gone", "[requires]\ncommands = [\"no-such-command\"]")
        .config("max_request = \"1MiB\"")
        .port()
        .start()
        .await;
    daemon.serving("rogue").await;
    let base = format!("http://{}", daemon.address().await);
    let run = async |plugin: &str, tool: &str, body: &str| {
        let url = format!("{base}/v1/plugins/{plugin}/tools/{tool}/run");
        curl(&[&url, "-H", "content-type: application/json", "-d", body]).await
    };
    let answer = run("rogue", "echo", r#"{"args": {"text": "hi"}}"#).await;
    assert_eq!(answer.status, 200);
    let outcome = answer.json();
    assert_eq!(outcome["result"], json!({"text": "hi", "blob": null}));
    for (key, value) in [
        ("ok", json!(true)),
        ("error", Value::Null),
        ("error_type", Value::Null),
        ("plugin", json!("rogue")),
        ("tool", json!("echo")),
        ("generation", json!(1)),
        ("delivered", json!(true)),
        ("cause", Value::Null),
    ] {
        assert_eq!(outcome[key], value, "{key}");
    }
    assert!(outcome["duration_ms"].as_f64().expect("ms") > 0.0);
    assert_eq!(outcome["call_id"], "rogue-1-1");

    let check = |answer: &Answer, status: u16, kind: &str, error: &str| {
        let outcome = answer.json();
        assert_eq!((answer.status, &outcome["error_type"]), (status, &json!(kind)), "{outcome}");
        let text = outcome["error"].as_str().expect("error");
        assert!(text.starts_with(error), "{text}");
        assert_eq!((&outcome["ok"], &outcome["result"]), (&json!(false), &Value::Null));
    };
    check(&run("nobody", "t", "{}").await, 404, "PluginNotFound", "Plugin nobody not found");
    check(
        &run("rogue", "nothing", "{}").await,
        404,
        "ToolNotFound",
        "Tool nothing not found in plugin rogue (available: echo, ",
    );
    check(
        &run("rogue", "echo", r#"{"args": {"text": 7}}"#).await,
        422,
        "InvalidArguments",
        "text: 7 is not of type \"string\"",
    );
    check(
        &run("rogue", "echo", "{}").await,
        422,
        "InvalidArguments",
        "\"text\" is a required property",
    );
    check(
        &run("rogue", "echo", "{nonsense").await,
        422,
        "InvalidArguments",
        "the body is not JSON",
    );
    check(
        &run("rogue", "echo", r#"{"args": {"text": "x", "blob": "%%%"}}"#).await,
        422,
        "InvalidArguments",
        "blob: must be base64 text or an attachment",
    );
    let gone = run("gone", "t", "{}").await;
    check(
        &gone,
        503,
        "PluginUnavailable",
        "Plugin is UNAVAILABLE: Missing dependencies: no-such-command",
    );
    assert!(gone.head.contains("retry-after: "), "{}", gone.head);
    check(&run("rogue", "raise", r#"{"args": {"text": "no"}}"#).await, 500, "ValueError", "no");
    // Arguments that never reached the plugin count for nothing; one raised.
    let health = daemon.health("rogue").await;
    assert_eq!((health.success_count, health.error_count), (1, 1));

    // One slot, no queue.
    let client = daemon.client();
    let busy =
        tokio::spawn(async move { client.call("rogue", "wait", json!({"n": 60_000})).await });
    daemon.until("rogue", |health| health.in_flight == 1).await;
    let full = run("rogue", "pid", "{}").await;
    check(&full, 429, "QueueFull", "1 call runs and 0 wait");
    assert!(full.head.contains("retry-after: 1"), "{}", full.head);
    busy.abort();
    daemon.until("rogue", |health| health.in_flight == 0).await;

    let late = run("rogue", "sleep", r#"{"args": {"n": 300}, "timeout_ms": 50}"#).await;
    check(&late, 504, "TimeoutError", "Tool sleep did not answer within the caller's deadline.");
    daemon.until("rogue", |health| health.in_flight == 0).await;
    let dead = run("rogue", "exit", r#"{"args": {"n": 3}}"#).await;
    check(&dead, 502, "WorkerCrashed", "Exited 3 after ");
    assert_eq!(dead.json()["cause"], "exit_code");
    daemon.serving("rogue").await;
    run("rogue", "exit", r#"{"args": {"n": 4}}"#).await;
    daemon.until("rogue", |health| health.substate == "BACKOFF").await;
    let down = run("rogue", "pid", "{}").await;
    check(&down, 503, "PluginUnavailable", "Plugin is FAILED: Exited 4 after ");
    assert!(down.head.contains("retry-after: "), "{}", down.head);

    let big = format!(r#"{{"args": {{"text": "{}"}}}}"#, "x".repeat(1_500_000));
    let file = daemon.root.join("big.json");
    std::fs::write(&file, big).expect("big");
    let large = run("good", "echo", &format!("@{}", file.display())).await;
    check(&large, 413, "PayloadTooLarge", "The arguments are ");
    daemon.stop().await;
}

#[tokio::test]
async fn the_port_reads_and_calls_only_and_knows_its_names() {
    let daemon = Options::new().port().start().await;
    let address = daemon.address().await;
    let base = format!("http://{address}");
    let list = format!("{base}/v1/plugins");
    assert_eq!(curl(&[&list]).await.status, 200);
    assert_eq!(curl(&[&list, "-H", "host: localhost"]).await.status, 200);
    for header in
        ["host: evil.example", "origin: http://evil.example", "sec-fetch-site: cross-site"]
    {
        let answer = curl(&[&list, "-H", header]).await;
        assert_eq!(answer.status, 403, "{header}");
        assert!(answer.json()["detail"].is_string());
    }
    let ours = format!("origin: {base}");
    assert_eq!(curl(&[&list, "-H", &ours]).await.status, 200);
    // Admin actions go by the socket.
    let stop = "/v1/plugins/good/stop";
    let answer = curl(&[&format!("{base}{stop}"), "-X", "POST"]).await;
    assert_eq!(answer.status, 403);
    assert!(answer.json()["detail"].as_str().expect("detail").contains("need the unix socket"));
    let answer = curl(&[&format!("{base}/v1/plugins/reload"), "-X", "POST"]).await;
    assert_eq!(answer.status, 403);
    assert_eq!(on_socket(&daemon, stop, &["-X", "POST"]).await.status, 202);
    daemon.until("good", |health| health.substate == "STOPPED").await;
    assert_eq!(on_socket(&daemon, "/v1/plugins/good/start", &["-X", "POST"]).await.status, 202);
    daemon.serving("good").await;
    let answer = on_socket(&daemon, "/v1/plugins/reload", &["-X", "POST"]).await;
    assert_eq!(answer.json()["problems"], json!([]));
    // What a web form can send is no call.
    let url = format!("{base}/v1/plugins/good/tools/ping/run");
    let answer = curl(&[&url, "-H", "content-type: text/plain", "-d", "{}"]).await;
    assert_eq!(answer.status, 415);
    // gRPC on the port: the same door.
    let channel = tonic::transport::Endpoint::from_shared(base)
        .expect("url")
        .connect()
        .await
        .expect("connect");
    let mut admin = stockade_proto::v1::admin_client::AdminClient::new(channel);
    let refused = admin.stop_plugin(daemon.action("good")).await.expect_err("refused");
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    daemon.stop().await;
}

/// What cannot be read is refused by its head, and says what to do.
#[tokio::test]
async fn heads_that_cannot_be_served_are_refused() {
    let daemon = Options::new().port().start().await;
    daemon.serving("good").await;
    let url = format!("http://{}/v1/plugins/good/tools/ping/run", daemon.address().await);
    let json = "content-type: application/json";
    let packed = ["-H", json, "-H", "content-encoding: gzip", "-d", "{}", &url];
    let answer = curl(&packed).await;
    assert_eq!(answer.status, 415);
    assert!(answer.head.contains("accept-encoding: identity"), "{}", answer.head);
    let long = format!("x-long: {}", "x".repeat(20_000));
    let answer = curl(&["-H", &long, "-H", json, "-d", "{}", &url]).await;
    assert_eq!(answer.status, 431);
    assert!(answer.json()["detail"].as_str().expect("detail").contains("16384 are allowed"));
    let answer = curl(&["-H", "stockade-timeout-ms: abc", "-H", json, "-d", "{}", &url]).await;
    assert_eq!(answer.status, 422);
    let answer = curl(&["-H", json, "-d", r#"{"args": {}, "timeout_ms": 0}"#, &url]).await;
    assert_eq!(answer.status, 200, "0 is the plugin's own");
    daemon.stop().await;
}
