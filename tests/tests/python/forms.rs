//! Every form of a Python plugin that exists loads unchanged.

use serde_json::{Value, json};
use stockade_tests::{Daemon, Options};

async fn tools(daemon: &Daemon, plugin: &str) -> Value {
    let (code, out, err) = daemon.cli(&["describe", plugin, "-o", "json"]).await;
    assert_eq!(code, 0, "{err}");
    let described: Value = serde_json::from_str(&out).expect("JSON");
    described["tools"].clone()
}

const SEED_MANIFEST: &str = r#"{
  "name": "frames", "description": "Looks at frames", "version": "2.0.0",
  "dependencies": ["json", "os.path", "xml.dom"], "requires_gpu": false, "models": {}
}"#;

#[tokio::test]
async fn the_seed_form_gives_its_public_methods() {
    let source = r#"
import base64

class Plugin:
    limit = 3

    def __init__(self):
        self.seen = 0

    def measure(self, frame_base64, device="cpu", annotated=False):
        """Measures a frame."""
        self.seen += 1
        return {"bytes": len(base64.b64decode(frame_base64)), "device": device,
                "annotated": annotated, "seen": self.seen}

    def _private(self):
        return 1

    def validate(self):
        assert self.limit == 3
"#;
    let daemon = Options::new()
        .directory("frames", &[("manifest.json", SEED_MANIFEST), ("plugin.py", source)])
        .start()
        .await;
    let health = daemon.serving("frames").await;
    assert_eq!((health.version.as_deref(), health.reason), (Some("2.0.0"), None));
    let tools = tools(&daemon, "frames").await;
    assert_eq!(tools.as_array().map(Vec::len), Some(1), "{tools}");
    assert_eq!(tools[0]["name"], "measure");
    assert_eq!(tools[0]["description"], "Measures a frame.");
    let args = json!({"frame_base64": "AAAA", "annotated": true});
    let result = daemon.call("frames", "measure", args).await.unwrap();
    assert_eq!(result, json!({"bytes": 3, "device": "cpu", "annotated": true, "seen": 1}));
    let wrong = daemon.call("frames", "measure", json!({})).await;
    assert_eq!(wrong.error_type, "InvalidArguments");
    let unknown = daemon.call("frames", "_private", json!({})).await;
    assert_eq!(unknown.error, "Tool _private not found in plugin frames (available: measure)");
    daemon.stop().await;
}

#[tokio::test]
async fn the_package_form_keeps_its_imports_its_tools_and_its_hooks() {
    let manifest = r#"{
      "id": "Vision Kit", "name": "Vision", "version": "0.3.0", "author": "Ada",
      "license": "MIT", "entrypoint": "vision.plugin", "type": "analysis",
      "capabilities": ["ocr"],
      "tools": [
        {"id": "count", "title": "Count things", "description": "Counts.",
         "input_types": ["text"], "output_types": ["json"], "capabilities": [],
         "inputs": {"text": "string", "word": "string?"}, "outputs": {"n": "integer"}},
        {"id": "shout", "description": "Shouts.", "inputs": {}, "outputs": {}}
      ]
    }"#;
    let plugin = r#"
from app.plugins.base import BasePlugin
from app.models import AnalysisResult, PluginMetadata
from .words import count

class Plugin(BasePlugin):
    name = "vision-kit"

    def __init__(self):
        self.loaded = False
        self.tools = {
            "count": {"handler": self.count, "description": "Counts words.",
                      "input_schema": {"text": {"type": "string"}, "word": {"type": "string"}},
                      "output_schema": {"type": "object"}},
            "shout": {"handler": "shout", "description": "Shouts.",
                      "input_schema": {"type": "object", "properties": {"text": {"type": "string"}},
                                       "required": ["text"]},
                      "output_schema": {}},
        }

    tools = {}

    def on_load(self):
        self.loaded = True

    def validate(self):
        if not self.loaded:
            raise RuntimeError("on_load did not run")

    def metadata(self):
        return PluginMetadata(name=self.name, version="0.3.0")

    def count(self, text, word=None):
        return {"n": count(text, word)}

    def shout(self, text):
        return AnalysisResult(text=text.upper(), confidence=1.0)
