//! A real daemon in a temporary folder.

use std::{
    collections::HashMap,
    fs,
    ops::Deref,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use serde_json::Value;
use stockade_proto::v1::{
    Attachment, CallRequest, CrashRecord, GetPluginRequest, ListCrashesRequest, ListPluginsRequest,
    ListPluginsResponse, LogLine, PluginActionRequest, PluginHealth, PluginState, ReadLogsRequest,
    ReloadRequest, ReloadResponse, admin_client::AdminClient, call_update::Update,
    events_client::EventsClient, plugins_client::PluginsClient, tools_client::ToolsClient,
};
use tempfile::TempDir;
use tokio::{
    net::UnixStream,
    process::{Child, Command},
};
use tonic::transport::{Channel, Endpoint};

use crate::{Bystander, Family, Notices, Outcome, PATIENCE, eventually};

/// The folder that cargo builds into.
pub fn target_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("own path");
    // target/debug/deps/test-… → target/debug
    let deps = exe.parent().expect("deps");
    if deps.ends_with("deps") {
        deps.parent().expect("profile").to_owned()
    } else {
        deps.to_owned()
    }
}

/// A program of this workspace.
///
/// # Panics
/// It has not been built.
pub fn binary(name: &str) -> PathBuf {
    let path = target_dir().join(name);
    assert!(path.exists(), "{} is not built: run `cargo build --workspace` first", path.display());
    path
}

/// How a daemon is set up.
pub struct Options {
    plugins: Vec<(String, String)>,
    directories: Vec<(String, Vec<(String, String)>)>,
    config: String,
    env: HashMap<String, String>,
    args: Vec<String>,
    port: bool,
    listen: Option<String>,
    good: bool,
    bystander: bool,
    notices: bool,
    user: Option<u32>,
    wrapper: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            plugins: Vec::new(),
            directories: Vec::new(),
            config: String::new(),
            env: HashMap::new(),
            args: Vec::new(),
            port: false,
            listen: None,
            good: true,
            bystander: false,
            notices: false,
            user: test_user(),
            wrapper: Vec::new(),
        }
    }
}

impl Options {
    /// With a plugin `good` that nobody disturbs.
    pub fn new() -> Self {
        Self::default()
    }

    /// Without it.
    #[must_use]
    pub fn alone(mut self) -> Self {
        self.good = false;
        self
    }

    /// Somebody calls `good` and asks for health all the time, until
    /// [`Daemon::stop`] checks that neither ever failed.
    #[must_use]
    pub fn bystander(mut self) -> Self {
        self.bystander = true;
        self
    }

    /// What it would tell systemd is read: [`Daemon::notices`].
    #[must_use]
    pub fn notices(mut self) -> Self {
        self.notices = true;
        self
    }

    /// A plugin that runs the rogue; `more` goes behind `[run]` in its manifest
    /// (its further keys first, then other tables).
    #[must_use]
    pub fn rogue(self, name: &str, more: &str) -> Self {
        self.plugin(name, &manifest(name, more))
    }

    /// A plugin with this plugin.toml; `bin/rogue` is there.
    #[must_use]
    pub fn plugin(mut self, name: &str, toml: &str) -> Self {
        self.plugins.push((name.to_owned(), toml.to_owned()));
        self
    }

    /// A Python plugin with this `plugin.py`; `more` goes behind `[run]`.
    #[must_use]
    pub fn python(self, name: &str, more: &str, source: &str) -> Self {
        let toml = format!("name = \"{name}\"\n[run]\npython = \"plugin\"\n{more}\n");
        self.directory(name, &[("plugin.toml", &toml), ("plugin.py", source)])
    }

    /// A plugin's directory with these files, of Python.
    #[must_use]
    pub fn directory(mut self, name: &str, files: &[(&str, &str)]) -> Self {
        python_host();
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
        self.directories.push((name.to_owned(), files.collect()));
        self
    }

