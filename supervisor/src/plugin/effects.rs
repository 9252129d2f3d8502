//! Carries out what the machine decides, and publishes how the plugin is.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use stockade_proto::{launch::launch_report::Report, worker::ShutdownRequest};
use tracing::{error, info, warn};

use super::{
    actor::{Actor, Ending, Process},
    death,
    handshake::{self, Handshake},
    journal::{Event as JournalEvent, EventKind},
    launch::{self, Launched, Reports},
    logs::{self, Stream},
    look::{Sample, Tree},
    mailbox::{Internal, Sink},
    notice,
    peers::{Peers, Standing},
    snapshot::Snapshot,
};
use crate::{
    lifecycle::{Cause, CauseCode, Class, Effect, Event, Phase, Slot, State, Wanted},
    machine::{Leaf, LeafLimits, Tracer},
    manifest::Manifest,
    preflight::{self, LaunchPlan, Refusal},
    store::Remembered,
};

/// Between looks at what another plugin's absence holds up.
const LOOK_AT_OTHERS: Duration = Duration::from_millis(200);
/// A launcher that has not cleared the tree by then gets help.
const HELP_AFTER: Duration = Duration::from_secs(1);

impl Actor {
    /// One event through the machine, and its effects.
    pub(super) fn step(&mut self, event: Event) {
        let before = self.machine.visible();
        let was_unkillable = self.machine.phase() == Phase::Unkillable;
        let effects = self.machine.step(event, self.context.epoch.elapsed(), fastrand::f64());
        for effect in effects {
            self.perform(effect);
        }
        if self.machine.phase() == Phase::Unkillable && !was_unkillable {
            self.explain_unkillable();
        }
        self.remember();
        let (state, substate) = self.machine.visible();
        if (state, substate) != before {
            self.context.journal.add(JournalEvent {
                sequence: 0,
                time: Timestamp::now(),
                plugin: self.name.clone(),
                generation: self.machine.generation(),
                kind: EventKind::State,
                state: state.as_str(),
                substate: substate.as_str(),
                message: self.machine.cause().map(|c| c.reason.clone()).unwrap_or_default(),
                cause: self.machine.cause().map_or("", |cause| cause.code.as_str()),
            });
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Check => self.check(),
            Effect::RequestToken => self.request_token(),
            Effect::ReleaseToken => {
                self.requests += 1;
                self.token = None;
                if let Some(request) = self.token_request.take() {
                    request.abort();
                }
            }
            Effect::Spawn(generation) => self.launch(generation),
            Effect::Open(generation) => self.open(generation),
            Effect::Drain(generation) => {
                if let Some(session) =
                    self.processes.get(&generation).and_then(|process| process.session.as_ref())
                {
                    session.drain();
                } else {
                    self.sink.tell(Internal::Drained(generation));
                }
            }
            Effect::Close(generation, cause) => {
                if let Some(session) =
                    self.processes.get(&generation).and_then(|process| process.session.as_ref())
                {
                    session.close(&cause);
                }
                if self.serving.as_ref().is_some_and(|s| s.generation() == generation) {
                    self.serving = None;
                }
            }
            Effect::Terminate(generation) => self.terminate(generation),
            Effect::KillTree(generation) => self.kill_tree(generation),
            Effect::Arm(slot, id, at) => self.arm(slot, id, at),
            Effect::Announce(cause) => self.announce(&cause),
            Effect::Finished => self.finished = true,
        }
    }

    // ── on the way up ───────────────────────────────────────────────────────

    fn check(&mut self) {
        self.checks += 1;
        self.progress = None;
        let (number, sink) = (self.checks, self.sink.clone());
        match &self.usable {
            Err(cause) => {
                let refusal =
                    Refusal { cause: cause.clone(), missing: Vec::new(), watch: Vec::new() };
                sink.tell(Internal::Checked(number, Err(refusal)));
            }
            Ok(manifest) => {
                let (manifest, around) = (manifest.clone(), self.context.surroundings.clone());
                let (peers, checking) = (self.context.peers.clone(), self.checking.clone());
                let check = tokio::spawn(async move {
                    let required = &manifest.requires.plugins;
                    if !required.is_empty()
                        && let Standing::Blocked(cause, other) =
                            peers.settled(&manifest.name, required).await
                    {
                        let refusal = Refusal {
                            cause: cause.clone(),
                            missing: vec![other],
                            watch: Vec::new(),
                        };
                        sink.tell(Internal::Checked(number, Err(refusal)));
                        wait_for_others(&peers, &manifest, &cause).await;
                        sink.tell(Internal::Healed(number));
                        return;
                    }
                    let turn = checking.acquire_owned().await;
                    let _ = tokio::task::spawn_blocking(move || {
                        let _turn = turn;
                        let planned = preflight::plan(&manifest, &around).map(Box::new);
                        sink.tell(Internal::Checked(number, planned));
                    })
                    .await;
                });
                self.check = Some(Ending(check.abort_handle()));
            }
        }
    }