"#;
    let words =
        "def count(text, word):\n    return len([w for w in text.split() if word in (None, w)])\n";
    let daemon = Options::new()
        .directory(
            "vision",
            &[
                ("manifest.json", manifest),
                ("src/vision/__init__.py", ""),
                ("src/vision/plugin.py", plugin),
                ("src/vision/words.py", words),
            ],
        )
        .start()
        .await;
    daemon.serving("vision-kit").await;
    let tools = tools(&daemon, "vision-kit").await;
    assert_eq!(tools[0]["name"], "count");
    assert_eq!(tools[0]["title"], "Count things");
    assert_eq!(tools[0]["description"], "Counts words.");
    let args = json!({"text": "a b a", "word": "a"});
    let counted = daemon.call("vision-kit", "count", args).await.unwrap();
    assert_eq!(counted, json!({"n": 2}));
    let shouted = daemon.call("vision-kit", "shout", json!({"text": "hey"})).await.unwrap();
    assert_eq!((&shouted["text"], &shouted["confidence"]), (&json!("HEY"), &json!(1.0)));
    // A bare map of properties is checked like a full schema.
    let wrong = daemon.call("vision-kit", "count", json!({"text": 7})).await;
    assert_eq!(wrong.error_type, "InvalidArguments");
    daemon.stop().await;
}

