//! Every interpreter of this machine from 3.9 on, numpy 1 and 2, pydantic.

use serde_json::json;
use stockade_tests::{Options, environments, interpreters};

const SOURCE: &str = "
import ctypes, dataclasses, sys, threading
from typing import List, Optional
from stockade import Context, tool
import asyncio

@dataclasses.dataclass
class Point:
    x: int
    y: Optional[int] = None

@tool
def version() -> List[int]:
    return list(sys.version_info[:2])

@tool
def points(points: List[Point]):
    return [point.x for point in points]

@tool
def view(data: memoryview):
    return {'n': len(data), 'copy': bytes(data)}

@tool
def count(n: int):
    yield from range(n)

@tool
async def nap():
    await asyncio.sleep(0.001)
    return 'slept'

@tool
def fail():
    raise ValueError('bad luck')

@tool
def die():
    ctypes.string_at(0)
";

#[tokio::test]
async fn every_interpreter_of_this_machine_hosts_plugins() {
    let interpreters = interpreters();
    assert!(!interpreters.is_empty(), "no Python 3.9 or newer");
    println!("interpreters: {interpreters:?}");
    let mut options = Options::new();
    for (version, python) in &interpreters {
        let name = format!("py-{}", version.replace('.', "-"));
        let more = format!(
            "interpreter = {:?}\n[restart]\nbackoff_min = \"0s\"\n",
            python.display().to_string()
        );
        options = options.python(&name, &more, SOURCE);
    }
    let daemon = options.start().await;
    for version in interpreters.keys() {
        let name = format!("py-{}", version.replace('.', "-"));
        daemon.serving(&name).await;
        let told = daemon.call(&name, "version", json!({})).await.unwrap();
        assert_eq!(format!("{}.{}", told[0], told[1]), *version);
        let args = json!({"points": [{"x": 1}, {"x": 2, "y": 3}]});
        assert_eq!(daemon.call(&name, "points", args).await.unwrap(), json!([1, 2]));
        let blobs: &[(&str, &[u8])] = &[("data", b"abc")];
        let outcome = daemon.call_with(&name, "view", json!({}), blobs, 0).await;
        assert_eq!(outcome.attachments[0].1, b"abc", "{version}");
        assert_eq!(daemon.call(&name, "count", json!({"n": 3})).await.items, [0, 1, 2]);
        assert_eq!(daemon.call(&name, "nap", json!({})).await.unwrap(), "slept");
        let failed = daemon.call(&name, "fail", json!({})).await;
        assert_eq!((failed.error_type.as_str(), failed.error.as_str()), ("ValueError", "bad luck"));
        let died = daemon.call(&name, "die", json!({})).await;
        assert_eq!(died.failed(), ("WorkerCrashed", "crash"), "{version}");
        daemon.death(&name, "crash").await;
        let crash = &daemon.crashes(&name).await[0];
        assert!(crash.traceback.contains("in die"), "{version}: {crash:?}");
        daemon.serving(&name).await;
        daemon.call(&name, "version", json!({})).await.unwrap();
    }
    daemon.stop().await;
}

const ARRAYS: &str = "
import numpy
from typing import Optional
from stockade import tool

kept = []

@tool
def version() -> str:
    return numpy.__version__

@tool
def describe(array: numpy.ndarray, other: Optional[numpy.ndarray] = None):
    kept.append(array)
    return {'shape': array.shape, 'dtype': str(array.dtype), 'writeable': array.flags.writeable,
            'sum': array.sum(), 'mean': array.mean(), 'any': array.any(),
            'other': other is not None, 'scalar': numpy.int64(7), 'half': numpy.float32(0.5)}

@tool
def make(n: int):
    return {'square': numpy.arange(n * n, dtype='uint8').reshape(n, n),
            'turned': numpy.arange(6).reshape(2, 3).T}

@tool
def first() -> int:
    return kept[0].reshape(-1)[0]

@tool
def objects():
    return numpy.array([object()])

@tool
def infinite():
    return {'loss': numpy.float64('inf')}
";