    /// Lines of stockade.toml.
    #[must_use]
    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self.config.push('\n');
        self
    }

    /// A variable of the daemon's environment.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.insert(key.to_owned(), value.to_owned());
        self
    }

    /// A further argument of `stockade serve`.
    #[must_use]
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// Runs it as this user; only root can.
    #[must_use]
    pub fn user(mut self, user: u32) -> Self {
        self.user = Some(user);
        self
    }

    /// Runs it by this command, which gets the daemon's command line as arguments.
    #[must_use]
    pub fn within(mut self, wrapper: Vec<String>) -> Self {
        self.wrapper = wrapper;
        self
    }

    /// Opens a port on loopback, too.
    #[must_use]
    pub fn port(mut self) -> Self {
        self.port = true;
        self
    }

    /// Listens there.
    #[must_use]
    pub fn listen(mut self, address: &str) -> Self {
        self.listen = Some(address.to_owned());
        self
    }

    /// Starts it and waits until it answers.
    pub async fn start(self) -> Daemon {
        let folder = tempfile::tempdir().expect("temporary folder");
        self.start_in(folder).await
    }

    /// The same in a folder that is there (after a SIGKILL, say).
    pub async fn start_in(self, folder: TempDir) -> Daemon {
        let root = folder.path().to_owned();
        let plugins = root.join("plugins");
        fs::create_dir_all(&plugins).expect("plugins");
        if self.good {
            let queue = "concurrency = 8\nqueue = { size = 1000, timeout = \"60s\" }";
            write_plugin(&plugins, "good", &manifest("good", queue));
        }
        for (name, toml) in &self.plugins {
            write_plugin(&plugins, name, toml);
        }
        for (name, files) in &self.directories {
            for (path, text) in files {
                write_file(&plugins.join(name).join(path), text);
            }
        }
        let config = root.join("stockade.toml");
        fs::write(&config, &self.config).expect("stockade.toml");
        let log =
            fs::File::options().create(true).append(true).open(root.join("log")).expect("log");
        let port = if self.port { "127.0.0.1:0" } else { "none" };
        let port = self.listen.as_deref().unwrap_or(port);
        let mut line = self.wrapper.clone();
        line.push(binary("stockade").display().to_string());
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]);
        let notices = self.notices.then(|| Arc::new(Notices::bind(&root)));
        if let Some(notices) = &notices {
            command.env("NOTIFY_SOCKET", notices.path());
        }
        if let Some(user) = self.user {
            give(&root, user);
            command.uid(user).gid(user).env("HOME", &root);
        }
        let child = command
            .current_dir(&root)
            .args(["serve", "--listen", port, "--plugins"])
            .arg(&plugins)
            .arg("--state-dir")
            .arg(root.join("state"))
            .arg("--socket")
            .arg(root.join("s.sock"))
            .arg("--config")
            .arg(&config)
            .args(&self.args)
            .envs(&self.env)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .expect("stockade");
        let family = Mutex::new(Family::of(child.id().expect("running"), &root));
        let client = Client { socket: root.join("s.sock"), root, channel: None };
        let mut daemon =
            Daemon { client, child, family, folder: Some(folder), bystander: None, notices };
        daemon.client.channel = Some(daemon.connect().await);
        if self.good {
            daemon.serving("good").await;
        }
        if self.bystander {
            daemon.bystander = Some(Bystander::start(&daemon));
        }
        daemon
    }
}

/// The whole suite as a user: `STOCKADE_TEST_USER=65534`.
pub fn test_user() -> Option<u32> {
    std::env::var("STOCKADE_TEST_USER").ok()?.parse().ok()
}

/// What the tests start besides the daemon is its user's, too.
pub fn as_test_user(command: &mut std::process::Command) -> &mut std::process::Command {
    use std::os::unix::process::CommandExt as _;
    match test_user() {
        Some(user) => command.uid(user).gid(user),
        None => command,
    }
}

/// A folder of a test's own that the daemon is to read becomes its user's.
pub fn give_to_test_user(path: &Path) {
    if let Some(user) = test_user() {
        give(path, user);
    }
}

