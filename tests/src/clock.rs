//! Clocks on a daemon: how long health, a call, a restart, the command line and
//! SIGHUP take and how much memory it has, measured on threads of their own,
//! whatever the test's are doing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use stockade_proto::v1::{
    CallRequest, GetDaemonRequest, GetPluginRequest, ListPluginsRequest, PluginState,
    plugins_client::PluginsClient,
};
use tokio::{sync::oneshot, time::timeout};

use crate::{Client, Daemon, Http, Notices, PATIENCE, Report, eventually};

/// How often each of them asks.
const TICK: Duration = Duration::from_millis(10);
/// Between two commands, and two reloads: each is work of its own.
const PAUSE: Duration = Duration::from_millis(300);

/// What was measured, each in the order of its questions.
#[derive(Debug, Default)]
pub(crate) struct Readings {
    pub(crate) health: Vec<Duration>,
    pub(crate) admin: Vec<Duration>,
    pub(crate) calls: Vec<Duration>,
    pub(crate) restarts: Vec<Duration>,
    /// `stockade list`, from its start to its end.
    pub(crate) commands: Vec<Duration>,
    /// From SIGHUP until the daemon says that it reloads.
    pub(crate) hang_ups: Vec<Duration>,
    /// From SIGHUP until the daemon says that it has reloaded.
    pub(crate) reloads: Vec<Duration>,
    /// By how much a thread that only sleeps woke too late: the machine's doing.
    pub(crate) late: Vec<Duration>,
    /// How long somebody had suspended the daemon.
    pub(crate) suspended: Duration,
    /// Resident bytes at the beginning and at most.
    pub(crate) memory: (u64, u64),
}

/// Asks from [`Clock::start`] to [`Clock::report`].
pub struct Clock {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    answer: Option<oneshot::Receiver<Result<Readings, String>>>,
}

impl Clock {
    /// Asks for health, calls `good`, and restarts this plugin again and again. A daemon
    /// whose notices are read is also asked by the command line and by SIGHUP.
    pub fn start(daemon: &Daemon, restart: Option<&str>) -> Self {
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (sender, answer) = oneshot::channel();
        let (client, pid, restart) = (daemon.client(), daemon.pid(), restart.map(str::to_owned));
        let notices = daemon.notices();
        let asking = Asking { client, pid, notices, stop: stop.clone(), asked: asked.clone() };
        thread::spawn(move || {
            let _ = sender.send(measure(asking, restart.as_deref()));
        });
        Clock { stop, asked, answer: Some(answer) }
    }

    /// Waits until it has got its first answers.
    pub async fn running(&self) {
        eventually("the clock runs", || async {
            (self.asked.load(Ordering::Relaxed) > 4 || self.stop.load(Ordering::Relaxed))
                .then_some(())
        })
        .await;
    }

