//! Which failure of a start is which state and which reason: the seeds' words.

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Options, write_file};

const SLOW: &str = "[restart]\nbackoff_min = \"1h\"\nbackoff_max = \"1h\"\n";

/// The reason with which a plugin of this source fails.
async fn reason_of(source: &str) -> String {
    let daemon = Options::new().python("bad", SLOW, source).start().await;
    let health = daemon.until("bad", |health| health.state() == PluginState::Failed).await;
    daemon.stop().await;
    health.reason.expect("reason")
}

#[tokio::test]
async fn what_an_import_raises_is_an_import_error() {
    for (source, reason) in [
        (
            "import nowhere_to_be_found\n",
            "ImportError: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("def f(:\n", "ImportError: SyntaxError: invalid syntax (plugin.py, line 1)"),
        ("raise SystemExit(3)\n", "ImportError: SystemExit: 3"),
        ("raise KeyboardInterrupt\n", "ImportError: KeyboardInterrupt: "),
    ] {
        assert_eq!(reason_of(source).await, reason);
    }
}

#[tokio::test]
async fn a_directory_without_plugin_py_says_so() {
    let daemon = Options::new().directory("empty", &[("manifest.json", "{}")]).start().await;
    let health = daemon.until("empty", |health| health.state() == PluginState::Failed).await;
    let wanted = format!(
        "ImportError: ImportError: plugin.py not found in {}",
        daemon.directory("empty").display()
    );
    assert_eq!(health.reason, Some(wanted));
    daemon.stop().await;
}

#[tokio::test]
async fn a_death_while_importing_is_told_as_what_it_was() {
    for (source, cause) in [
        ("import os\nos._exit(7)\n", "exit_code"),
        ("import ctypes\nctypes.string_at(0)\n", "crash"),
    ] {
        let daemon = Options::new().python("bad", SLOW, source).start().await;
        daemon.death("bad", cause).await;
        if cause == "crash" {
            let crash = &daemon.crashes("bad").await[0];
            assert!(crash.traceback.contains("plugin.py\", line 2"), "{crash:?}");
        }
        daemon.stop().await;
    }
}

#[tokio::test]
async fn what_a_constructor_or_a_hook_raises_is_an_init_error() {
    for (source, reason) in [
        ("x = 1\n", "InitError: AttributeError: No 'Plugin' class found in module"),
        (
            "class Plugin:\n    def __init__(self):\n        raise ValueError('configuration error')\n",
            "InitError: ValueError: configuration error",
        ),
        (
            "class Plugin:\n    def on_load(self):\n        raise OSError('no camera')\n",
            "InitError: OSError: no camera",
        ),
        (
            "class Plugin:\n    def validate(self):\n        raise ValueError('threshold is negative')\n",
            "Plugin validation failed: threshold is negative",
        ),
        (
            "class Plugin:\n    def validate(self):\n        return False\n",
            "Plugin validation failed: validate() returned False",
        ),
        (
            "class Plugin:\n    async def on_load(self):\n        raise OSError('late')\n",
            "InitError: OSError: late",
        ),
    ] {
        assert_eq!(reason_of(source).await, reason);
    }
}

#[tokio::test]
async fn a_broken_contract_is_named() {
    let plugin = |name: &str, entry: &str| {
        format!("class Plugin:\n    {name}\n    tools = {{'t': {entry}}}\n")
    };
    let good = "'description': 'd', 'input_schema': {}, 'output_schema': {}";
    for (source, reason) in [
        (plugin("pass", "{}"), "Plugin must define a string attribute `name`"),
        (
            plugin("name = 'p'", "{'handler': 'gone'}"),
            "Tool 't' in plugin 'p' references non-existent method 'gone'",
        ),
        (plugin("name = 'p'", "{}"), "Tool 't' in plugin 'p' must define a callable 'handler'"),
        (
            plugin("name = 'p'", "{'handler': print}"),
            "Tool 't' in plugin 'p' must define a string 'description'",
        ),
        (
            plugin("name = 'p'", "{'handler': print, 'description': ''}"),
            "Tool 't' in plugin 'p' must define a dict 'input_schema'",
        ),
        (
            plugin("name = 'p'", "{'handler': print, 'description': '', 'input_schema': {}}"),
            "Tool 't' in plugin 'p' must define a dict 'output_schema'",
        ),
        (
            plugin(
                "name = 'p'",
                "{'handler': print, 'description': '', 'input_schema': {'type': {1, 2}}, \
                 'output_schema': {}}",
            ),
            "Tool 't': the input_schema is not JSON-serialisable",
        ),
        (
            plugin("name = 'p'", &format!("{{'handler': print, {good}, }}"))
                .replace("'input_schema': {}", "'input_schema': {'type': 'nonsense'}"),
            "Tool 't': the input schema is not valid",
        ),
    ] {
        let told = reason_of(&source).await;
        assert!(told.starts_with("InitError: ") && told.contains(reason), "{told}\n{source}");
    }
}

#[tokio::test]
async fn a_missing_thing_that_the_plugin_names_makes_it_unavailable() {
    let source = "
import os
from stockade import Missing
class Plugin:
    def __init__(self, init):
        self.file = os.path.join(init.directory, 'camera')
        if not os.path.exists(self.file):
            raise Missing('camera', 'plug one in')
    def ok(self):
        return True
";
    let daemon = Options::new().python("needy", "", source).start().await;
    let health = daemon.until("needy", |health| health.state() == PluginState::Unavailable).await;
    assert_eq!(
        health.reason.as_deref(),
        Some("Missing dependencies: camera. To fix: plug one in.")
    );
    assert_eq!(health.missing, ["camera"]);
    write_file(&daemon.directory("needy").join("camera"), "");
    daemon.cli(&["restart", "needy"]).await;
    daemon.serving("needy").await;
    assert_eq!(daemon.call("needy", "ok", json!({})).await.unwrap(), true);
    daemon.stop().await;
}

#[tokio::test]
async fn an_import_that_never_ends_is_a_start_up_time_out_with_its_stack() {
    let source = "import time\ndef load_for_ever():\n    time.sleep(3600)\nload_for_ever()\n";
    let more = format!("[timeouts]\ninit = \"1s\"\nstop = \"1s\"\n{SLOW}");
    let daemon = Options::new().python("slow", &more, source).start().await;
    let health = daemon.death("slow", "startup_timeout").await;
    let reason = health.last_exit.expect("exit").reason;
    assert!(reason.contains("last phase init"), "{reason}");
    let crash = &daemon.crashes("slow").await[0];
    assert!(crash.traceback.contains("in load_for_ever"), "{crash:?}");
    assert_eq!(crash.last_progress, "0 % importing plugin");
    daemon.stop().await;
}

#[tokio::test]
async fn no_interpreter_is_unavailable_and_says_what_to_do() {
    let source = "class Plugin:\n    def ok(self):\n        return True\n";
    let venv = "venv = \"env\"";
    let daemon = Options::new()
        .python("venvless", venv, source)
        .python("pathless", "interpreter = \"/nowhere/python3\"", source)
        .start()
        .await;
    let health =
        daemon.until("venvless", |health| health.state() == PluginState::Unavailable).await;
    let reason = health.reason.expect("reason");
    assert!(reason.starts_with("Cannot execute env/bin/python: no such file"), "{reason}");
    assert!(reason.contains("Make it: python3 -m venv "), "{reason}");
    let health =
        daemon.until("pathless", |health| health.state() == PluginState::Unavailable).await;
    let reason = health.reason.expect("reason");
    assert!(reason.contains("Install it, or correct run.interpreter."), "{reason}");
    // What it says helps, and the plugin starts by itself.
    let place = daemon.directory("venvless").join("env");
    let made = std::process::Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&place)
        .status()
        .expect("python3");
    assert!(made.success());
    daemon.serving("venvless").await;
    assert_eq!(daemon.call("venvless", "ok", json!({})).await.unwrap(), true);
    daemon.stop().await;
}

#[tokio::test]
async fn a_start_that_resets_every_signal_is_still_told_as_what_it_was() {
    let source = "
import signal, time
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_DFL)
    except (OSError, ValueError):
        pass
time.sleep(3600)
";
    let more = format!("[timeouts]\ninit = \"1s\"\nstop = \"1s\"\n{SLOW}");
    let daemon = Options::new().python("reset", &more, source).start().await;
    let health = daemon.death("reset", "startup_timeout").await;
    assert!(health.last_exit.expect("exit").reason.contains("last phase init"));
    daemon.stop().await;
}

