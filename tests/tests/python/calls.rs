//! Arguments, results, attachments, streams, async tools, the context.

use serde_json::{Value, json};
use stockade_tests::{Daemon, Options, eventually, interpreters};

const SOURCE: &str = r#"
import asyncio, dataclasses, enum, threading, time
from typing import Annotated, Dict, List, Literal, Optional, Tuple, TypedDict
from stockade import Blob, Cancelled, Context, tool
import logging

log = logging.getLogger("typed")

class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"

@dataclasses.dataclass
class Box:
    x: int
    y: int
    label: Optional[str] = None

class Options(TypedDict):
    fast: bool

@tool
def everything(
    name: str,
    boxes: List[Box],
    color: Color = Color.RED,
    mode: Literal["a", "b"] = "a",
    pair: Optional[Tuple[int, float]] = None,
    scores: Optional[Dict[str, float]] = None,
    options: Optional[Options] = None,
    limit: Annotated[int, "how many at most"] = 5,
):
    """Takes everything.

    Args:
        name: whose it is
    """
    return {"name": name, "boxes": boxes, "color": color, "mode": mode, "pair": pair,
            "scores": scores, "options": options, "limit": limit,
            "kinds": [type(boxes[0]).__name__, type(color).__name__]}

@tool(name="big", title="Big numbers", description="Returns what it gets.")
def numbers(n: int) -> int:
    log.warning("got %s", n)
    print("printed")
    return n

@tool
def echo(data: bytes, ctx: Context):
    return {"kind": type(data).__name__, "type": ctx.content_type("data"),
            "inner": {"copy": data, "other": Blob(bytearray(b"xy"), "image/png")}}

@tool
def views(frames: List[memoryview]):
    return [len(frame) for frame in frames] + [frames[0].readonly]

kept = []

@tool
def keep(data: memoryview):
    kept.extend([data, data[2_000_000:].cast("c")])

@tool
def look():
    return [bytes(view[:3]).decode() for view in kept]

@tool
def count(n: int, pause: float = 0.0, ctx: Context = None):
    """Counts."""
    for i in range(n):
        ctx.progress(i / n, f"item {i}")
        if pause:
            time.sleep(pause)
        yield {"i": i}
    return n

@tool
async def count_slowly(n: int):
    for i in range(n):
        await asyncio.sleep(0.001)
        yield i

tasks = []

@tool
async def nap(seconds: float):
    tasks.append(asyncio.current_task())
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        tasks.append("cancelled")
        raise
    return "slept"

@tool
def cancelled_naps() -> int:
    return tasks.count("cancelled")

@tool
def patient(ctx: Context):
    while not ctx.cancelled:
        time.sleep(0.005)
    tasks.append("cancelled")
    ctx.check()

@tool
def times(ctx: Context):
    return {"remaining": ctx.remaining, "ahead": ctx.deadline - time.monotonic(),
            "id": ctx.call_id, "thread": threading.current_thread() is threading.main_thread()}

@tool
def odd(what: str):
    import datetime, pathlib, uuid
    loop = []
    loop.append(loop)
    return {
        "nan": lambda: {"score": [1.0, float("nan")]},
        "object": lambda: {"a": object()},
        "set": lambda: {1, 2},
        "generator": lambda: (i for i in range(3)),
        "loop": lambda: loop,
        "surrogate": lambda: "\ud800",
        "keys": lambda: {1: "a", None: "b", False: "c", 2.5: "d"},
        "badkey": lambda: {(1, 2): "a"},
        "huge": lambda: 10 ** 30,
        "values": lambda: [datetime.date(2026, 1, 2), pathlib.Path("/x"), Color.BLUE,
                           uuid.UUID(int=1), (1, 2)],
        "raise": lambda: 1 / 0,
        "exit": lambda: exit(4),
        "memory": lambda: (_ for _ in ()).throw(MemoryError()),
        "own": lambda: (_ for _ in ()).throw(type("Broken", (Exception,), {
            "__str__": lambda self: 1 / 0})()),
        "cancelled": lambda: (_ for _ in ()).throw(Cancelled("stop")),
        "text": lambda: "ünï\x00\n\"'",
    }[what]()