    /// Ends it and says what it has seen.
    ///
    /// # Panics
    /// An answer was wrong or did not come.
    pub async fn report(mut self) -> Report {
        self.stop.store(true, Ordering::Relaxed);
        let answer = self.answer.take().expect("asked once").await.expect("the clock's thread");
        Report::of(answer.unwrap_or_else(|what| panic!("{what}")))
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Restarts a plugin and waits until it serves again.
///
/// # Panics
/// It does not.
pub async fn restart(client: &Client, plugin: &str) -> Duration {
    try_restart(client, plugin).await.unwrap_or_else(|what| panic!("{what}"))
}

async fn try_restart(client: &Client, plugin: &str) -> Result<Duration, String> {
    let begin = Instant::now();
    let asked = async { client.admin().restart_plugin(client.action(plugin)).await };
    let reply = timeout(PATIENCE, asked).await.map_err(|_| format!("{plugin} never restarted"))?;
    reply.map_err(|status| format!("{plugin} was not restarted: {status}"))?;
    loop {
        let mut plugins = PluginsClient::new(client.channel());
        let health = plugins.get_plugin(GetPluginRequest { name: plugin.to_owned() }).await;
        let health = health.map_err(|status| status.to_string())?.into_inner().health;
        let health = health.unwrap_or_default();
        if [PluginState::Initialized, PluginState::Running].contains(&health.state()) {
            return Ok(begin.elapsed());
        }
        if begin.elapsed() > PATIENCE {
            return Err(format!("{plugin} did not come back: {health:?}"));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Resident bytes of a process; 0 when it is gone.
pub fn resident(pid: u32) -> u64 {
    status(pid).1
}

/// Is it suspended, and its VmRSS.
fn status(pid: u32) -> (bool, u64) {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)
    };
    let kib: u64 = field("VmRSS:").and_then(|kib| kib.parse().ok()).unwrap_or(0);
    (field("State:") == Some("T"), kib << 10)
}

struct Asking {
    client: Client,
    pid: u32,
    notices: Option<Arc<Notices>>,
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

fn measure(mut asking: Asking, restart: Option<&str>) -> Result<Readings, String> {
    let metronome = {
        let (pid, stop) = (asking.pid, asking.stop.clone());
        thread::spawn(move || metronome(pid, &stop))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let asked = runtime.block_on(async {
        asking.client = asking.client.apart().await;
        tokio::try_join!(
            asking.health(),
            asking.calls(),
            asking.restarts(restart),
            asking.commands(),
            asking.reloads()
        )
    });
    // The others need not go on when one was answered wrongly.
    asking.stop.store(true, Ordering::Relaxed);
    let readings = metronome.join().map_err(|_| "the metronome panicked".to_owned())?;
    let ((health, admin), calls, restarts, commands, (hang_ups, reloads)) = asked?;
    Ok(Readings { health, admin, calls, restarts, commands, hang_ups, reloads, ..readings })
}

/// Only sleeps, and looks at the daemon's memory in between.
fn metronome(pid: u32, stop: &AtomicBool) -> Readings {
    let begin = status(pid).1;
    let mut readings = Readings { memory: (begin, begin), ..Readings::default() };
    while !stop.load(Ordering::Relaxed) {
        let slept = Instant::now();
        thread::sleep(TICK);
        readings.late.push(slept.elapsed().saturating_sub(TICK));
        let (suspended, memory) = status(pid);
        if suspended {
            readings.suspended += slept.elapsed();
        }
        readings.memory.1 = readings.memory.1.max(memory);
    }
    readings
}

impl Asking {
    fn over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Health in every form in turn, and the daemon's own state.
    async fn health(&self) -> Result<(Vec<Duration>, Vec<Duration>), String> {
        let (mut health, mut admin) = (Vec::new(), Vec::new());
        let mut kept = None;
        for turn in 0usize.. {
            let begin = Instant::now();
            let asked = async {
                match turn % 4 {
                    0 => self.kept(&mut kept).await,
                    1 => self.kept(&mut None).await,
                    2 => self.list().await,
                    _ => self.daemon().await,
                }
            };
            let answer = timeout(PATIENCE, asked).await;
            let took = begin.elapsed();
            answer.map_err(|_| "health was not answered for a minute".to_owned())??;
            match turn % 4 {
                3 => admin.push(took),
                _ => health.push(took),
            }
            self.asked.fetch_add(1, Ordering::Relaxed);
            if self.over() && turn >= 4 {
                break;
            }
            tokio::time::sleep(TICK).await;
        }
        Ok((health, admin))
    }

    /// Over a connection that is kept, or a new one.
    async fn kept(&self, kept: &mut Option<Http>) -> Result<(), String> {
        if let Some(http) = kept {
            if let Ok(reply) = http.get("/v1/plugins").await {
                return check_list(reply.status, &reply.json());
            }
            // A server may end a connection that is kept alive.
            *kept = None;
        }
        let failed = |error: std::io::Error| format!("health is not answered: {error}");
        let mut http = Http::unix(&self.client.socket).await.map_err(failed)?;
        let reply = http.get("/v1/plugins").await.map_err(failed)?;
        *kept = Some(http);
        check_list(reply.status, &reply.json())
    }

    async fn list(&self) -> Result<(), String> {
        let mut plugins = PluginsClient::new(self.client.channel());
        let list = plugins.list_plugins(ListPluginsRequest {}).await;
        let list = list.map_err(|status| format!("health is not answered: {status}"))?.into_inner();
        match list.total > 0 && list.plugins.len() as u32 == list.total {
            true => Ok(()),
            false => Err(format!("health is wrong: {list:?}")),
        }
    }

    async fn daemon(&self) -> Result<(), String> {
        let asked = self.client.admin().get_daemon(GetDaemonRequest {}).await;
        asked.map(drop).map_err(|status| format!("the daemon does not tell of itself: {status}"))
    }

    /// Calls of `good`, which must stay the same process.
    async fn calls(&self) -> Result<Vec<Duration>, String> {
        let (mut calls, mut generation) = (Vec::new(), None);
        loop {
            let request = CallRequest {
                plugin: "good".into(),
                tool: "ping".into(),
                args: r#"{"text":"x"}"#.into(),
                ..CallRequest::default()
            };
            let begin = Instant::now();
            let answer = timeout(PATIENCE, async { self.client.tools().call(request).await }).await;
            let took = begin.elapsed();
            let answer = answer.map_err(|_| "a bystander's call was not answered".to_owned())?;
            let answer = answer.map_err(|status| format!("a bystander's call failed: {status}"))?;
            let answer = answer.into_inner();
            if &answer.result[..] != b"\"x\"" {
                return Err(format!("a bystander's call was answered wrongly: {answer:?}"));
            }
            if *generation.get_or_insert(answer.generation) != answer.generation {
                return Err(format!("the plugin good was restarted: {answer:?}"));
            }
            calls.push(took);
            if self.over() {
                return Ok(calls);
            }
            tokio::time::sleep(TICK).await;
        }
    }

    /// `stockade list` over the socket.
    async fn commands(&self) -> Result<Vec<Duration>, String> {
        let mut commands = Vec::new();
        while self.notices.is_some() && (commands.is_empty() || !self.over()) {
            let begin = Instant::now();
            let ended = timeout(PATIENCE, self.client.cli(&["list"])).await;
            commands.push(begin.elapsed());
            match ended.map_err(|_| "`stockade list` did not end")? {
                (0, text, _) if text.contains("good") => {}
                (code, text, error) => {
                    return Err(format!("`stockade list` ended with {code}: {text}{error}"));
                }
            }
            self.pause().await;
        }
        Ok(commands)
    }

    /// SIGHUP, until the daemon says that it reloads, and that it has.
    async fn reloads(&self) -> Result<(Vec<Duration>, Vec<Duration>), String> {
        let (mut hang_ups, mut reloads) = (Vec::new(), Vec::new());
        let Some(notices) = &self.notices else { return Ok((hang_ups, reloads)) };
        let notices = notices.listen().map_err(|error| error.to_string())?;
        while reloads.is_empty() || !self.over() {
            notices.forget();
            let begin = Instant::now();
            unsafe { libc::kill(self.pid as i32, libc::SIGHUP) };
            for (line, took) in [("RELOADING=1", &mut hang_ups), ("READY=1", &mut reloads)] {
                let told = timeout(PATIENCE, notices.wait_for(line)).await;
                took.push(begin.elapsed());
                let told = told.map_err(|_| format!("after SIGHUP: never {line}"))?;
                told.map_err(|error| error.to_string())?;
            }
            self.pause().await;
        }
        Ok((hang_ups, reloads))
    }

    async fn pause(&self) {
        let end = Instant::now() + PAUSE;
        while !self.over() && Instant::now() < end {
            tokio::time::sleep(TICK).await;
        }
    }

    /// At least one restart, if there is somebody to be restarted.
    async fn restarts(&self, plugin: Option<&str>) -> Result<Vec<Duration>, String> {
        let mut restarts = Vec::new();
        let Some(plugin) = plugin else { return Ok(restarts) };
        loop {
            restarts.push(try_restart(&self.client, plugin).await?);
            self.pause().await;
            if self.over() {
                return Ok(restarts);
            }
        }
    }
}

fn check_list(status: u16, list: &Value) -> Result<(), String> {
    let plugins = list["plugins"].as_array().map(Vec::as_slice).unwrap_or_default();
    let good = plugins.iter().any(|plugin| plugin["name"] == "good");
    match status == 200 && good && list["total"] == plugins.len() {
        true => Ok(()),
        false => Err(format!("health is wrong ({status}): {list}")),
    }
}