/// The stacks of a start that takes long are told with the interpreter's lock:
/// without it, a running interpreter would be read while it changes.
#[tokio::test]
async fn a_slow_start_that_is_looked_at_lives() {
    let source = "
import time
end = time.monotonic() + 1.7
def work(n):
    return sum(range(n)) if n < 50 else work(n // 2)
while time.monotonic() < end:
    work(3000)
class Plugin:
    def ok(self):
        return True
";
    let mut options = Options::new();
    for n in 0..6 {
        let more = format!("[timeouts]\ninit = \"4s\"\n{SLOW}").replace("4s", "2500ms");
        options = options.python(&format!("slow-{n}"), &more, source);
    }
    let daemon = options.config("max_starting = 6").start().await;
    for n in 0..6 {
        let health = daemon.serving(&format!("slow-{n}")).await;
        assert_eq!(health.generation, 1, "{health:?}");
    }
    daemon.stop().await;
}

#[tokio::test]
async fn an_old_interpreter_is_told_what_it_lacks() {
    let home = std::env::var_os("HOME").map(std::path::PathBuf::from).unwrap_or_default();
    let folder = tempfile::tempdir().expect("folder");
    let old = ["3.8", "3.7", "3.6", "2.7"].iter().find_map(|version| {
        let entries = std::fs::read_dir(home.join(".pyenv/versions")).ok()?;
        let found = entries
            .flatten()
            .find(|entry| entry.file_name().display().to_string().starts_with(version))?;
        let python = found.path().join("bin/python");
        let mut command = std::process::Command::new(&python);
        let works = stockade_tests::as_test_user(command.arg("-V")).output().is_ok();
        works.then_some(python)
    });
    // Where there is none, a script says its version as such a one would.
    let python = old.unwrap_or_else(|| {
        let script = folder.path().join("python");
        let body = "#!/usr/bin/python3\nimport sys\nsys.version_info = (3, 8)\n\
                    exec(sys.argv[sys.argv.index('-c') + 1])\n";
        let body = body.replace("(3, 8)", "type('V', (tuple,), {})((3, 8))");
        write_file(&script, &body);
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("mode");
        stockade_tests::give_to_test_user(folder.path());
        script
    });
    let more = format!("interpreter = {:?}\n{SLOW}", python.display().to_string());
    let daemon = Options::new().python("old", &more, "class Plugin: pass\n").start().await;
    let health = daemon.death("old", "exit_code").await;
    let reason = health.last_exit.expect("exit").reason;
    assert!(
        reason.contains("Stockade hosts plugins with CPython 3.9 or later; this is "),
        "{reason}"
    );
    daemon.stop().await;
}