    fn request_token(&mut self) {
        self.requests += 1;
        let (number, sink) = (self.requests, self.sink.clone());
        let starts = self.context.starts.clone();
        if let Ok(permit) = starts.clone().try_acquire_owned() {
            sink.tell(Internal::Token(number, permit));
            return;
        }
        let request = tokio::spawn(async move {
            if let Ok(permit) = starts.acquire_owned().await {
                sink.tell(Internal::Token(number, permit));
            }
        });
        self.token_request = Some(request.abort_handle());
    }

    fn launch(&mut self, generation: u64) {
        let Some(plan) = self.plan.clone() else {
            let reason = "Could not start: there is no launch plan. Run `stockade restart`.";
            let cause = Cause::new(CauseCode::SpawnResources, reason);
            self.sink.tell(Internal::StartFailed(generation, cause.into()));
            return;
        };
        let (sink, spawner) = (self.sink.clone(), self.context.spawner.clone());
        let worker = self.context.worker.clone();
        let leaf = self.leaf(generation, &plan);
        tokio::spawn(async move {
            let leaf = match leaf {
                Some(make) => tokio::task::spawn_blocking(make).await.ok().flatten(),
                None => None,
            };
            match launch::launch(&spawner, &worker, &plan, leaf).await {
                Ok(launched) => sink.tell(Internal::Launched(generation, Box::new(launched))),
                Err(error) => sink.tell(Internal::NotSpawned(generation, error)),
            }
        });
    }

    /// Makes a cgroup for this process; blocks. Where the kernel refuses one, the guard
    /// limits.
    fn leaf(
        &self,
        generation: u64,
        plan: &LaunchPlan,
    ) -> Option<impl FnOnce() -> Option<Arc<Leaf>> + Send + use<>> {
        let limits = LeafLimits {
            memory: plan.limits.memory,
            processes: plan.limits.processes,
            cpu: plan.limits.cpu,
        };
        let (cgroups, name) = (self.context.cgroups.clone()?, self.name.clone());
        Some(move || {
            let leaf = cgroups.leaf(&format!("{name}.{generation}"), limits);
            leaf.inspect_err(|error| warn!(plugin = %name, "no cgroup for {name}: {error}"))
                .ok()
                .map(Arc::new)
        })
    }

    /// The launcher runs: listen to it, to the notice pipe and to the output,
    /// and shake hands.
    pub(super) fn launched(&mut self, generation: u64, launched: Launched) {
        let (Some(plan), Ok(manifest)) = (self.plan.clone(), self.usable.clone()) else { return };
        let sample = Arc::new(Sample::default());
        let tree = Tree {
            plugin: self.name.clone(),
            generation,
            launcher: launched.launcher,
            limits: plan.limits,
            leaf: launched.leaf.clone(),
        };
        let watching = self.context.guard.watch(tree, sample.clone(), self.sink.clone());
        let pump = |pipe, stream| {
            let (logs, name) = (self.logs.clone(), self.name.clone());
            logs::pump(&self.context.output, pipe, stream, generation, logs, name)
        };
        let mut drains =
            vec![pump(launched.stdout, Stream::Stdout), pump(launched.stderr, Stream::Stderr)];
        let told = self.sink.clone();
        let (stacks, drain) = notice::listen(launched.notice, move |notice| {
            told.tell(Internal::Notice(generation, notice));
        });
        drains.push(drain);
        let (client, client_soon) = tokio::sync::oneshot::channel();
        let shaking = Handshake {
            manifest,
            plan: plan.clone(),
            generation,
            calls: launched.calls,
            host: launched.host,
            host_handler: self.context.host.clone(),
            metrics: self.metrics.clone(),
            logs: self.logs.clone(),
            events: self.sink.clone(),
            activity: watching.activity.clone(),
            max_result: self.context.max_result,
            account: self.account.clone(),
            crew: self.context.crew.clone(),
            gpu_tokens: self.context.gpu_tokens.clone(),
            data: self.context.data.clone(),
        };
        let killer = launched.reports.killer().ok();
        let tasks = vec![
            tokio::spawn(listen(
                launched.reports,
                generation,
                self.sink.clone(),
                plan.tracer.clone(),
            ))
            .abort_handle(),
            tokio::spawn(handshake::run(shaking, client)).abort_handle(),
        ];
        self.processes.insert(
            generation,
            Process {
                launcher: launched.launcher,
                pid: None,
                pidfd: None,
                killer,
                client: None,
                client_soon: Some(client_soon),
                session: None,
                plan,
                notice: None,
                stacks,
                traceback: String::new(),
                spawned: Instant::now(),
                greeted: false,
                asked: false,
                died: false,
                examined: false,
                after: None,
                drains,
                watching,
                leaf: launched.leaf,
                sample,
                tasks,
            },
        );
        if self.doomed.take() == Some(generation) {
            self.kill_tree(generation);
        }
    }

