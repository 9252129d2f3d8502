//! What a plugin requires is looked for in its own interpreter, before its code
//! runs.

use serde_json::json;
use stockade_proto::v1::PluginState;
use stockade_tests::{Daemon, Options, write_file};

const SOURCE: &str = "
import os, pathlib
pathlib.Path(os.environ['HOME'], 'ran').touch()
class Plugin:
    def ok(self):
        return True
";

async fn unavailable(daemon: &Daemon, plugin: &str) -> (String, Vec<String>) {
    let health = daemon.until(plugin, |health| health.state() == PluginState::Unavailable).await;
    (health.reason.expect("reason"), health.missing)
}

#[tokio::test]
async fn everything_that_is_missing_is_told_at_once_and_none_of_its_code_runs() {
    let more = "[requires]\npackages = [\"json\", \"no_such_thing\", \"cv2\", \"json.nothing\"]\n\
                commands = [\"tesserakt\"]\nmodels = { detector = \"models/ball.onnx\" }\n";
    let daemon = Options::new().python("needy", more, SOURCE).start().await;
    let (reason, missing) = unavailable(&daemon, "needy").await;
    let wanted = "Missing dependencies: no_such_thing, cv2, json.nothing, tesserakt, \
                  detector (path: models/ball.onnx). To fix: ";
    assert!(reason.starts_with(wanted), "{reason}");
    assert!(reason.contains("pip install no_such_thing opencv-python-headless"), "{reason}");
    assert!(reason.contains("the installed json has no json.nothing"), "{reason}");
    assert!(reason.contains("apt-get install tesserakt"), "{reason}");
    assert!(reason.contains("models/ball.onnx"), "{reason}");
    assert_eq!(missing.len(), 5, "{missing:?}");
    assert!(!daemon.data("needy").join("ran").exists(), "its code ran");
    assert!(daemon.crashes("needy").await.is_empty(), "nothing crashed");
    let health = daemon.health("needy").await;
    assert_eq!((health.restarts, health.error_count, health.last_exit), (0, 0, None));
    let (code, out, _) = daemon.cli(&["list", "needy"]).await;
    assert!(code == 0 && out.contains("UNAVAILABLE"), "{out}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_package_that_appears_starts_the_plugin() {
    let more = "[requires]\npackages = [\"late_package.inner\"]\n";
    let daemon = Options::new().python("waiting", more, SOURCE).start().await;
    let (reason, missing) = unavailable(&daemon, "waiting").await;
    assert!(reason.starts_with("Missing dependencies: late_package.inner. To fix: "), "{reason}");
    assert_eq!(missing, ["late_package.inner"]);
    // Its own directory is on the path.
    let package = daemon.directory("waiting").join("late_package");
    write_file(&package.join("__init__.py"), "raise RuntimeError('must not be imported')\n");
    write_file(&package.join("inner.py"), "");
    daemon.serving("waiting").await;
    assert_eq!(daemon.call("waiting", "ok", json!({})).await.unwrap(), true);
    daemon.stop().await;
}

#[tokio::test]
async fn the_plugins_own_virtual_environment_is_used() {
    let source = "
import sys, os, treasure
class Plugin:
    def where(self):
        return [sys.prefix, os.environ['VIRTUAL_ENV'], os.environ['PATH'].split(':')[0],
                treasure.VALUE]
";
    let more = "[requires]\npackages = [\"treasure\"]\n";
    let daemon =
        Options::new().python("rich", more, source).python("poor", more, source).start().await;
    unavailable(&daemon, "poor").await;
    unavailable(&daemon, "rich").await;
    let venv = daemon.directory("rich").join(".venv");
    let made = std::process::Command::new("/usr/bin/python3")
        .args(["-m", "venv", "--without-pip"])
        .arg(&venv)
        .status()
        .expect("python3");
    assert!(made.success());
    let library = std::fs::read_dir(venv.join("lib")).expect("lib").next().expect("python3");
    let site = library.expect("entry").path().join("site-packages");
    write_file(&site.join("treasure.py"), "VALUE = 7\n");
    daemon.serving("rich").await;
    let place = venv.display().to_string();
    let where_ = daemon.call("rich", "where", json!({})).await.unwrap();
    assert_eq!(where_, json!([place, place, format!("{place}/bin"), 7]));
    assert_eq!(daemon.health("poor").await.state(), PluginState::Unavailable);
    daemon.stop().await;
}

#[tokio::test]
async fn a_hostile_environment_costs_its_plugin_alone() {
    // A .pth file runs code in every start of the interpreter.
    let venv = |daemon: &Daemon| daemon.directory("hostile").join(".venv");
    let daemon = Options::new()
        .bystander()
        .python(
            "hostile",
            "[requires]\npackages = [\"treasure\"]\n[timeouts]\nhandshake = \"1s\"\n",
            SOURCE,
        )
        .start()
        .await;
    unavailable(&daemon, "hostile").await;
    write_file(&venv(&daemon).join("pyvenv.cfg"), "home = /usr/bin\n");
    write_file(
        &venv(&daemon).join("lib/python3.11/site-packages/evil.pth"),
        "import os; os._exit(3)\n",
    );
    std::fs::create_dir_all(venv(&daemon).join("bin")).expect("bin");
    std::os::unix::fs::symlink("/usr/bin/python3", venv(&daemon).join("bin/python"))
        .expect("symlink");
    for version in ["3.9", "3.10", "3.12", "3.13"] {
        write_file(
            &venv(&daemon).join(format!("lib/python{version}/site-packages/evil.pth")),
            "import os; os._exit(3)\n",
        );
    }
    daemon.cli(&["restart", "hostile"]).await;
    let health = daemon.death("hostile", "exit_code").await;
    assert!(health.last_exit.expect("exit").reason.starts_with("Exited 3 after"));
    daemon.stop().await;
}

/// What an environment says about itself is not waited for: a FIFO in the place of its
/// configuration holds up its own plugin only.
#[tokio::test]
async fn an_environment_that_says_nothing_ends_its_own_start() {
    let more = "venv = \".venv\"\n[timeouts]\nhandshake = \"1s\"\n[restart]\nmax_deaths = 0\n\
                exhausted = \"hold\"";
    let daemon = Options::new().bystander().python("silent", more, SOURCE).start().await;
    unavailable(&daemon, "silent").await;
    let venv = daemon.directory("silent").join(".venv");
    std::fs::create_dir_all(venv.join("bin")).expect("folders");
    let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::from_raw_mode(0o666));
    rustix::fs::mknodat(rustix::fs::CWD, venv.join("pyvenv.cfg"), kind, mode, 0).expect("fifo");
    std::os::unix::fs::symlink("/usr/bin/python3", venv.join("bin/python")).expect("python");
    stockade_tests::give_to_test_user(&daemon.directory("silent"));
    daemon.until("silent", |health| health.state() == PluginState::Failed).await;
    daemon.stop().await;
}