"#;

async fn typed() -> Daemon {
    let daemon =
        Options::new().bystander().python("typed", "concurrency = 4", SOURCE).start().await;
    daemon.serving("typed").await;
    daemon
}

#[tokio::test]
async fn type_hints_are_schemas_and_values_come_as_their_types() {
    let daemon = typed().await;
    let args = json!({"name": "n", "boxes": [{"x": 1, "y": 2}], "color": "blue",
        "pair": [1, 2.5], "scores": {"a": 0.5}, "options": {"fast": true}});
    let result = daemon.call("typed", "everything", args).await.unwrap();
    assert_eq!(result["boxes"], json!([{"x": 1, "y": 2, "label": null}]));
    assert_eq!(result["kinds"], json!(["Box", "Color"]));
    assert_eq!((&result["color"], &result["limit"]), (&json!("blue"), &json!(5)));
    for (args, place) in [
        (json!({"name": 1, "boxes": []}), "name: "),
        (json!({"name": "n", "boxes": [{"x": "a", "y": 2}]}), "boxes/0/x: "),
        (json!({"name": "n", "boxes": [], "color": "green"}), "color: "),
        (json!({"name": "n", "boxes": [], "pair": [1]}), "pair: "),
        (json!({"name": "n", "boxes": [], "nothing": 1}), "nothing"),
        (json!({"name": "n", "boxes": [], "options": {}}), "options: "),
    ] {
        let outcome = daemon.call("typed", "everything", args).await;
        assert_eq!(outcome.error_type, "InvalidArguments", "{outcome:?}");
        assert!(outcome.error.contains(place), "{}", outcome.error);
        assert!(!outcome.delivered);
    }
    let (_, out, _) = daemon.cli(&["describe", "typed", "-o", "json"]).await;
    let described: Value = serde_json::from_str(&out).expect("JSON");
    let tools = described["tools"].as_array().expect("tools");
    let tool = tools.iter().find(|tool| tool["name"] == "everything").expect("everything");
    assert_eq!(tool["description"], "Takes everything.");
    let schema = &tool["input_schema"];
    assert_eq!(schema["required"], json!(["name", "boxes"]));
    assert_eq!(schema["properties"]["limit"]["description"], "how many at most");
    assert_eq!(schema["properties"]["name"]["description"], "whose it is");
    assert!(tools.iter().any(|tool| tool["name"] == "big" && tool["title"] == "Big numbers"));
    daemon.stop().await;
}

#[tokio::test]
async fn numbers_and_texts_arrive_exactly() {
    let daemon = typed().await;
    for n in
        ["0", "-1", "9007199254740993", "18446744073709551615", "123456789012345678901234567890"]
    {
        let n: Value = serde_json::from_str(n).expect("number");
        let outcome = daemon.call("typed", "big", json!({"n": n})).await;
        // A number beyond 64 bits is no whole number for JSON Schema in Rust.
        assert!(outcome.ok || n.as_u64().is_none(), "{outcome:?}");
        if outcome.ok && n.is_u64() {
            assert_eq!(outcome.result, n);
        }
    }
    assert_eq!(
        daemon.call("typed", "odd", json!({"what": "text"})).await.unwrap(),
        "ünï\u{0}\n\"'"
    );
    let log = eventually("the log", || async {
        let lines = daemon.logs("typed").await;
        let warned = lines.iter().any(|line| line.level == "warn" && line.text == "typed: got 0");
        let printed = lines.iter().any(|line| line.stream == "stdout" && line.text == "printed");
        (warned && printed).then_some(())
    });
    log.await;
    daemon.stop().await;
}

