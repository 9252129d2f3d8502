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

use jiff::Timestamp;
use rustix::io::Errno;
use stockade_proto::launch::{Exited, launch_report::Report};
use tokio::{
    runtime::Handle as Runtime,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch},
    task::AbortHandle,
};
use tracing::{info, warn};

use super::{
    death::Deceased,
    guard::{Guard, Sample, Watching},
    handshake::{Client, GpuTokens, HostHandler},
    journal::{Event as JournalEvent, EventKind, Journal},
    logs::{Drain, Logs},
    mailbox::{Command, Handle, Internal, Sink, Usable},
    notice::Notice,
    orphans,
    session::Session,
    snapshot::{LastExit, Recent, Snapshot},
    spawner::Spawner,
};
use crate::{
    lifecycle::{Cause, CauseCode, Event, Machine, Policy, State, Wanted},
    machine::OomWatch,
    manifest::{Activation, Exhausted, Found, Manifest, OnError},
    preflight::{LaunchPlan, Refusal, Surroundings},
    store::{Counters, Remembered, Store},
};

/// After a hang-up the evidence of a death is waited for this long.
pub(super) const HANGUP_GRACE: Duration = Duration::from_millis(500);
/// A successor starts early when the dying process is at least this large.
const LARGE: u64 = 64 << 20;
/// Between looks for a missing file.
const HEAL: Duration = Duration::from_secs(1);

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
    /// Out-of-memory kills of the machine.
    pub oom: Arc<OomWatch>,
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
    pub(super) spawned: Instant,
    pub(super) greeted: bool,
    pub(super) asked: bool,
    pub(super) drains: Vec<Drain>,
    pub(super) watching: Watching,
    pub(super) sample: Arc<Sample>,
    /// Reports of the launcher, the notice, the handshake: ended with it.
    pub(super) tasks: Vec<AbortHandle>,
}

impl Process {
    /// Reads what the pipes hold, so that the last words are known.
    async fn drain_logs(&self) {
        for drain in &self.drains {
            let (done, drained) = oneshot::channel();
            if drain.send(done).is_ok() {
                let _ = tokio::time::timeout(Duration::from_millis(50), drained).await;
            }
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
    pub(super) requests: u64,
    /// A process that was told to end before it was there.
    pub(super) doomed: Option<u64>,
    pub(super) timers: [Option<AbortHandle>; 2],
    pub(super) sink: Sink,
    pub(super) counters: Arc<Counters>,
    pub(super) logs: Arc<Logs>,
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) remembered: Remembered,
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
    let blank = Snapshot {
        name: name.clone(),
        directory: found.directory.clone(),
        manifest: usable.as_ref().ok().cloned(),
        plan: None,
        resting: State::Loaded,
        substate: crate::lifecycle::Substate::Stopped,
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
        requests: 0,
        doomed: None,
        timers: [None, None],
        sink,
        counters: counters.clone(),
        logs: logs.clone(),
        snapshots,
        remembered,
        finished: false,
    };
    if wanted == Wanted::Run {
        actor.step(Event::Start);
    }
    actor.publish();
    tokio::spawn(actor.run(inbox, reports));
    Handle { name, commands, snapshots: receiver, counters, logs, recent }
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
        mut commands: mpsc::Receiver<Command>,
        mut reports: mpsc::UnboundedReceiver<Internal>,
    ) {
        // Both arms only take from a queue: cancel-safe. Reports first, so that
        // a command meets the state as it is.
        while !self.finished {
            tokio::select! {
                biased;
                Some(report) = reports.recv() => self.report(report).await,
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
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
            Command::Enable(who) => {
                let event = match self.machine.wanted() {
                    Wanted::Disabled => Event::Reset,
                    Wanted::Run | Wanted::Stopped | Wanted::Removed => Event::Start,
                };
                self.noted("enable", &who, event)
            }
            Command::Reset(who) => self.noted("reset", &who, Event::Reset),
            Command::Stop(who) => self.noted("stop", &who, Event::Stop(who.clone())),
            Command::Restart(who) => self.noted("restart", &who, Event::Restart(who.clone())),
            Command::Disable(who) => self.noted("disable", &who, Event::Disable(who.clone())),
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
                if self.processes.is_empty() {
                    self.adopt_change();
                }
                let message = "the directory has changed";
                self.context.journal.say(&self.name, EventKind::Reload, message);
                if self.machine.wanted() == Wanted::Run {
                    // Deaths of the old version are not the new one's.
                    if self.processes.is_empty() {
                        self.step(Event::Reset);
                    } else {
                        self.step(Event::Restart("a change of its directory".into()));
                    }
                }
            }
        }
    }

