//! What an actor's own tasks report, turned into events of the machine.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use rustix::io::Errno;
use stockade_proto::launch::{Exited, launch_report::Report};
use tracing::warn;

use super::{
    actor::{Actor, HANGUP_GRACE, Process},
    death::Deceased,
    handshake::StartFailure,
    journal::{Event as JournalEvent, EventKind},
    launchers,
    logs::Stream,
    mailbox::Internal,
    notice::Notice,
    snapshot::LastExit,
};
use crate::{
    lifecycle::{Cause, CauseCode, Event},
    preflight::{LaunchPlan, Refusal},
};

/// A successor starts early when the dying process is at least this large.
const LARGE: u64 = 64 << 20;
/// Between looks for a missing file.
const HEAL: Duration = Duration::from_secs(1);

/// Steps of the launcher that build the sandbox.
const SANDBOX_STEPS: [&str; 17] = [
    "namespaces",
    "setgroups",
    "uid_map",
    "gid_map",
    "loopback",
    "mount private",
    "mount root",
    "mount tmpfs",
    "mount proc",
    "bind",
    "link",
    "pivot_root",
    "read-only root",
    "setuid",
    "capabilities",
    "landlock",
    "seccomp",
];

impl Actor {
    pub(super) async fn report(&mut self, report: Internal) {
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
                    process.pid = (pid != 0).then_some(pid);
                    process.pidfd = Some(pidfd);
                    process.watching.main(pid, process.plan.has_own_scratch());
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
                    process.stacks.forget();
                    process.watching.serve(&session);
                    process.session = Some(session);
                    self.step(Event::Ready(generation));
                }
            }
            Internal::StartFailed(generation, failure) => self.start_failed(generation, failure),
            Internal::Raised(generation, tool, traceback) => {
                self.log_stack(generation, &format!("tool {tool} raised:"), &traceback);
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
        self.doomed = None;
        // There is no process that could die.
        self.step(Event::Died(generation, cause));
        self.processes.remove(&generation);
        self.step(Event::TreeGone(generation));
    }

    async fn launcher(&mut self, generation: u64, report: Option<Report>) {
        match report {
            Some(Report::Started(_) | Report::Listener(_)) => {}
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
                        let _ = tokio::task::spawn_blocking(launchers::reap_orphans).await;
                    }
                    self.gone(generation);
                }
            }
        }
    }

    fn exec_failed(&self, step: &str, errno: i32) -> Cause {
        let program =
            self.plan.as_ref().map(|plan| plan.program.display().to_string()).unwrap_or_default();
        let system = std::io::Error::from_raw_os_error(errno);
        if step == "exec" {
            let (name, fix) = match Errno::from_raw_os_error(errno) {
                Errno::NOENT => (
                    "ENOENT, missing interpreter or dynamic loader",
                    "Install the interpreter, or build the program for this machine.",
                ),
                Errno::ACCESS => ("EACCES", "Make it executable for the daemon's user."),
                Errno::NOEXEC => {
                    ("ENOEXEC, not a program for this machine", "Build it for this architecture.")
                }
                _ => ("refused", "See the system's error."),
            };
            let reason = format!("Cannot execute {program}: {name} ({system}). {fix}");
            return Cause::new(CauseCode::ExecFailed, reason);
        }
        if ["open", "changed"].contains(&step) {
            let reason = format!(
                "Could not start: a file or folder that it may see was replaced meanwhile \
                 ({system}). If it stays so, look at its grants: stockade describe {}.",
                self.name
            );
            return Cause::new(CauseCode::SpawnResources, reason);
        }
        // What another attempt may not meet again.
        let used_up = [Errno::NOMEM, Errno::AGAIN, Errno::NOSPC, Errno::MFILE, Errno::NFILE];
        if SANDBOX_STEPS.contains(&step) && !used_up.contains(&Errno::from_raw_os_error(errno)) {
            let reason = format!(
                "Its sandbox cannot be built: {step}: {system}. Run `stockade doctor`, and look at \
                 its grants: stockade describe {}.",
                self.name
            );
            return Cause::new(CauseCode::Sandbox, reason);
        }
        let reason = format!(
            "Could not start: {step}: {system}. The machine or a limit of the daemon is used up."
        );
        Cause::new(CauseCode::SpawnResources, reason)
    }

    fn start_failed(&mut self, generation: u64, failure: StartFailure) {
        let StartFailure { cause, missing, watch, traceback } = failure;
        if generation == self.machine.generation() {
            self.missing = missing;
            self.watched = watch;
        }
        self.log_stack(generation, "the start failed:", &traceback);
        if let Some(process) = self.processes.get_mut(&generation) {
            process.traceback = traceback;
        }
        self.step(Event::StartFailed(generation, cause));
        self.watch_for_healing();
    }

    /// A stack, into the plugin's log.
    fn log_stack(&self, generation: u64, title: &str, stack: &str) {
        if stack.trim().is_empty() {
            return;
        }
        for line in std::iter::once(title).chain(stack.lines()) {
            self.logs.push(generation, Stream::Supervisor, Some("error"), line.trim_end());
        }
    }

    /// The callers are told at once; the kernel's word on the death follows.
    async fn notice(&mut self, generation: u64, notice: Notice) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.drain_logs().await;
        process.notice = Some(notice.clone());
        // The kernel may have begun already: then the last sample tells.
        let seen = process.sample.memory().unwrap_or(0);
        let resident = process.pid.map_or(0, crate::machine::resident).max(seen);
        let cause = self.deceased(generation).cause_of_notice(&notice);
        self.step(Event::Notice(generation, cause, resident >= LARGE));
    }

    async fn died(&mut self, generation: u64, exited: Option<Exited>) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        if std::mem::replace(&mut process.died, true) {
            return;
        }
        process.drain_logs().await;
        let stacks = process.stacks.text();
        let (mut cause, mut record) =
            self.deceased(generation).examine(exited.as_ref(), &self.context.oom);
        self.log_stack(generation, "its last stacks:", &stacks);
        if let Some(settled) = self.machine.settled(generation) {
            cause = settled.clone();
            record.cause = cause.code.to_string();
            record.reason.clone_from(&cause.reason);
        }
        // A process that only found out what is missing did not die of anything.
        if matches!(cause.code, CauseCode::DependencyMissing | CauseCode::GpuMissing) {
            self.step(Event::Died(generation, cause));
            return;
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
        let Some(process) = self.processes.remove(&generation) else { return };
        // A handshake that was over too late has left a session behind.
        if let (Some(session), Some(exit)) = (&process.session, &self.last_exit) {
            session.close(&exit.cause);
        }
        drop(process);
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
            leaf: process.and_then(|process| process.leaf.as_deref()),
            session: process.and_then(|process| process.session.as_deref()),
            logs: &self.logs,
            spawned: process.map_or_else(Instant::now, |process| process.spawned),
            greeted: process.is_some_and(|process| process.greeted),
            asked: process.is_some_and(|process| process.asked),
            intent: self.machine.intent(generation),
            notice: process.and_then(|process| process.notice.as_ref()),
            traceback: process.map(Process::last_traceback).unwrap_or_default(),
            peak: process.map_or(0, |process| {
                let leaf = process.leaf.as_ref().and_then(|leaf| leaf.peak());
                leaf.unwrap_or(0).max(process.sample.peak())
            }),
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