#[tokio::test]
async fn bytes_come_and_go_as_attachments() {
    let daemon = typed().await;
    let blobs: &[(&str, &[u8])] = &[("data", b"\x00\x01\xff")];
    let outcome = daemon.call_with("typed", "echo", json!({}), blobs, 0).await;
    assert_eq!(
        outcome.result["inner"],
        json!({"copy": "attachment:copy", "other": "attachment:other"})
    );
    assert_eq!(outcome.result["kind"], "bytes");
    assert_eq!(outcome.attachments[0], ("copy".into(), b"\x00\x01\xff".to_vec()));
    assert_eq!(outcome.attachments[1], ("other".into(), b"xy".to_vec()));
    let blobs: &[(&str, &[u8])] = &[("frames", b"abc"), ("frames", b"de")];
    let outcome = daemon.call_with("typed", "views", json!({}), blobs, 0).await;
    assert_eq!(outcome.unwrap(), json!([3, 2, true]));
    let blobs: &[(&str, &[u8])] = &[("frames", b"abc")];
    let outcome = daemon.call_with("typed", "views", json!({}), blobs, 0).await;
    assert_eq!(outcome.unwrap(), json!([3, true]));
    // What looks at the bytes keeps them, through later calls and their memory.
    for letter in [b'a', b'b'] {
        let large = vec![letter; 3_000_000];
        let blobs: &[(&str, &[u8])] = &[("data", &large)];
        daemon.call_with("typed", "keep", json!({}), blobs, 0).await.unwrap();
    }
    let kept = daemon.call("typed", "look", json!({})).await.unwrap();
    assert_eq!(kept, json!(["aaa", "aaa", "bbb", "bbb"]));
    daemon.stop().await;
}

#[tokio::test]
async fn generators_are_streams() {
    let daemon = typed().await;
    let outcome = daemon.call("typed", "count", json!({"n": 40})).await;
    assert_eq!(outcome.items.len(), 40);
    assert_eq!(outcome.items[39], json!({"i": 39}));
    assert_eq!(outcome.result, 40);
    assert!(!outcome.progress.is_empty());
    let outcome = daemon.call("typed", "count_slowly", json!({"n": 5})).await;
    assert_eq!(outcome.items, [0, 1, 2, 3, 4]);
    daemon.stop().await;
}

#[tokio::test]
async fn async_tools_run_side_by_side_and_are_cancelled() {
    let daemon = typed().await;
    assert_eq!(daemon.call("typed", "nap", json!({"seconds": 0.01})).await.unwrap(), "slept");
    for (tool, args) in [("nap", json!({"seconds": 600})), ("patient", json!({}))] {
        let before = daemon.call("typed", "cancelled_naps", json!({})).await.unwrap();
        let outcome = daemon.call_with("typed", tool, args, &[], 50).await;
        assert_eq!(outcome.error_type, "TimeoutError");
        eventually("the tool hears of it", || async {
            let now = daemon.call("typed", "cancelled_naps", json!({})).await.unwrap();
            (now.as_i64() > before.as_i64()).then_some(())
        })
        .await;
    }
    assert_eq!(daemon.health("typed").await.generation, 1, "nobody was killed");
    daemon.stop().await;
}

#[tokio::test]
async fn the_context_knows_the_call() {
    let daemon = typed().await;
    let times = daemon.call_with("typed", "times", json!({}), &[], 20_000).await.unwrap();
    let seconds = |key: &str| times[key].as_f64().expect("seconds");
    assert!((15.0..=20.0).contains(&seconds("remaining")), "{times}");
    assert!((15.0..=20.0).contains(&seconds("ahead")), "{times}");
    assert!(times["id"].as_str().is_some_and(|id| id.starts_with("typed-1-")), "{times}");
    assert_eq!(times["thread"], true, "one call at a time runs on the main thread");
    daemon.stop().await;
}

