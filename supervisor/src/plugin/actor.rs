//! The actor of one plugin: takes commands and reports, steps the machine,
//! carries out its effects, publishes the snapshot. It never awaits slow work:
//! launches, handshakes and timers are tasks of their own that report back.

use std::{
    collections::HashMap,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::Handle as Runtime,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::AbortHandle,
};
use tracing::{info, warn};

use super::{
    guard::{Guard, Watching},
    handshake::{Client, GpuTokens, HostHandler},
    journal::{EventKind, Journal},
    logs::{Drain, Logs},
    look::Sample,
    mailbox::{Command, Ends, Handle, Inbox, Order, Sink, Usable},
    metrics::Metrics,
    notice::{Notice, Stacks},
    peers::Peers,
    session::Session,
    snapshot::{LastExit, Recent, Snapshot},
    spawner::Spawner,
};
use crate::{
    capacity::{Account, Budget, Crew, limits},
    lifecycle::{Cause, CauseCode, Event, Machine, Policy, State, Wanted},
    machine::{Cgroups, Leaf, OomWatch},
    manifest::{Activation, Exhausted, Found, Manifest, OnError},
    preflight::{LaunchPlan, Surroundings},
    store::{Counters, CrashRecord, Remembered, Store},
};

/// After a hang-up the evidence of a death is waited for this long.
pub(super) const HANGUP_GRACE: Duration = Duration::from_secs(1);

/// What all actors share.
#[derive(Clone)]
pub struct Context {
    /// The state directory.
    pub store: Arc<Store>,
    /// Starts launchers.
    pub spawner: Spawner,
    /// Watches process trees.
    pub guard: Guard,
    /// What happened.
    pub journal: Arc<Journal>,
    /// The machine.
    pub surroundings: Surroundings,
    /// Where the kernel limits plugins; None = the guard does.
    pub cgroups: Option<Cgroups>,
    /// Out-of-memory kills of the machine.
    pub oom: Arc<OomWatch>,
    /// All plugins: who needs whom.
    pub peers: Peers,
    /// Start tokens.
    pub starts: Arc<Semaphore>,
    /// Serves the host channels.
    pub host: Arc<dyn HostHandler>,
    /// One token per GPU, held while a plugin loads onto it.
    pub gpu_tokens: GpuTokens,
    /// Where calls are carried.
    pub data: Runtime,
    /// Reads what plugins print.
    pub output: Runtime,
    /// Does what is too large to be done where others wait.
    pub crew: Crew,
    /// Bytes that may be held.
    pub budget: Budget,
    /// Renders each snapshot before anybody asks for it.
    pub render: fn(&Snapshot),
    /// The launcher's program.
    pub worker: PathBuf,
    /// Largest result.
    pub max_result: usize,
    /// Log lines kept per plugin.
    pub log_lines: usize,
    /// The daemon's own process: it may reap orphans.
    pub reaps_orphans: bool,
    /// The start of the daemon: the machine's time counts from here.
    pub epoch: Instant,
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("worker", &self.worker).finish_non_exhaustive()
    }
}

/// A process, from its launch to the end of its tree.
pub(super) struct Process {
    pub(super) launcher: u32,
    pub(super) pid: Option<u32>,
    pub(super) pidfd: Option<OwnedFd>,
    pub(super) killer: Option<OwnedFd>,
    pub(super) client: Option<Client>,
    pub(super) client_soon: Option<oneshot::Receiver<Client>>,
    pub(super) session: Option<Arc<Session>>,
    pub(super) plan: Arc<LaunchPlan>,
    pub(super) notice: Option<Notice>,
    pub(super) stacks: Stacks,
    /// Where its start failed, as its language tells it.
    pub(super) traceback: String,
    pub(super) spawned: Instant,
    pub(super) greeted: bool,
    pub(super) asked: bool,
    /// The kernel's word is there; the cause is being found out.
    pub(super) died: bool,
    /// The cause is known.
    pub(super) examined: bool,
    /// What came of its tree meanwhile.
    pub(super) after: Option<After>,
    pub(super) drains: Vec<Drain>,
    pub(super) watching: Watching,
    /// Its cgroup.
    pub(super) leaf: Option<Arc<Leaf>>,
    pub(super) sample: Arc<Sample>,
    /// Reports of the launcher, the notice, the handshake: ended with it.
    pub(super) tasks: Vec<AbortHandle>,
}