#[tokio::test]
async fn a_directory_that_is_itself_the_package_imports_relatively() {
    let manifest = r#"{"id": "ocrkit", "entrypoint": "ocrkit.plugin"}"#;
    let daemon = Options::new()
        .directory(
            "ocrkit",
            &[
                ("manifest.json", manifest),
                ("__init__.py", ""),
                ("plugin.py", "from .text import reverse\nclass Plugin:\n    def turn(self, text: str):\n        return reverse(text)\n"),
                ("text.py", "def reverse(text):\n    return text[::-1]\n"),
            ],
        )
        .directory(
            "seedkit",
            &[
                ("manifest.json", r#"{"name": "seedkit"}"#),
                ("__init__.py", ""),
                ("plugin.py", "from .text import reverse\nclass Plugin:\n    def turn(self, text: str):\n        return reverse(text)\n"),
                ("text.py", "def reverse(text):\n    return text[::-1]\n"),
            ],
        )
        .start()
        .await;
    for plugin in ["ocrkit", "seedkit"] {
        daemon.serving(plugin).await;
        let turned = daemon.call(plugin, "turn", json!({"text": "abc"})).await.unwrap();
        assert_eq!(turned, "cba");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn the_older_form_has_one_tool_analyze() {
    let source = r#"
from app.plugins.base import BasePlugin
from app.models import AnalysisResult

class Plugin(BasePlugin):
    def __init__(self):
        self.closed = False

    def helper(self):
        return 1

    def analyze(self, image_bytes: bytes, options):
        options = options or {}
        return AnalysisResult(text=image_bytes.decode()[: options.get("n", 100)], confidence=0.5)
"#;
    let daemon = Options::new()
        .directory("old", &[("manifest.json", r#"{"name": "old"}"#), ("plugin.py", source)])
        .start()
        .await;
    daemon.serving("old").await;
    let tools = tools(&daemon, "old").await;
    assert_eq!(tools.as_array().map(Vec::len), Some(1), "{tools}");
    let blobs: &[(&str, &[u8])] = &[("image_bytes", b"hello")];
    let outcome = daemon.call_with("old", "analyze", json!({"options": {"n": 2}}), blobs, 0).await;
    let result = outcome.unwrap();
    assert_eq!(result["text"], "he");
    assert_eq!(result["confidence"], 0.5);
    let outcome = daemon.call_with("old", "analyze", json!({}), blobs, 0).await;
    assert_eq!(outcome.unwrap()["text"], "hello", "options may be left out");
    // The same as JSON: base64 reaches the plugin as bytes.
    let args = json!({"image_bytes": "aGV5"});
    assert_eq!(daemon.call("old", "analyze", args).await.unwrap()["text"], "hey");
    daemon.stop().await;
}

#[tokio::test]
async fn an_own_app_package_wins_over_the_compatibility_modules() {
    let daemon = Options::new()
        .directory(
            "mine",
            &[
                ("manifest.json", r#"{"name": "mine"}"#),
                ("app/__init__.py", "WHOSE = 'mine'\n"),
                (
                    "plugin.py",
                    "import app\nclass Plugin:\n    def whose(self):\n        return app.WHOSE\n",
                ),
            ],
        )
        .start()
        .await;
    daemon.serving("mine").await;
    assert_eq!(daemon.call("mine", "whose", json!({})).await.unwrap(), "mine");
    daemon.stop().await;
}

#[tokio::test]
async fn a_changed_source_file_is_a_new_process() {
    let source = |n: u32| format!("class Plugin:\n    def n(self):\n        return {n}\n");
    let daemon = Options::new().python("edited", "", &source(1)).start().await;
    daemon.serving("edited").await;
    assert_eq!(daemon.call("edited", "n", json!({})).await.unwrap(), 1);
    stockade_tests::write_file(&daemon.directory("edited").join("plugin.py"), &source(22));
    daemon.reload().await;
    daemon.until("edited", |health| health.generation == 2 && health.reason.is_none()).await;
    assert_eq!(daemon.call("edited", "n", json!({})).await.unwrap(), 22);
    daemon.stop().await;
}

/// A virtual environment with one distribution that advertises a plugin.
fn advertise(venv: &std::path::Path) {
    let made = std::process::Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(venv)
        .status()
        .expect("python3");
    assert!(made.success());
    let library = std::fs::read_dir(venv.join("lib")).expect("lib").next().expect("python3");
    let site = library.expect("entry").path().join("site-packages");
    let files = [
        ("kit/__init__.py", ""),
        ("kit/types.py", "ANSWER = 42\n"),
        (
            "kit/plugin.py",
            "from .types import ANSWER\nimport types\nclass Plugin:\n    def answer(self):\n        return [ANSWER, types.__name__]\n",
        ),
        (
            "kit-1.4.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: kit\nVersion: 1.4\nSummary: A kit\n\nText\n",
        ),
        (
            "kit-1.4.dist-info/entry_points.txt",
            "[console_scripts]\nx = kit:y\n\n[forgesyte.plugins]\nKit.v2 = kit.plugin : Plugin\n = nothing\n",
        ),
    ];
    for (path, text) in files {
        stockade_tests::write_file(&site.join(path), text);
    }
}

#[tokio::test]
async fn an_installed_distribution_that_advertises_a_plugin_is_found() {
    let folder = tempfile::tempdir().expect("folder");
    let venv = folder.path().join("venv");
    advertise(&venv);
    stockade_tests::python_host();
    let config = format!("python = {:?}", venv.join("bin/python").display().to_string());
    let daemon = Options::new().config(&config).start().await;
    let health = daemon.serving("kit-v2").await;
    assert_eq!(health.version.as_deref(), Some("1.4"));
    assert_eq!(health.description.as_deref(), Some("A kit"));
    assert_eq!(daemon.call("kit-v2", "answer", json!({})).await.unwrap(), json!([42, "types"]));
    daemon.stop().await;
    let daemon = Options::new().config(&config).config("entry_points = false").start().await;
    assert!(daemon.list().await.plugins.iter().all(|health| health.name != "kit-v2"));
    daemon.stop().await;
}

/// Existing code is not asked what it is by running it.
#[tokio::test]
async fn loading_a_plugin_runs_nothing_but_its_hooks() {
    let lazy = r#"
import functools
from stockade import tool
from checks import validate

class Lazy:
    def __getattr__(self, name):
        raise RuntimeError(f"Working outside of context: {name}")

request = Lazy()

@tool
def ok() -> bool:
    return True

class Extra:
    @tool
    @staticmethod
    def never():
        return 1
"#;
    let seed = r#"
import functools
class Plugin:
    @functools.cached_property
    def model(self):
        raise RuntimeError("loads for minutes")

    @property
    def other(self):
        raise RuntimeError("not now")

    def helper(self, a, /):
        return a

    @staticmethod
    def double(n: int):
        return 2 * n

    def with_default(self, limit: float = float("inf")):
        return limit == float("inf")
"#;
    let dashed = "from .util import V\nclass Plugin:\n    def v(self):\n        return V\n";
    let marked = "from stockade import tool\nclass Plugin:\n    @tool\n    @staticmethod\n    def a():\n        return 'a'\n    @tool\n    def b(self):\n        return 'b'\n";
    let daemon = Options::new()
        .directory(
            "lazy",
            &[
                ("plugin.toml", "name = \"lazy\"\n[run]\npython = \"plugin\"\n"),
                ("plugin.py", lazy),
                ("checks.py", "def validate(one, two):\n    raise RuntimeError\n"),
            ],
        )
        .directory("seed", &[("manifest.json", r#"{"name": "seed"}"#), ("plugin.py", seed)])
        .directory(
            "with-dash",
            &[
                ("manifest.json", r#"{"name": "with-dash"}"#),
                ("__init__.py", ""),
                ("util.py", "V = 5\n"),
                ("plugin.py", dashed),
            ],
        )
        .python("marked", "", marked)
        .start()
        .await;
    for plugin in ["lazy", "seed", "with-dash", "marked"] {
        daemon.serving(plugin).await;
    }
    assert_eq!(daemon.call("lazy", "ok", json!({})).await.unwrap(), true);
    let names: Vec<String> = tools(&daemon, "seed")
        .await
        .as_array()
        .expect("tools")
        .iter()
        .map(|tool| tool["name"].as_str().expect("name").to_owned())
        .collect();
    assert_eq!(names, ["double", "with_default"]);
    assert_eq!(daemon.call("seed", "double", json!({"n": 4})).await.unwrap(), 8);
    assert_eq!(daemon.call("seed", "with_default", json!({})).await.unwrap(), true);
    assert_eq!(daemon.call("with-dash", "v", json!({})).await.unwrap(), 5);
    assert_eq!(daemon.call("marked", "a", json!({})).await.unwrap(), "a");
    assert_eq!(daemon.call("marked", "b", json!({})).await.unwrap(), "b");
    daemon.stop().await;
}

/// Modules of a plugin may have the names of the library's.
#[tokio::test]
async fn modules_with_names_of_the_library_do_not_run_before_the_checks() {
    let evil = "open(__file__ + '.ran', 'w').close()\n";
    let files = [
        (
            "plugin.toml",
            "name = \"shadow\"\n[run]\npython = \"plugin\"\n[requires]\npackages = [\"no_such_thing\"]\n",
        ),
        ("plugin.py", "class Plugin:\n    def ok(self):\n        return True\n"),
        ("sysconfig.py", evil),
        ("types.py", evil),
        ("faulthandler.py", evil),
        ("traceback.py", evil),
    ];
    let daemon = Options::new().directory("shadow", &files).start().await;
    let health = daemon
        .until("shadow", |health| health.state() == stockade_proto::v1::PluginState::Unavailable)
        .await;
    assert_eq!(health.missing, ["no_such_thing"]);
    let ran = std::fs::read_dir(daemon.directory("shadow")).expect("directory").flatten();
    let ran: Vec<_> =
        ran.filter(|file| file.path().extension().is_some_and(|e| e == "ran")).collect();
    assert!(ran.is_empty(), "{ran:?}");
    daemon.stop().await;
}

/// What a Python plugin runs may be changed by nobody else either.
#[tokio::test]
async fn source_files_that_others_can_change_are_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let source = "class Plugin:\n    def ok(self):\n        return True\n";
    let daemon = Options::new().python("open", "", source).start().await;
    daemon.serving("open").await;
    let directory = daemon.directory("open");
    let file = directory.join("plugin.py");
    let pending = async |words: &str| {
        daemon.reload().await;
        daemon
            .until("open", |health| {
                health.pending_change.as_deref().unwrap_or_default().contains(words)
            })
            .await;
    };
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).expect("mode");
    pending("plugin.py can be written by everybody").await;
    std::fs::rename(&file, daemon.root.join("plugin.py")).expect("rename");
    std::os::unix::fs::symlink(daemon.root.join("plugin.py"), &file).expect("symlink");
    pending("plugin.py leads out of the plugin's directory").await;
    daemon.stop().await;
}