#[tokio::test]
async fn odd_results_are_clear_errors_and_never_a_dead_plugin() {
    let daemon = typed().await;
    for (what, kind, message) in [
        ("nan", "ValueError", "result.score[1] is NaN: JSON has no such number"),
        ("object", "TypeError", "result.a is of type object, which is neither JSON nor bytes"),
        (
            "set",
            "TypeError",
            "result is of type set, which is neither JSON nor bytes; return a list",
        ),
        ("generator", "TypeError", "result is of type generator, which is neither"),
        ("loop", "ValueError", "nests deeper than 100 levels"),
        ("surrogate", "ValueError", "result is text with a lone surrogate"),
        ("badkey", "TypeError", "result has a key of type tuple: JSON needs text"),
        ("raise", "ZeroDivisionError", "division by zero"),
        ("exit", "SystemExit", "4"),
        ("memory", "MemoryError", ""),
        ("own", "Broken", "<str() raised ZeroDivisionError>"),
        ("cancelled", "Cancelled", ""),
    ] {
        let outcome = daemon.call("typed", "odd", json!({"what": what})).await;
        assert_eq!(outcome.error_type, kind, "{what}: {outcome:?}");
        assert!(outcome.error.contains(message), "{what}: {}", outcome.error);
        // Errors in a row would be a reason to restart it.
        daemon.call("typed", "big", json!({"n": 1})).await.unwrap();
    }
    let keys = daemon.call("typed", "odd", json!({"what": "keys"})).await.unwrap();
    assert_eq!(keys, json!({"1": "a", "null": "b", "false": "c", "2.5": "d"}));
    let values = daemon.call("typed", "odd", json!({"what": "values"})).await.unwrap();
    let uuid = "00000000-0000-0000-0000-000000000001";
    assert_eq!(values, json!(["2026-01-02", "/x", "blue", uuid, [1, 2]]));
    let huge = daemon.call("typed", "odd", json!({"what": "huge"})).await;
    assert!(huge.ok, "{huge:?}");
    assert_eq!(daemon.health("typed").await.generation, 1);
    // The latest traceback is in the log, without our own frames; of several within a moment
    // the others may be missing.
    assert!(!daemon.call("typed", "odd", json!({"what": "raise"})).await.ok);
    let traceback = eventually("the error is in the log", || async {
        let lines = daemon.logs("typed").await;
        let texts: Vec<&str> = lines.iter().map(|line| line.text.as_str()).collect();
        let at = texts.iter().position(|text| *text == "ZeroDivisionError: division by zero")?;
        Some(texts[..at].join("\n"))
    })
    .await;
    let (_, traceback) = traceback.rsplit_once("tool odd raised:\n").expect("traceback");
    assert!(traceback.starts_with("Traceback (most recent call last):\n"), "{traceback}");
    assert!(traceback.contains(", in odd") && !traceback.contains("_contract.py"), "{traceback}");
    daemon.stop().await;
}

const HINTS: &str = r#"
from __future__ import annotations
import collections, dataclasses, datetime, decimal, functools, pathlib, sys, uuid
from typing import ClassVar, Dict, List, NamedTuple, NewType, Optional, Sequence, Tuple, TypeVar, Union
from stockade import Context, tool

Name = NewType("Name", str)
T = TypeVar("T")

class Pair(NamedTuple):
    a: int
    b: int

@dataclasses.dataclass
class Node:
    LIMIT: ClassVar[int] = 7
    value: int = 0
    children: List[Node] = dataclasses.field(default_factory=list)

    def total(self):
        return self.value + sum(child.total() for child in self.children)

@tool
def modern(x: int | None = None, data: bytes | None = None) -> str:
    return f"{x} {data}"

@tool
def many(
    name: Name, path: Union[str, pathlib.Path] = "p", ids: Sequence[uuid.UUID] = (),
    price: Optional[decimal.Decimal] = None, wait: datetime.timedelta = None, pair: Pair = None,
    bare: Tuple = (), table: Dict = None, any: T = None, bound: float = float("inf"),
    ordered: collections.OrderedDict = None, words: List["str"] = None,
    ctx: Optional[Context] = None,
):
    return [name, type(path).__name__, [type(one).__name__ for one in ids], price,
            wait, pair.b if pair else None, list(bare), bound == float("inf"), ctx is not None,
            words]

