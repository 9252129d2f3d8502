//! The daemon and what must hold after each input.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use stockade::{Config, Supervisor, ToolCall, gateway, plugin::Command};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use crate::clock::Clock;

/// Bytes that the clock's own requests may hold at the moment of a look.
const OWN: usize = 64 << 10;
/// Everything an input has made the daemon hold is given back within this.
const BACK: Duration = Duration::from_secs(10);

/// A plugin that nobody attacks.
pub const GOOD: &str = "minimal";

/// A daemon with the plugin [`GOOD`].
pub struct House {
    pub runtime: Runtime,
    pub supervisor: Supervisor,
    pub folder: TempDir,
    pub socket: PathBuf,
    clock: &'static Clock,
    doors: gateway::Doors,
}

/// A program that `cargo build --workspace` has made.
///
/// # Panics
/// It has not.
pub fn program(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debug").join(name);
    fs::canonicalize(&path).unwrap_or_else(|error| {
        panic!("{}: {error}. Run `cargo build --workspace`.", path.display())
    })
}

impl House {
    /// Starts it; `write` lays out further plugins in the folder that it gets.
    ///
    /// # Panics
    /// It cannot be started.
    pub fn start(write: impl FnOnce(&Path), change: impl FnOnce(&mut Config)) -> Self {
        // A program of Rust's own ignores it; the fuzzer's `main` is none.
        let mut pipe = nix::sys::signal::SigSet::empty();
        pipe.add(nix::sys::signal::Signal::SIGPIPE);
        pipe.thread_block().expect("SIGPIPE");
        let folder = tempfile::tempdir_in("/dev/shm").expect("folder");
        let open = fs::Permissions::from_mode(0o755);
        fs::set_permissions(folder.path(), open).expect("permissions");
        let plugins = folder.path().join("plugins");
        let queue = "concurrency = 4\nqueue = { size = 100, timeout = \"30s\" }";
        plugin(&plugins, GOOD, &program("minimal"), queue);
        write(&plugins);
        let mut config = Config::new(plugins, folder.path().join("state"));
        config.worker = program("stockade-worker");
        config.remote_host = program("stockade-remote");
        config.watch = false;
        config.allow_unsandboxed = true;
        config.max_buffered = 64 << 20;
        change(&mut config);
        let socket = config.socket.clone();
        let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("runtime");
        let (supervisor, doors) = runtime.block_on(async {
            let supervisor = Supervisor::start_daemon(config).await.expect("supervisor");
            let doors = gateway::open(&supervisor).await.expect("doors");
            supervisor.ready(GOOD, Duration::from_secs(20)).await.expect("ready");
            (supervisor, doors)
        });
        let clock = Clock::start(socket.clone(), GOOD);
        House { runtime, supervisor, folder, socket, clock, doors }
    }

    /// After an input: everybody was served in time, and nothing is held for it any more.
    ///
    /// # Panics
    /// That is not so.
    pub fn check(&self) {
        let end = Instant::now() + BACK;
        while self.supervisor.budget().used() > OWN {
            let used = self.supervisor.budget().used();
            assert!(Instant::now() < end, "{used} bytes are still held");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.clock.check();
    }

    /// Of its port.
    ///
    /// # Panics
    /// It has none.
    pub fn address(&self) -> String {
        self.doors.address.expect("a port").to_string()
    }

    /// A command for a plugin.
    pub fn command(&self, plugin: &str, command: Command) {
        let handle = self.supervisor.plugin(plugin).expect("the plugin is there");
        let _ = handle.command(command);
    }

    /// A call of the tool `t`.
    pub async fn call(&self, plugin: &str, time: Duration) {
        let call = ToolCall {
            plugin: plugin.into(),
            tool: "t".into(),
            args: "{}".into(),
            timeout: Some(time),
            ..ToolCall::default()
        };
        drop(self.supervisor.calls().run(call).await);
    }
}

/// For the outsiders of one input; what they have opened ends with it.
///
/// # Panics
/// The system refuses it.
pub fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("runtime")
}

/// Writes a plugin's directory; `more` goes behind `[run]`.
///
/// # Panics
/// It cannot be written.
pub fn plugin(plugins: &Path, name: &str, program: &Path, more: &str) {
    let directory = plugins.join(name);
    fs::create_dir_all(directory.join("bin")).expect("folder");
    fs::copy(program, directory.join("bin/program")).expect("program");
    let manifest = format!("name = \"{name}\"\n[run]\nbinary = \"bin/program\"\n{more}\n");
    fs::write(directory.join("plugin.toml"), manifest).expect("manifest");
}