/// All of a folder becomes this user's, but for programs that others have, too.
fn give(path: &Path, user: u32) {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::symlink_metadata(path).expect("metadata");
    if metadata.is_file() && metadata.nlink() > 1 {
        return;
    }
    std::os::unix::fs::lchown(path, Some(user), Some(user)).expect("chown");
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink())) {
        give(&entry.path(), user);
    }
}

/// `name`, `version`, `[run]` with the rogue, then `more`.
pub fn manifest(name: &str, more: &str) -> String {
    format!("name = \"{name}\"\nversion = \"1.2.3\"\n[run]\nbinary = \"bin/rogue\"\n{more}\n")
}

/// Writes a file and the folders above it.
pub fn write_file(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().expect("parent")).expect("folder");
    fs::write(path, text).expect("file");
}

/// A virtual environment of `scripts/environments`.
///
/// # Panics
/// It has not been made.
pub fn environments(name: &str) -> PathBuf {
    let place = target_dir().join("../environments").join(name);
    let profile = target_dir().file_name().map(|name| name.display().to_string());
    let profile = profile.unwrap_or_default();
    assert!(
        place.join("packages").exists(),
        "{} is not there: run `scripts/environments {profile}`",
        place.display()
    );
    fs::canonicalize(place).expect("environment")
}

/// The folder of the Python package, laid out beside the programs.
pub fn python_host() -> PathBuf {
    static LAID_OUT: Once = Once::new();
    let target = target_dir();
    LAID_OUT.call_once(|| {
        let profile = target.file_name().expect("profile");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/python");
        let status = std::process::Command::new(script).arg(profile).status().expect("script");
        assert!(status.success(), "scripts/python failed");
    });
    target.join("python")
}

fn write_plugin(plugins: &Path, name: &str, toml: &str) {
    let directory = plugins.join(name);
    fs::create_dir_all(directory.join("bin")).expect("bin");
    let program = directory.join("bin/rogue");
    if !program.exists() && fs::hard_link(binary("rogue"), &program).is_err() {
        fs::copy(binary("rogue"), &program).expect("rogue");
    }
    fs::write(directory.join("plugin.toml"), toml).expect("plugin.toml");
}

/// Asks a daemon. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    /// Its unix socket.
    pub socket: PathBuf,
    /// Its folder: `plugins/`, `state/`, `log`, `stockade.toml`.
    pub root: PathBuf,
    channel: Option<Channel>,
}

/// A daemon; killed (and everything of it checked to be gone) at the end.
pub struct Daemon {
    client: Client,
    child: Child,
    family: Mutex<Family>,
    folder: Option<TempDir>,
    bystander: Option<Bystander>,
    notices: Option<Arc<Notices>>,
}

impl Deref for Daemon {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Daemon {
    /// A handle for another task.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// What it tells systemd, if [`Options::notices`] asked for that.
    pub fn notices(&self) -> Option<Arc<Notices>> {
        self.notices.clone()
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id().expect("running")
    }

    async fn connect(&mut self) -> Channel {
        for _ in 0..3000 {
            if let Ok(channel) = connect(&self.client.socket).await {
                return channel;
            }
            if let Some(status) = self.child.try_wait().expect("wait") {
                panic!("the daemon ended ({status}): {}", self.client.log());
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the daemon never answered: {}", self.client.log());
    }

    /// Sends a signal to the daemon. Before one that ends it, its family is looked at:
    /// who is there now may be an orphan later.
    pub fn signal(&self, signal: i32) {
        if [libc::SIGTERM, libc::SIGKILL].contains(&signal) {
            self.family().look();
        }
        unsafe { libc::kill(self.pid() as i32, signal) };
    }

    fn family(&self) -> MutexGuard<'_, Family> {
        self.family.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for its end; the exit code, None after a signal. Until then its family is
    /// looked at now and then.
    pub async fn ended(&mut self) -> Option<i32> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            self.family().look();
            let pause = Duration::from_millis(50);
            match tokio::time::timeout(pause, self.child.wait()).await {
                Ok(status) => return status.expect("wait").code(),
                Err(_) => assert!(tokio::time::Instant::now() < deadline, "the daemon ends"),
            }
        }
    }