    fn adopt_change(&mut self) {
        let Some((found, manifest)) = self.next.take() else { return };
        self.machine.set_policy(policy(&manifest));
        self.found = found;
        self.usable = Ok(manifest);
    }

    // ── what our tasks report ───────────────────────────────────────────────

    async fn report(&mut self, report: Internal) {
        match report {
            Internal::Checked(number, result) => {
                if number == self.checks {
                    self.checked(result);
                }
            }
            Internal::Token(number, permit) => {
                if number == self.requests {
                    self.token = Some(permit);
                    self.step(Event::Token);
                }
            }
            Internal::Timer(slot, id) => self.step(Event::Timer(slot, id)),
            Internal::Healed(number) => {
                if number == self.checks {
                    self.step(Event::Heal);
                }
            }
            Internal::Launched(generation, launched) => self.launched(generation, *launched),
            Internal::NotSpawned(generation, error) => self.not_spawned(generation, &error),
            Internal::Report(generation, report) => self.launcher(generation, report).await,
            Internal::Pid(generation, pid, pidfd) => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.pid = Some(pid);
                    process.pidfd = pidfd;
                }
            }
            Internal::Greeted(generation) => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.greeted = true;
                }
                self.step(Event::Greeted(generation));
            }
            Internal::Progress(generation, text) => {
                self.progress = Some(text);
                self.step(Event::Progress(generation));
            }
            Internal::Ready(generation, session) => {
                if let Some(process) = self.processes.get_mut(&generation) {
                    process.watching.serve(&session);
                    process.session = Some(session);
                    self.step(Event::Ready(generation));
                }
            }
            Internal::StartFailed(generation, cause, missing) => {
                self.start_failed(generation, cause, missing);
            }
            Internal::Notice(generation, notice) => self.notice(generation, notice).await,
            Internal::Hangup(generation, what) => {
                // The death that explains it is usually on its way.
                let sink = self.sink.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(HANGUP_GRACE).await;
                    sink.tell(Internal::StillThere(generation, what));
                });
            }
            Internal::StillThere(generation, what) | Internal::Breach(generation, what) => {
                let reason = format!("Broke the protocol in calls: {what}.");
                let cause = Cause::new(CauseCode::ProtocolError, reason);
                // A start that hung up has said why; a death tells more.
                if self.machine.serving_since().is_some() {
                    self.step(Event::Kill(generation, cause));
                } else {
                    self.step(Event::StartFailed(generation, cause));
                }
            }
            Internal::Silent(generation, silent, serving) => {
                let phase = if serving { "idle" } else { "busy" };
                let silent = humantime::format_duration(silent);
                let reason = format!(
                    "No answer to pings for {silent} while {phase}. It was stopped or is \
                     dead-locked."
                );
                let cause = Cause::new(CauseCode::Watchdog, reason);
                self.step(Event::Kill(generation, cause));
            }
            Internal::CallOverran(generation, tool) => {
                let cause = call_timeout(&tool, self.timeouts());
                self.step(Event::Kill(generation, cause));
            }
            Internal::ToolErrors(generation, count, tool, last) => {
                let tool = tool.unwrap_or_default();
                let reason = match count {
                    1 => format!("Tool {tool} raised {last} (restart.on_error = \"fail\")."),
                    n => format!("Tools raised {n} errors in a row. Last: {last} in tool {tool}."),
                };
                let cause = Cause::new(CauseCode::ToolErrors, reason);
                self.step(Event::Kill(generation, cause));
            }
            Internal::Over(generation, cause) => self.step(Event::Kill(generation, cause)),
            Internal::Warned(generation, text) => {
                if generation == self.machine.generation() {
                    warn!(plugin = %self.name, "{text}");
                    self.context.journal.say(&self.name, EventKind::Warning, text.clone());
                    self.warning = Some(text);
                    self.machine.set_degraded(true);
                }
            }
            Internal::Drained(generation) => self.step(Event::Drained(generation)),
        }
    }

    fn timeouts(&self) -> crate::manifest::Timeouts {
        self.usable.as_ref().map(|manifest| manifest.timeouts).unwrap_or_default()
    }

    fn checked(&mut self, result: Result<Box<LaunchPlan>, Refusal>) {
        match result {
            Ok(plan) => {
                self.plan = Some(Arc::new(*plan));
                self.missing.clear();
                self.watched.clear();
                self.step(Event::Passed);
            }
            Err(refusal) => {
                self.missing = refusal.missing;
                self.watched = refusal.watch;
                self.step(Event::Refused(refusal.cause));
                self.watch_for_healing();
            }
        }
    }

    /// Looks for the files that were missing, once a second.
    fn watch_for_healing(&self) {
        if self.watched.is_empty() {
            return;
        }
        let (files, sink, number) = (self.watched.clone(), self.sink.clone(), self.checks);
        let stamp = |file: &PathBuf| {
            let metadata = std::fs::metadata(file).ok()?;
            Some((metadata.len(), metadata.modified().ok()?, metadata.permissions()))
        };
        let before: Vec<_> = files.iter().map(stamp).collect();
        let snapshots = self.snapshots.subscribe();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(HEAL).await;
                if snapshots.has_changed().is_err() {
                    return;
                }
                if files.iter().map(stamp).ne(before.iter().cloned()) {
                    sink.tell(Internal::Healed(number));
                    return;
                }
            }
        });
    }

    fn not_spawned(&mut self, generation: u64, error: &std::io::Error) {
        let worker = self.context.worker.display();
        let cause = match error.kind() {
            std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => Cause::new(
                CauseCode::ExecFailed,
                format!(
                    "Cannot execute the launcher {worker}: {error}. Install stockade-worker \
                     beside stockade, or set `worker` in stockade.toml."
                ),
            ),
            _ => Cause::new(
                CauseCode::SpawnResources,
                format!(
                    "Could not start: {error}. The machine or the daemon is out of processes, \
                     memory or descriptors (see `ulimit -a`)."
                ),
            ),
        };
        self.step(Event::StartFailed(generation, cause.clone()));
        // There is no process that could die.
        self.step(Event::Died(generation, cause));
        self.processes.remove(&generation);
        self.step(Event::TreeGone(generation));
    }

    async fn launcher(&mut self, generation: u64, report: Option<Report>) {
        match report {
            Some(Report::Started(_)) => {}
            Some(Report::Failed(failed)) => {
                let cause = self.exec_failed(&failed.step, failed.errno);
                self.step(Event::StartFailed(generation, cause));
            }
            Some(Report::Exited(exited)) => self.died(generation, Some(exited)).await,
            Some(Report::Gone(gone)) if gone.stuck.is_empty() => self.gone(generation),
            Some(Report::Gone(_)) => {
                self.step(Event::TreeStuck(generation));
            }
            None => {
                // The launcher was killed. Its plugin died with it; whatever it
                // held is ours now.
                if self.processes.contains_key(&generation) {
                    self.died(generation, None).await;
                    if self.context.reaps_orphans {
                        let _ = tokio::task::spawn_blocking(orphans::reap_orphans).await;
                    }
                    self.gone(generation);
                }
            }
        }
    }

    fn exec_failed(&self, step: &str, errno: i32) -> Cause {
        let program = self
            .plan
            .as_ref()
            .map(|plan| plan.program.display().to_string())
            .unwrap_or_default();
        let system = std::io::Error::from_raw_os_error(errno);
        if step == "exec" {
            let (name, fix) = match Errno::from_raw_os_error(errno) {
                Errno::NOENT => (
                    "ENOENT, missing interpreter or dynamic loader",
                    "Install the interpreter, or build the program for this machine.",
                ),
                Errno::ACCESS => ("EACCES", "Make it executable for the daemon's user."),
                Errno::NOEXEC => (
                    "ENOEXEC, not a program for this machine",
                    "Build it for this architecture.",
                ),
                _ => ("refused", "See the system's error."),
            };
            let reason = format!("Cannot execute {program}: {name} ({system}). {fix}");
            return Cause::new(CauseCode::ExecFailed, reason);
        }
        let reason = format!(
            "Could not start: {step}: {system}. The machine or a limit of the daemon is used up."
        );
        Cause::new(CauseCode::SpawnResources, reason)
    }

    fn start_failed(&mut self, generation: u64, cause: Cause, missing: Vec<String>) {
        if generation == self.machine.generation() {
            self.missing = missing;
        }
        self.step(Event::StartFailed(generation, cause));
    }

    /// The callers are told at once; the kernel's word on the death follows.
    async fn notice(&mut self, generation: u64, notice: Notice) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.drain_logs().await;
        process.notice = Some(notice.clone());
        let resident = process.pid.map_or(0, crate::machine::resident);
        let cause = self.deceased(generation).cause_of_notice(&notice);
        self.step(Event::Notice(generation, cause, resident >= LARGE));
    }

    async fn died(&mut self, generation: u64, exited: Option<Exited>) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.drain_logs().await;
        let (mut cause, mut record) =
            self.deceased(generation).examine(exited.as_ref(), &self.context.oom);
        if let Some(settled) = self.machine.settled(generation) {
            cause = settled.clone();
            record.cause = cause.code.to_string();
            record.reason.clone_from(&cause.reason);
        }
        self.last_exit = Some(Arc::new(LastExit {
            cause: cause.clone(),
            signal: record.signal.clone(),
            code: record.exit_code,
            time: Timestamp::now(),
        }));
        self.context.journal.add(JournalEvent {
            sequence: 0,
            time: Timestamp::now(),
            plugin: self.name.clone(),
            generation,
            kind: EventKind::Death,
            state: "",
            substate: "",
            message: cause.reason.clone(),
            cause: cause.code.as_str(),
        });
        // A stop that went as asked is no crash.
        if cause.code != CauseCode::OperatorStop {
            self.context.store.database.record_crash(record);
        }
        self.step(Event::Died(generation, cause));
    }

    fn gone(&mut self, generation: u64) {
        if self.processes.remove(&generation).is_none() {
            return;
        }
        if self.processes.is_empty() {
            self.adopt_change();
        }
        self.step(Event::TreeGone(generation));
    }

    fn deceased(&self, generation: u64) -> Deceased<'_> {
        let process = self.processes.get(&generation);
        let manifest = self.usable.as_ref().ok();
        Deceased {
            plugin: &self.name,
            version: manifest.and_then(|manifest| manifest.version.as_deref()).unwrap_or(""),
            generation,
            pid: process.and_then(|process| process.pid),
            plan: process.map(|process| &*process.plan),
            session: process.and_then(|process| process.session.as_deref()),
            logs: &self.logs,
            spawned: process.map_or_else(Instant::now, |process| process.spawned),
            greeted: process.is_some_and(|process| process.greeted),
            asked: process.is_some_and(|process| process.asked),
            intent: self.machine.intent(generation),
            notice: process.and_then(|process| process.notice.as_ref()),
            peak: process.map_or(0, |process| process.sample.peak()),
            init_progress: self.progress.as_deref(),
        }
    }
}

/// The sentence of `call_timeout`, for the record and for the caller.
pub(crate) fn call_timeout(tool: &str, timeouts: crate::manifest::Timeouts) -> Cause {
    let reason = format!(
        "Tool {tool} ran past {}; killed after {}. Raise timeouts.call, or let the tool check \
         for cancellation.",
        humantime::format_duration(timeouts.call),
        humantime::format_duration(timeouts.cancel_grace)
    );
    Cause::new(CauseCode::CallTimeout, reason)
}