@tool
def tree(root: Node) -> Node:
    assert isinstance(root.children[0], Node)
    return Node(root.total())

class P:
    @dataclasses.dataclass
    class N:
        a: int
        inner: Optional[P.N] = None

class Q:
    @dataclasses.dataclass
    class N:
        b: int
        inner: Optional[Q.N] = None

@tool
def two(p: P.N, q: Q.N, when: Union[datetime.datetime, str] = ""):
    return [p.a, q.b, type(when).__name__]

@tool
def frames(frames: List[bytes] = None, needed: Optional[List[bytes]] = None):
    return [len(frames or []), len(needed or [])]

@tool
async def steps():
    import contextvars
    variable = contextvars.ContextVar("variable", default=0)
    variable.set(5)
    yield variable.get()
    yield variable.get()

@tool
def whole(n: int):
    return list(range(n))

def collecting(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return list(function(*args, **kwargs))
    return wrapper

@tool
@collecting
def collected(n: int):
    yield from range(n)
"#;

#[tokio::test]
async fn hints_that_people_write_are_understood() {
    let mut options = Options::new();
    let mut plugins = Vec::new();
    for (version, python) in interpreters() {
        let name = format!("hints-{}", version.replace('.', "-"));
        let more = format!("interpreter = {:?}", python.display().to_string());
        options = options.python(&name, &more, HINTS);
        plugins.push(name);
    }
    let daemon = options.start().await;
    for plugin in &plugins {
        daemon.serving(plugin).await;
        let said = daemon.call(plugin, "modern", json!({"x": null})).await.unwrap();
        assert_eq!(said, "None None");
        let blobs: &[(&str, &[u8])] = &[("data", b"z")];
        let said = daemon.call_with(plugin, "modern", json!({"x": 5}), blobs, 0).await.unwrap();
        assert_eq!(said, "5 b'z'", "{plugin}");
        let id = "00000000-0000-0000-0000-000000000001";
        let args = json!({"name": "n", "ids": [id], "price": 1.5, "wait": 2, "pair": [1, 2],
                          "bare": [1, "x"], "words": ["w"]});
        let many = daemon.call(plugin, "many", args).await.unwrap();
        let wanted = json!(["n", "str", ["UUID"], "1.5", 2.0, 2, [1, "x"], true, true, ["w"]]);
        assert_eq!(many, wanted, "{plugin}");
        let root = json!({"root": {"value": 1, "children": [{"value": 2}, {"value": 3}]}});
        let total = daemon.call(plugin, "tree", root).await.unwrap();
        assert_eq!(total, json!({"value": 6, "children": []}));
        let wrong = json!({"root": {"children": [{"value": "x"}]}});
        assert_eq!(daemon.call(plugin, "tree", wrong).await.error_type, "InvalidArguments");
        assert_eq!(
            daemon.call(plugin, "whole", json!({"n": 3.0})).await.unwrap(),
            json!([0, 1, 2])
        );
        let args = json!({"p": {"a": 1, "inner": {"a": 2}}, "q": {"b": 3}, "when": "soon"});
        assert_eq!(daemon.call(plugin, "two", args).await.unwrap(), json!([1, 3, "str"]));
        let blobs: &[(&str, &[u8])] = &[("frames", b"z"), ("frames", b"y"), ("needed", b"x")];
        let counted = daemon.call_with(plugin, "frames", json!({}), blobs, 0).await.unwrap();
        assert_eq!(counted, json!([2, 1]), "{plugin}");
        assert_eq!(daemon.call(plugin, "steps", json!({})).await.items, [5, 5], "one task");
        let collected = daemon.call(plugin, "collected", json!({"n": 2})).await;
        assert_eq!(collected.unwrap(), json!([0, 1]));
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_async_tool_that_will_not_end_is_judged_like_any_other() {
    let source = "
import asyncio, sys, time
from stockade import tool

@tool
async def ok():
    return 'ok'

@tool
async def exits():
    sys.exit(4)

@tool
async def deaf():
    while True:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            pass

@tool
async def cleans_up():
    try:
        await asyncio.sleep(600)
    finally:
        await asyncio.sleep(0.1)
        print('cleaned')
";
    let more = "[timeouts]\ncall = \"300ms\"\ncancel_grace = \"500ms\"\nstop = \"1s\"\n\
                [restart]\nbackoff_min = \"0s\"\nbackoff_max = \"10ms\"\n";
    let daemon = Options::new().bystander().python("loops", more, source).start().await;
    daemon.serving("loops").await;
    let exits = daemon.call("loops", "exits", json!({})).await;
    assert_eq!((exits.error_type.as_str(), exits.error.as_str()), ("SystemExit", "4"));
    assert_eq!(daemon.call("loops", "ok", json!({})).await.unwrap(), "ok");
    let cleans = daemon.call("loops", "cleans_up", json!({})).await;
    assert_eq!(cleans.failed(), ("TimeoutError", ""), "it stopped in its grace: {cleans:?}");
    eventually("the clean-up", || async {
        let lines = daemon.logs("loops").await;
        lines.iter().any(|line| line.text == "cleaned").then_some(())
    })
    .await;
    assert_eq!(daemon.health("loops").await.generation, 1);
    let deaf = daemon.call("loops", "deaf", json!({})).await;
    assert_eq!(deaf.failed(), ("TimeoutError", "call_timeout"), "{deaf:?}");
    daemon.serving("loops").await;
    assert_eq!(daemon.call("loops", "ok", json!({})).await.unwrap(), "ok");
    daemon.stop().await;
}

#[tokio::test]
async fn what_does_not_fit_and_what_changes_underneath_fails_its_call_alone() {
    let source = "
import threading, time
shared = {str(n): n for n in range(1000)}

def churn():
    n = 0
    while True:
        n += 1
        shared[str(n % 3000)] = n
        shared.pop(str((n + 1500) % 3000), None)

threading.Thread(target=churn, daemon=True).start()

class Plugin:
    def stats(self):
        return shared
    def large(self, megabytes: int):
        return 'x' * (megabytes << 20)
    def many(self):
        return [b'x'] * 300
    def long_name(self):
        return {'n' * 200: b'x'}
    def raise_large(self):
        raise ValueError('x' * 80_000_000)
    def ok(self):
        return 'ok'
";
    let daemon = Options::new().bystander().python("big", "", source).start().await;
    daemon.serving("big").await;
    for _ in 0..30 {
        let stats = daemon.call("big", "stats", json!({})).await;
        assert!(stats.ok || stats.error_type == "RuntimeError", "{}", stats.error_type);
    }
    let large = daemon.call("big", "large", json!({"megabytes": 80})).await;
    assert_eq!(large.error_type, "InvalidResult", "{}", large.error);
    assert!(large.error.contains("more than max_result allows (33554432)"), "{}", large.error);
    for (tool, why) in
        [("many", "300 attachments; 256 are allowed"), ("long_name", "an attachment")]
    {
        let refused = daemon.call("big", tool, json!({})).await;
        assert_eq!(refused.error_type, "InvalidResult", "{}", refused.error);
        assert!(refused.error.contains(why), "{}", refused.error);
    }
    let raised = daemon.call("big", "raise_large", json!({})).await;
    assert_eq!(raised.error_type, "ValueError");
    assert!(raised.error.len() < 20_000 && raised.error.ends_with("(80000000 characters)"));
    assert_eq!(daemon.call("big", "ok", json!({})).await.unwrap(), "ok");
    assert_eq!(daemon.health("big").await.generation, 1);
    daemon.stop().await;
}