    /// Its processes that live, itself included while it does, as `PID NAME`: its
    /// launchers, the inits of namespaces, plugins and what those started.
    pub fn left(&self) -> Vec<String> {
        self.family().left()
    }

    /// Waits until nothing of it is left.
    ///
    /// # Panics
    /// Something lives a minute later.
    pub fn wait_gone(&self) {
        self.family().wait_gone();
    }

    /// SIGTERM; it must end in order and leave nothing behind. The bystander,
    /// if there is one, must have noticed nothing.
    pub async fn stop(mut self) {
        if let Some(bystander) = self.bystander.take() {
            bystander.check().await;
        }
        self.signal(libc::SIGTERM);
        let code = self.ended().await;
        assert_eq!(code, Some(0), "{}", self.log());
        self.wait_gone();
        assert!(!self.socket.exists(), "the socket is left behind");
    }

    /// SIGKILL; the folder stays, for the next daemon. Nothing may survive.
    pub async fn kill(mut self) -> TempDir {
        // Held for a moment, so that nothing is born between the look and the end.
        self.signal(libc::SIGSTOP);
        self.signal(libc::SIGKILL);
        self.ended().await;
        self.wait_gone();
        self.folder.take().expect("folder")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("── daemon's log ──\n{}", self.client.log());
        }
    }
}

async fn connect(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // Large windows: a client, too, ends a connection with too many small frames unread.
    let endpoint = Endpoint::from_static("http://localhost");
    let endpoint = endpoint.initial_connection_window_size(64 << 20);
    endpoint.connect_with_connector(connector).await
}

const MAX: usize = 512 << 20;

impl Client {
    /// The same over a connection of its own, which the asking runtime drives.
    pub async fn apart(&self) -> Client {
        let channel = connect(&self.socket).await.expect("connect");
        Client { channel: Some(channel), ..self.clone() }
    }

    /// The gRPC channel.
    pub fn channel(&self) -> Channel {
        self.channel.clone().expect("connected")
    }