/// What is known of a tree whose main process has died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum After {
    /// It is gone.
    Gone,
    /// Some of it survives SIGKILL.
    Stuck,
    /// Its launcher was killed.
    Lost,
}

impl Process {
    /// Has the pipes read to what they hold now, so that the last words are known.
    /// All of them have one deadline.
    pub(super) fn last_words(&self) -> impl Future<Output = ()> + use<> {
        let asked = self.drains.iter().filter_map(|drain| {
            let (done, drained) = oneshot::channel();
            drain.send(done).is_ok().then_some(drained)
        });
        let heard = futures_util::future::join_all(asked.collect::<Vec<_>>());
        async move {
            let _ = tokio::time::timeout(limits::LAST_WORDS, heard).await;
        }
    }

    /// The client, once the handshake has connected it.
    pub(super) fn client(&mut self) -> Option<Client> {
        if let Some(mut soon) = self.client_soon.take() {
            match soon.try_recv() {
                Ok(client) => self.client = Some(client),
                Err(oneshot::error::TryRecvError::Empty) => self.client_soon = Some(soon),
                Err(oneshot::error::TryRecvError::Closed) => {}
            }
        }
        self.client.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// A task that ends with its handle.
pub(super) struct Ending(pub(super) AbortHandle);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) struct Actor {
    pub(super) name: Arc<str>,
    pub(super) context: Context,
    pub(super) found: Found,
    pub(super) usable: Usable,
    /// A good change that waits for the old process to be gone.
    pub(super) next: Option<(Found, Arc<Manifest>)>,
    pub(super) pending_change: Option<String>,
    pub(super) machine: Machine,
    pub(super) processes: HashMap<u64, Process>,
    pub(super) plan: Option<Arc<LaunchPlan>>,
    pub(super) missing: Vec<String>,
    pub(super) watched: Vec<PathBuf>,
    pub(super) progress: Option<String>,
    pub(super) warning: Option<String>,
    pub(super) last_exit: Option<Arc<LastExit>>,
    pub(super) serving: Option<Arc<Session>>,
    pub(super) token: Option<OwnedSemaphorePermit>,
    pub(super) token_request: Option<AbortHandle>,
    pub(super) checks: u64,
    /// One check at a time: files that do not answer hold up this plugin alone.
    pub(super) checking: Arc<Semaphore>,
    /// Looks for files that are missing.
    pub(super) healer: Option<Ending>,
    /// Waits for the plugins that this one requires.
    pub(super) check: Option<Ending>,
    pub(super) requests: u64,
    /// A process that was told to end before it was there.
    pub(super) doomed: Option<u64>,
    pub(super) timers: [Option<AbortHandle>; 2],
    pub(super) sink: Sink,
    pub(super) counters: Arc<Counters>,
    pub(super) logs: Arc<Logs>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) account: Account,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) remembered: Remembered,
    /// Disabled by the configuration, whatever operators want.
    pub(super) forbidden: bool,
    pub(super) finished: bool,
}

/// What is known of a plugin from before, looked up where files may be slow.
#[derive(Clone, Debug)]
pub struct Recollection {
    remembered: Remembered,
    last_exit: Option<Arc<LastExit>>,
    counters: Arc<Counters>,
}

impl Recollection {
    /// Asks the store. Blocks.
    pub fn of(store: &Store, name: &str) -> Self {
        let unknown = Remembered { wanted: Wanted::Run, generation: 0 };
        Recollection {
            remembered: store.database.remembered(name).unwrap_or(unknown),
            last_exit: store
                .database
                .crashes(Some(name.to_owned()), 1)
                .and_then(|mut crashes| crashes.pop())
                .and_then(last_exit_of)
                .map(Arc::new),
            counters: store.counters(name),
        }
    }
}

