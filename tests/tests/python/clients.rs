//! Python servers that call plugins: our client, a stock grpcio client, the
//! FastAPI example.

use std::{path::Path, process::Stdio};

use serde_json::{Value, json};
use stockade_tests::{Daemon, Options, curl, environments, eventually};
use tokio::process::Command;

const SOURCE: &str = "
import ctypes, time
from typing import List
import numpy
from stockade import Blob, Context, tool

@tool
def greet(name: str) -> str:
    return f'Hello, {name}!'

@tool
def echo(data: bytes, ctx: Context):
    return {'copy': Blob(data, 'image/x'), 'kind': ctx.content_type('data')}

@tool
def lengths(frames: List[bytes], scale: int = 1):
    return [len(frame) * scale for frame in frames]

@tool
def double(array: numpy.ndarray):
    return array * 2

@tool
def fail():
    return {}['missing']

@tool
def nap(seconds: float, ctx: Context):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not ctx.cancelled:
        time.sleep(0.005)

@tool
def die():
    ctypes.string_at(0)

@tool
def count(n: int, ctx: Context):
    if n < 0:
        raise ValueError('n is negative')
    for i in range(n):
        ctx.progress(i / n, 'counting')
        yield i

@tool
def named(data: bytes):
    return {'a\"b': data, 'a_b': b'2', 'outcome': b'3', 'x\\r\\ny': b'4'}

@tool
def argued(args: bytes) -> int:
    return len(args)

@tool
def times_out():
    raise TimeoutError('mine')

@tool
def analyze(image_bytes: bytes):
    return {'bytes': len(image_bytes)}
";

async fn daemon() -> Daemon {
    let python = environments("client").join("bin/python").display().to_string();
    let more = format!(
        "interpreter = {python:?}\nconcurrency = 4\n[restart]\nbackoff_min = \"0s\"\n\
         backoff_max = \"10ms\"\nmax_deaths = 1000\n"
    );
    let daemon = Options::new().port().python("typed", &more, SOURCE).start().await;
    daemon.serving("typed").await;
    daemon
}

fn script(name: &str) -> Command {
    let mut command = Command::new(environments("client").join("bin/python"));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python").join(name));
    command.kill_on_drop(true);
    command
}

async fn passes(mut command: Command) {
    let output = command.output().await.expect("python");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(text(&output.stdout).trim(), "ok");
}

#[tokio::test]
async fn the_client_keeps_its_promises() {
    let daemon = daemon().await;
    let mut command = script("client_check.py");
    let address = daemon.address().await;
    let url = if address.starts_with("http") { address } else { format!("http://{address}") };
    command.arg(url).env("STOCKADE_SOCKET", &daemon.socket);
    passes(command).await;
    daemon.stop().await;
}

#[tokio::test]
async fn a_stock_grpcio_client_works_with_the_authority_option() {
    let daemon = daemon().await;
    let mut command = script("grpcio_check.py");
    command.arg(&daemon.socket).arg(environments("client").join("generated"));
    passes(command).await;
    daemon.stop().await;
}

#[tokio::test]
async fn the_fastapi_example_replaces_an_in_process_loader() {
    let daemon = daemon().await;
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-sdk/python/examples");
    let socket = daemon.root.join("server.sock").display().to_string();
    let _server = Command::new(environments("client").join("bin/python"))
        .args(["-m", "uvicorn", "server:app", "--log-level", "warning", "--uds", &socket])
        .current_dir(examples)
        .env("STOCKADE_SOCKET", &daemon.socket)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("uvicorn");
    let url = |path: &str| format!("http://localhost{path}");
    let curl = async |args: &[&str]| {
        let socket = ["--unix-socket", &socket];
        let (status, body) = curl(&[&socket, args].concat()).await;
        (status, serde_json::from_str::<Value>(&body).unwrap_or(Value::Null))
    };
    let list = url("/v1/plugins");
    let plugins = eventually("the server", || async {
        let (status, plugins) = curl(&[&list]).await;
        (status == 200).then_some(plugins)
    })
    .await;
    assert_eq!(plugins.as_array().map(Vec::len), Some(2), "{plugins}");
    let (status, health) = curl(&[&url("/v1/plugins/typed/health")]).await;
    assert_eq!((status, &health["name"]), (200, &json!("typed")));
    assert_eq!(curl(&[&url("/v1/plugins/nobody/health")]).await.0, 404);
    let body = json!({"tool_name": "greet", "args": {"name": "Ada"}}).to_string();
    let run = url("/v1/plugins/typed/tools");
    let (status, outcome) = curl(&["--json", &body, &run]).await;
    assert_eq!((status, &outcome["result"]), (200, &json!("Hello, Ada!")));
    let (_, outcome) = curl(&["--json", "{\"tool_name\": \"fail\"}", &run]).await;
    assert_eq!((&outcome["ok"], &outcome["error_type"]), (&json!(false), &json!("KeyError")));
    let photo = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../plugin-sdk/examples/image/photo.jpg")
        .display()
        .to_string();
    let upload = format!("image=@{photo}");
    let (status, answer) = curl(&["-F", &upload, &url("/v1/plugins/typed/run")]).await;
    assert_eq!(status, 200, "{answer}");
    let size = std::fs::metadata(&photo).expect("photo").len();
    assert_eq!(answer["result"], json!({"bytes": size}));
    let (status, answer) =
        curl(&["-F", &upload, "-F", "tool=nothing", &url("/v1/plugins/typed/run")]).await;
    assert_eq!((status, &answer["error_type"]), (503, &json!("ToolNotFound")));
    daemon.stop().await;
}
