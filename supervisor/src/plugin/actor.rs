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
    guard::{Guard, Sample, Watching},
    handshake::{Client, GpuTokens, HostHandler},
    journal::{EventKind, Journal},
    logs::{Drain, Logs},
    mailbox::{Command, Ends, Handle, Internal, Order, Sink, Usable},
    metrics::Metrics,
    notice::{Notice, Stacks},
    peers::Peers,
    session::Session,
    snapshot::{LastExit, Recent, Snapshot},
    spawner::Spawner,
};
use crate::{
    lifecycle::{Cause, CauseCode, Event, Machine, Policy, State, Wanted},
    machine::{Cgroups, Leaf, OomWatch},
    manifest::{Activation, Exhausted, Found, Manifest, OnError},
    preflight::{LaunchPlan, Surroundings},
    store::{Counters, Remembered, Store},
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
    pub(super) died: bool,
    pub(super) drains: Vec<Drain>,
    pub(super) watching: Watching,
    /// Its cgroup.
    pub(super) leaf: Option<Arc<Leaf>>,
    pub(super) sample: Arc<Sample>,
    /// Reports of the launcher, the notice, the handshake: ended with it.
    pub(super) tasks: Vec<AbortHandle>,
}

impl Process {
    /// Reads what the pipes hold, so that the last words are known.
    pub(super) async fn drain_logs(&self) {
        for drain in &self.drains {
            let (done, drained) = oneshot::channel();
            if drain.send(done).is_ok() {
                let _ = tokio::time::timeout(Duration::from_millis(50), drained).await;
            }
        }
    }

    /// Where it was when it died, in its own language: stacks that it printed at
    /// its death, else where its start or its last call failed.
    pub(super) fn last_traceback(&self) -> String {
        let stacks = self.stacks.text();
        if !stacks.is_empty() {
            return stacks;
        }
        let raised = self.session.as_ref().map(|session| session.last_traceback());
        raised.filter(|traceback| !traceback.is_empty()).unwrap_or_else(|| self.traceback.clone())
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
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) remembered: Remembered,
    /// Disabled by the configuration, whatever operators want.
    pub(super) forbidden: bool,
    pub(super) finished: bool,
}

/// Starts an actor on the current runtime. `usable` is its manifest with the
/// operator's overlay, or why it cannot be used.
pub fn spawn(
    context: Context,
    found: Found,
    usable: Result<Arc<Manifest>, Cause>,
    enabled: bool,
) -> Handle {
    let name: Arc<str> = found.name.as_str().into();
    let remembered = context
        .store
        .database
        .remembered(&name)
        .unwrap_or(Remembered { wanted: Wanted::Run, generation: 0 });
    let wanted = if enabled { remembered.wanted } else { Wanted::Disabled };
    let policy = usable.as_ref().map(|manifest| policy(manifest)).unwrap_or_default();
    let machine = Machine::new(&name, policy, wanted, remembered.generation);
    let (commands, inbox) = mpsc::channel(64);
    let (sink, reports) = Sink::new();
    let counters = context.store.counters(&name);
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
    };
    let (snapshots, receiver) = watch::channel(Arc::new(blank));
    let mut actor = Actor {
        name: name.clone(),
        last_exit: last_exit_of(&context, &name),
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
        check: None,
        requests: 0,
        doomed: None,
        timers: [None, None],
        sink,
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
    Handle(Arc::new(Ends { name, commands, snapshots: receiver, counters, logs, recent, metrics }))
}

/// The last death, as the crash records of an earlier daemon tell it.
fn last_exit_of(context: &Context, name: &str) -> Option<Arc<LastExit>> {
    let record = context.store.database.crashes(Some(name.to_owned()), 1).pop()?;
    let code = CauseCode::ALL.iter().find(|code| code.as_str() == record.cause)?;
    Some(Arc::new(LastExit {
        cause: Cause::new(*code, record.reason),
        signal: record.signal,
        code: record.exit_code,
        time: record.time.parse().ok()?,
    }))
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
    async fn run(
        mut self,
        mut commands: mpsc::Receiver<Order>,
        mut reports: mpsc::UnboundedReceiver<Internal>,
    ) {
        // Both arms only take from a queue: cancel-safe. Reports first, so that
        // a command meets the state as it is.
        while !self.finished {
            tokio::select! {
                biased;
                Some(report) = reports.recv() => self.report(report).await,
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
        let event = match command {
            Command::Needed => Event::Needed,
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
                self.step(Event::Changed("a change of its directory".into()));
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