/// A .npy file of these bytes.
fn npy(shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header =
        format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}").into_bytes();
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(b' ');
    }
    header.push(b'\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(&header);
    file.extend_from_slice(data);
    file
}

#[tokio::test]
async fn arrays_come_and_go_with_numpy_1_and_2() {
    let mut options = Options::new();
    for name in ["numpy1", "numpy2"] {
        let python = environments(name).join("bin/python").display().to_string();
        options = options.python(name, &format!("interpreter = {python:?}"), ARRAYS);
    }
    let daemon = options.start().await;
    for (name, major) in [("numpy1", "1."), ("numpy2", "2.")] {
        daemon.serving(name).await;
        let version = daemon.call(name, "version", json!({})).await.unwrap();
        assert!(version.as_str().is_some_and(|text| text.starts_with(major)), "{version}");
        let array = npy("(2, 3)", &[1, 2, 3, 4, 5, 6]);
        let blobs: &[(&str, &[u8])] = &[("array", &array)];
        let described = daemon.call_with(name, "describe", json!({}), blobs, 0).await.unwrap();
        assert_eq!(
            described,
            json!({"shape": [2, 3], "dtype": "uint8", "writeable": false, "sum": 21, "mean": 3.5,
                   "any": true, "other": false, "scalar": 7, "half": 0.5})
        );
        // What is no .npy is one dimension of bytes.
        let blobs: &[(&str, &[u8])] = &[("array", &[9, 8]), ("other", b"x")];
        let described = daemon.call_with(name, "describe", json!({}), blobs, 0).await.unwrap();
        assert_eq!((&described["shape"], &described["other"]), (&json!([2]), &json!(true)));
        // An array that is kept keeps its bytes.
        assert_eq!(daemon.call(name, "first", json!({})).await.unwrap(), 1);
        let made = daemon.call(name, "make", json!({"n": 2})).await;
        assert_eq!(made.result["square"], "attachment:square");
        assert_eq!(made.attachments[0].1, npy("(2, 2)", &[0, 1, 2, 3]));
        assert!(made.attachments[1].1.starts_with(b"\x93NUMPY"));
        let objects = daemon.call(name, "objects", json!({})).await;
        assert_eq!(objects.error_type, "TypeError", "{objects:?}");
        let infinite = daemon.call(name, "infinite", json!({})).await;
        assert_eq!(infinite.error, "result.loss is inf: JSON has no such number");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn pydantic_models_are_schemas_arguments_and_results() {
    let source = "
from typing import Annotated, List, Optional
from pydantic import BaseModel, Field
from stockade import tool

class Box(BaseModel):
    x: int
    y: int = 0

class Request(BaseModel):
    boxes: List[Box]
    name: Optional[str] = Field(None, description='whose')

class Reply(BaseModel):
    total: int
    biggest: Box

@tool
def add(request: Request, factor: Annotated[int, Field(ge=1, le=10)] = 1) -> Reply:
    assert isinstance(request, Request) and isinstance(request.boxes[0], Box)
    return Reply(total=sum(box.x for box in request.boxes) * factor, biggest=request.boxes[0])
";
    let python = environments("numpy2").join("bin/python").display().to_string();
    let more = format!("interpreter = {python:?}");
    let daemon = Options::new().python("models", &more, source).start().await;
    daemon.serving("models").await;
    let args = json!({"request": {"boxes": [{"x": 3}, {"x": 4, "y": 1}]}, "factor": 2});
    let reply = daemon.call("models", "add", args).await.unwrap();
    assert_eq!(reply, json!({"total": 14, "biggest": {"x": 3, "y": 0}}));
    for (args, place) in [
        (json!({"request": {"boxes": [{"x": "a"}]}}), "request/boxes/0/x"),
        (json!({"request": {"boxes": []}, "factor": 11}), "factor"),
    ] {
        let wrong = daemon.call("models", "add", args).await;
        assert_eq!(wrong.error_type, "InvalidArguments");
        assert!(wrong.error.contains(place), "{}", wrong.error);
    }
    daemon.stop().await;
}