    /// What the daemon wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.root.join("log")).unwrap_or_default()
    }

    /// A plugin's directory.
    pub fn directory(&self, plugin: &str) -> PathBuf {
        self.root.join("plugins").join(plugin)
    }

    /// Where a plugin may write.
    pub fn data(&self, plugin: &str) -> PathBuf {
        self.root.join("state/data").join(plugin)
    }

    /// Writes (or replaces) a plugin's directory.
    pub fn write_plugin(&self, name: &str, toml: &str) {
        write_plugin(&self.root.join("plugins"), name, toml);
    }

    /// The address of the port, from the log.
    pub async fn address(&self) -> String {
        eventually("the port", || async {
            let log = self.log();
            let (_, rest) = log.split_once("http and gRPC on ")?;
            Some(rest.split_whitespace().next()?.to_owned())
        })
        .await
    }

    pub async fn list(&self) -> ListPluginsResponse {
        let mut client = PluginsClient::new(self.channel());
        client.list_plugins(ListPluginsRequest {}).await.expect("list").into_inner()
    }

    pub async fn health(&self, plugin: &str) -> PluginHealth {
        let mut client = PluginsClient::new(self.channel());
        let request = GetPluginRequest { name: plugin.to_owned() };
        let reply = client.get_plugin(request).await.expect("get").into_inner();
        reply.health.expect("health")
    }

    /// Waits until the health is as wanted.
    pub async fn until(
        &self,
        plugin: &str,
        wanted: impl Fn(&PluginHealth) -> bool,
    ) -> PluginHealth {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let list = self.list().await;
            let health = list.plugins.into_iter().find(|health| health.name == plugin);
            if let Some(health) = health.clone().filter(|health| wanted(health)) {
                return health;
            }
            assert!(
                tokio::time::Instant::now() < deadline,
                "{plugin} never became as wanted: {health:?}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until it takes calls.
    pub async fn serving(&self, plugin: &str) -> PluginHealth {
        self.until(plugin, |health| health.state() == PluginState::Initialized).await
    }

    /// Waits for a state and substate.
    pub async fn state(&self, plugin: &str, state: PluginState, substate: &str) -> PluginHealth {
        self.until(plugin, |health| health.state() == state && health.substate == substate).await
    }

    /// Waits until a death of at least this generation is told.
    pub async fn death(&self, plugin: &str, cause: &str) -> PluginHealth {
        self.until(plugin, |health| {
            health.last_exit.as_ref().is_some_and(|exit| exit.cause == cause)
        })
        .await
    }

    pub async fn call(&self, plugin: &str, tool: &str, args: Value) -> Outcome {
        self.call_with(plugin, tool, args, &[], 0).await
    }

    pub async fn call_with(
        &self,
        plugin: &str,
        tool: &str,
        args: Value,
        blobs: &[(&str, &[u8])],
        timeout_ms: u64,
    ) -> Outcome {
        let request = CallRequest {
            plugin: plugin.to_owned(),
            tool: tool.to_owned(),
            args: args.to_string().into(),
            attachments: blobs
                .iter()
                .map(|(name, data)| Attachment {
                    name: (*name).to_owned(),
                    content_type: String::new(),
                    data: data.to_vec().into(),
                })
                .collect(),
            timeout_ms,
            ..CallRequest::default()
        };
        let mut client = self.tools();
        let mut stream = client.call_stream(request).await.expect("call").into_inner();
        let (mut items, mut progress) = (Vec::new(), Vec::new());
        while let Some(update) = stream.message().await.expect("update") {
            match update.update.expect("update") {
                Update::Progress(step) => progress.push((step.fraction, step.message)),
                Update::Item(item) => {
                    items.push(serde_json::from_slice(&item.value).expect("JSON item"));
                }
                Update::Outcome(outcome) => return Outcome::new(outcome, items, progress),
            }
        }
        panic!("no outcome");
    }

    pub fn tools(&self) -> ToolsClient<Channel> {
        ToolsClient::new(self.channel())
            .max_decoding_message_size(MAX)
            .max_encoding_message_size(MAX)
    }

    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel())
    }

    /// An action (`start_plugin`, …) that waits for its effect.
    pub fn action(&self, plugin: &str) -> PluginActionRequest {
        PluginActionRequest { name: plugin.to_owned(), wait: true, timeout_ms: 60_000 }
    }

    /// An action that is answered at once.
    pub fn action_now(&self, plugin: &str) -> PluginActionRequest {
        PluginActionRequest { wait: false, ..self.action(plugin) }
    }

    pub async fn reload(&self) -> ReloadResponse {
        self.admin().reload(ReloadRequest {}).await.expect("reload").into_inner()
    }

    /// Crash records of a plugin, newest first.
    pub async fn crashes(&self, plugin: &str) -> Vec<CrashRecord> {
        let mut client = EventsClient::new(self.channel());
        let request = ListCrashesRequest { plugin: plugin.to_owned(), limit: 1000 };
        client.list_crashes(request).await.expect("crashes").into_inner().crashes
    }

    /// What a plugin wrote.
    pub async fn logs(&self, plugin: &str) -> Vec<LogLine> {
        let mut client = EventsClient::new(self.channel());
        let request = ReadLogsRequest { plugin: plugin.to_owned(), last: 0, follow: false };
        let mut stream = client.read_logs(request).await.expect("logs").into_inner();
        let mut lines = Vec::new();
        while let Some(line) = stream.message().await.expect("line") {
            lines.push(line);
        }
        lines
    }

    /// The command line against this daemon: exit code, stdout, stderr.
    pub async fn cli(&self, args: &[&str]) -> (i32, String, String) {
        // `Command::uid` forks: a test with much in its memory would stand still for it, and
        // its clock with it.
        let mut command = match test_user().map(|user| user.to_string()) {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]);
                command.arg(binary("stockade"));
                command
            }
            None => Command::new(binary("stockade")),
        };
        let output = command
            .current_dir(&self.root)
            .args(args)
            .env("HOME", &self.root)
            .env("STOCKADE_SOCKET", &self.socket)
            .output()
            .await
            .expect("stockade");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
    }
}