/// Starts an actor on the current runtime. `usable` is its manifest with the
/// operator's overlay, or why it cannot be used.
pub fn spawn(
    context: Context,
    found: Found,
    usable: Result<Arc<Manifest>, Cause>,
    enabled: bool,
    known: Recollection,
) -> Handle {
    let name: Arc<str> = found.name.as_str().into();
    let Recollection { remembered, last_exit, counters } = known;
    let wanted = if enabled { remembered.wanted } else { Wanted::Disabled };
    let policy = usable.as_ref().map(|manifest| policy(manifest)).unwrap_or_default();
    let machine = Machine::new(&name, policy, wanted, remembered.generation);
    let (commands, inbox) = mpsc::channel(64);
    let (sink, reports) = Sink::new();
    let account = context.budget.of_plugin();
    let logs = Logs::new(context.log_lines);
    let recent = Arc::new(Recent::default());
    let metrics = Arc::new(Metrics::default());
    let blank = Snapshot {
        name: name.clone(),
        directory: found.directory.clone(),
        manifest: usable.as_ref().ok().cloned(),
        plan: None,
        resting: State::Loaded,
        substate: crate::lifecycle::Substate::Stopped,
        checking: false,
        cause: None,
        missing: Vec::new(),
        generation: remembered.generation,
        pid: None,
        session: None,
        restarts: 0,
        last_exit: None,
        serving_since: None,
        next_retry_at: None,
        pending_change: None,
        progress: None,
        warning: None,
        usage: Arc::default(),
        rendered: Default::default(),
    };
    let (snapshots, receiver) = watch::channel(Arc::new(blank));
    let mut actor = Actor {
        name: name.clone(),
        last_exit,
        context,
        found,
        usable,
        next: None,
        pending_change: None,
        machine,
        processes: HashMap::new(),
        plan: None,
        missing: Vec::new(),
        watched: Vec::new(),
        progress: None,
        warning: None,
        serving: None,
        token: None,
        token_request: None,
        checks: 0,
        checking: Arc::new(Semaphore::new(1)),
        healer: None,
        check: None,
        requests: 0,
        doomed: None,
        timers: [None, None],
        sink: sink.clone(),
        account,
        counters: counters.clone(),
        logs: logs.clone(),
        metrics: metrics.clone(),
        snapshots,
        remembered,
        forbidden: !enabled,
        finished: false,
    };
    if wanted == Wanted::Run {
        actor.step(Event::Start);
    }
    actor.publish();
    tokio::spawn(actor.run(inbox, reports));
    Handle(Arc::new(Ends {
        name,
        commands,
        sink,
        snapshots: receiver,
        counters,
        logs,
        recent,
        metrics,
    }))
}

/// The last death, as the crash records of an earlier daemon tell it.
fn last_exit_of(record: CrashRecord) -> Option<LastExit> {
    let code = CauseCode::ALL.iter().find(|code| code.as_str() == record.cause)?;
    Some(LastExit {
        cause: Cause::new(*code, record.reason),
        signal: record.signal,
        code: record.exit_code,
        time: record.time.parse().ok()?,
    })
}

fn policy(manifest: &Manifest) -> Policy {
    let (timeouts, restart) = (manifest.timeouts, manifest.restart);
    Policy {
        handshake: timeouts.handshake,
        init: timeouts.init,
        init_max: Policy::default().init_max.max(timeouts.init),
        stop: timeouts.stop,
        backoff_min: restart.backoff_min,
        backoff_max: restart.backoff_max,
        max_deaths: restart.max_deaths,
        window: restart.window,
        slow_retry: match restart.exhausted {
            Exhausted::SlowRetry => Some(restart.slow_retry),
            Exhausted::Hold => None,
        },
        on_demand: manifest.activation == Activation::OnDemand,
        overlap: manifest.requires.gpu.is_none(),
        hold_on_error: restart.on_error == OnError::Fail,
        ..Policy::default()
    }
}

impl Actor {
    async fn run(mut self, mut commands: mpsc::Receiver<Order>, mut reports: Inbox) {
        // Both arms only take from a queue: cancel-safe. Reports first, so that
        // a command meets the state as it is.
        while !self.finished {
            tokio::select! {
                biased;
                report = reports.recv() => self.report(report),
                command = commands.recv() => match command {
                    Some((command, taken)) => {
                        self.command(command);
                        self.publish();
                        if let Some(taken) = taken {
                            let _ = taken.send(());
                        }
                    }
                    None => self.step(Event::Remove("the daemon".into())),
                },
            }
            self.publish();
        }
    }