    fn open(&mut self, generation: u64) {
        let Some(process) = self.processes.get(&generation) else { return };
        self.serving.clone_from(&process.session);
        self.progress = None;
        self.warning = None;
        self.missing.clear();
        info!(
            plugin = %self.name,
            "Loaded plugin: {} ({})",
            self.name,
            self.version()
        );
    }

    fn version(&self) -> &str {
        let manifest = self.usable.as_ref().ok();
        manifest.and_then(|manifest| manifest.version.as_deref()).unwrap_or("unknown")
    }

    // ── on the way down ─────────────────────────────────────────────────────

    fn terminate(&mut self, generation: u64) {
        let patience = self
            .usable
            .as_ref()
            .map_or(Duration::from_secs(5), |manifest| manifest.timeouts.stop / 2);
        let Some(process) = self.processes.get_mut(&generation) else {
            self.doomed = Some(generation);
            return;
        };
        process.asked = true;
        let client = process.client();
        let greeted = process.greeted;
        let pidfd = process.pidfd.as_ref().and_then(|fd| fd.try_clone().ok());
        if pidfd.is_none() {
            // Its sandbox is still being built: nothing of the plugin has run.
            self.kill_tree(generation);
            return;
        }
        let task = tokio::spawn(async move {
            if let Some(mut client) = client.filter(|_| greeted) {
                let request = ShutdownRequest {
                    reason: "stop".to_owned(),
                    grace_ms: patience.as_millis() as u64,
                };
                let done = tokio::time::timeout(patience, client.shutdown(request)).await;
                if matches!(done, Ok(Ok(_))) {
                    // It is about to exit by itself.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            if let Some(pidfd) = pidfd {
                launch::terminate(&pidfd);
            }
        });
        process.tasks.push(task.abort_handle());
    }

    fn kill_tree(&mut self, generation: u64) {
        let Some(process) = self.processes.get_mut(&generation) else {
            self.doomed = Some(generation);
            return;
        };
        if let Some(leaf) = process.leaf.clone() {
            drop(tokio::task::spawn_blocking(move || leaf.kill()));
        }
        if let Some(killer) = &process.killer {
            launch::kill_tree(killer, process.pidfd.as_ref());
        }
        let launcher = process.launcher;
        let help = tokio::spawn(async move {
            tokio::time::sleep(HELP_AFTER).await;
            let _ = tokio::task::spawn_blocking(move || launch::help_launcher(launcher)).await;
        });
        process.tasks.push(help.abort_handle());
    }

    /// Looks where it hangs: in /proc, which may hang, too.
    fn explain_unkillable(&mut self) {
        let generation = self.machine.generation();
        let Some(process) = self.processes.get(&generation) else { return };
        let (launcher, own) = (process.launcher, process.pid);
        let (gpus, sink) = (process.plan.gpus.clone(), self.sink.clone());
        drop(tokio::task::spawn_blocking(move || {
            let stuck = crate::machine::descendants(launcher);
            // Its main process if that is it, not the init that waits for it.
            let main = own.filter(|pid| stuck.contains(pid));
            let pid = main.or(stuck.first().copied()).or(own).unwrap_or(launcher);
            sink.tell(Internal::Explained(generation, death::unkillable(pid, &gpus)));
        }));
    }

    pub(super) fn explained(&mut self, generation: u64, cause: Cause) {
        if self.machine.generation() == generation && self.machine.phase() == Phase::Unkillable {
            self.announce(&cause);
            self.machine.explain(cause);
        }
    }

    fn arm(&mut self, slot: Slot, id: u64, at: Duration) {
        let (sink, at) = (self.sink.clone(), self.context.epoch + at);
        let timer = tokio::spawn(async move {
            tokio::time::sleep_until(at.into()).await;
            sink.tell(Internal::Timer(slot, id));
        });
        if let Some(old) = self.timers[slot as usize].replace(timer.abort_handle()) {
            old.abort();
        }
    }

    /// The lines that operators grep for.
    fn announce(&mut self, cause: &Cause) {
        let (name, reason) = (&self.name, &cause.reason);
        match cause.class() {
            Class::Unavailable => warn!(plugin = %name, "Plugin UNAVAILABLE: {name} ({reason})"),
            Class::Failed | Class::Wanted => {
                error!(plugin = %name, "Plugin FAILED: {name} ({reason})");
                // A load that failed counts; calls count for themselves.
                let load = self.machine.serving_since().is_none();
                if load && cause.class() == Class::Failed && cause.code != CauseCode::Exhausted {
                    self.counters.count_error();
                }
            }
        }
    }

    // ── what is known outside ───────────────────────────────────────────────

    fn remember(&mut self) {
        let wanted = match self.machine.wanted() {
            Wanted::Removed => self.remembered.wanted,
            // The configuration's word is not the operator's.
            Wanted::Disabled if self.forbidden => self.remembered.wanted,
            wanted => wanted,
        };
        let remembered = Remembered { wanted, generation: self.machine.generation() };
        if remembered != self.remembered {
            self.remembered = remembered;
            self.context.store.database.remember(&self.name, remembered);
        }
    }

    /// Publishes how the plugin is now.
    pub(super) fn publish(&mut self) {
        let (resting, substate) = self.machine.visible();
        let generation = self.machine.generation();
        let process = self.processes.get(&generation);
        let serving = matches!(resting, State::Initialized).then(|| self.machine.serving_since());
        let epoch = self.context.epoch;
        let snapshot = Snapshot {
            name: self.name.clone(),
            directory: self.found.directory.clone(),
            manifest: self.usable.as_ref().ok().cloned(),
            plan: process.map(|process| process.plan.clone()).or_else(|| self.plan.clone()),
            resting,
            substate,
            checking: matches!(self.machine.phase(), Phase::Unavailable { checking: true, .. }),
            cause: self.machine.cause().cloned(),
            missing: self.missing.clone(),
            generation,
            pid: process.and_then(|process| process.pid),
            session: self.serving.clone(),
            restarts: self.machine.restarts(),
            last_exit: self.last_exit.clone(),
            serving_since: serving.flatten().map(|since| epoch + since),
            next_retry_at: self.machine.retry_at().map(|at| {
                let wait = (epoch + at).saturating_duration_since(Instant::now());
                Timestamp::now().checked_add(wait).unwrap_or(Timestamp::MAX)
            }),
            pending_change: self.pending_change.clone(),
            progress: self.progress.clone(),
            warning: self.warning.clone(),
            usage: process.map(|process| process.sample.clone()).unwrap_or_default(),
            rendered: Default::default(),
        };
        (self.context.render)(&snapshot);
        self.snapshots.send_replace(Arc::new(snapshot));
    }
}

/// Until those that a plugin requires stand otherwise than they did.
async fn wait_for_others(peers: &Peers, manifest: &Manifest, cause: &Cause) {
    loop {
        tokio::time::sleep(LOOK_AT_OTHERS).await;
        match peers.standing(&manifest.name, &manifest.requires.plugins) {
            Standing::Blocked(now, _) if now == *cause => {}
            _ => return,
        }
    }
}

/// Passes on what the launcher reports, to its hang-up.
async fn listen(reports: Reports, generation: u64, sink: Sink, tracer: Option<Tracer>) {
    while let Some((report, fd)) = reports.next().await {
        if let (Report::Listener(_), Some(tracer)) = (&report, &tracer) {
            fd.into_iter().for_each(|fd| tracer.attach(fd));
            continue;
        }
        if let (Report::Started(_), Some(pidfd)) = (&report, fd) {
            // Gone already: what happened to it follows.
            let told = sink.clone();
            let _ = tokio::task::spawn_blocking(move || {
                let pid = crate::machine::pid_of(&pidfd).unwrap_or(0);
                told.tell(Internal::Pid(generation, pid, pidfd));
            })
            .await;
        }
        // A launcher with a stuck tree stays, and reports again.
        let last = matches!(&report, Report::Gone(gone) if gone.stuck.is_empty());
        sink.tell(Internal::Report(generation, Some(report)));
        if last {
            break;
        }
    }
    sink.tell(Internal::Report(generation, None));
}