    // ── what operators want ─────────────────────────────────────────────────

    fn command(&mut self, command: Command) {
        self.remember_hidden(&command);
        let enabled = matches!(command, Command::Enable(_));
        if enabled || matches!(command, Command::Start(_) | Command::Restart(_)) {
            self.context.store.database.said(&self.name, self.remembered, enabled);
        }
        let event = match command {
            Command::Replace(found) => return self.replace(*found),
            Command::Start(who) => self.noted("start", &who, Event::Start),
            Command::Enable(who) if self.forbidden => {
                let event = Event::Enable(true);
                self.noted("enable (the configuration says enabled = false)", &who, event);
                return;
            }
            Command::Enable(who) => {
                let event = match self.machine.wanted() {
                    Wanted::Disabled => Event::Enable(true),
                    Wanted::Run | Wanted::Stopped | Wanted::Removed => Event::Start,
                };
                self.noted("enable", &who, event)
            }
            Command::Reset(who) => self.noted("reset", &who, Event::Reset),
            Command::Stop(who) => self.noted("stop", &who, Event::Stop(who.clone())),
            Command::Restart(who) => self.noted("restart", &who, Event::Restart(who.clone())),
            Command::Disable(who) => self.noted("disable", &who, Event::Disable(who.clone())),
            Command::Allow(true) => {
                self.forbidden = false;
                match self.remembered.wanted {
                    Wanted::Disabled => return,
                    wanted => Event::Enable(wanted == Wanted::Run),
                }
            }
            Command::Allow(false) => {
                self.forbidden = true;
                Event::Disable("the configuration".into())
            }
            Command::Remove(who) => Event::Remove(who),
        };
        self.step(event);
    }

    /// While the configuration forbids it, or it is going for good, the machine does not
    /// take in what operators want; it holds afterwards all the same.
    fn remember_hidden(&mut self, command: &Command) {
        if !self.forbidden && self.machine.wanted() != Wanted::Removed {
            return;
        }
        let wanted = match (command, self.remembered.wanted) {
            (Command::Disable(_), _) => Wanted::Disabled,
            (Command::Stop(_), Wanted::Run) => Wanted::Stopped,
            (Command::Enable(_), _) => Wanted::Run,
            (Command::Start(_) | Command::Restart(_), Wanted::Stopped) => Wanted::Run,
            _ => return,
        };
        if self.remembered.wanted != wanted {
            self.remembered.wanted = wanted;
            self.context.store.database.remember(&self.name, self.remembered);
        }
    }

    fn noted(&self, action: &str, who: &str, event: Event) -> Event {
        info!(plugin = %self.name, "{action} asked by {who}");
        let message = format!("{action} asked by {who}");
        self.context.journal.say(&self.name, EventKind::Operator, message);
        event
    }

    /// The directory has changed. A broken change keeps what runs; a good one
    /// takes the place of the process.
    fn replace(&mut self, found: Found) {
        let running = !self.processes.is_empty() || self.usable.is_ok();
        match found.manifest.clone() {
            Err(problems) if running => {
                let reason = Found::reason(&problems);
                warn!(plugin = %self.name, "change not taken: {reason}");
                let message = format!("change not taken: {reason}");
                self.context.journal.say(&self.name, EventKind::Reload, message);
                self.pending_change = Some(reason);
            }
            Err(problems) => {
                self.usable = Err(Cause::new(CauseCode::ManifestError, Found::reason(&problems)));
                self.found = found;
                self.step(Event::Heal);
            }
            Ok(manifest) => {
                self.pending_change = None;
                self.next = Some((found, Arc::new(manifest)));
                if !self.machine.has_process() {
                    self.adopt_change();
                }
                let message = "the directory or its configuration has changed";
                self.context.journal.say(&self.name, EventKind::Reload, message);
                self.step(Event::Changed("a change of its directory or configuration".into()));
            }
        }
    }

    pub(super) fn adopt_change(&mut self) {
        let Some((found, manifest)) = self.next.take() else { return };
        self.machine.set_policy(policy(&manifest));
        self.found = found;
        self.usable = Ok(manifest);
    }
}
