//! What an actor's own tasks report, turned into events of the machine.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use stockade_proto::launch::{Exited, launch_report::Report};
use tracing::warn;

use super::{
    actor::{Actor, After, Ending, HANGUP_GRACE, Process},
    death::{self, Deceased},
    handshake::StartFailure,
    journal::{Event as JournalEvent, EventKind},
    launchers,
    logs::Stream,
    mailbox::Internal,
    notice::{Notice, Stacks},
    snapshot::LastExit,
    unstarted::not_executed,
};
use crate::{
    lifecycle::{Cause, CauseCode, Event},
    preflight::{LaunchPlan, Refusal},
    store::CrashRecord,
};

/// A successor starts early when the dying process is at least this large.
const LARGE: u64 = 64 << 20;
/// Lines of a stack that go to the log.
const STACK_LINES: usize = 200;
/// Between looks for a missing file.
const HEAL: Duration = Duration::from_secs(1);

impl Actor {
    pub(super) fn report(&mut self, report: Internal) {
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
            Internal::Needed => self.step(Event::Needed),
            Internal::Report(generation, report) => self.launcher(generation, report),
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
            Internal::Raised(generation, tool, traceback, more) => {
                let title = match more {
                    0 => format!("tool {tool} raised:"),
                    more => format!("tool {tool} raised ({more} more before):"),
                };
                self.log_stack(generation, &title, &traceback);
            }
            Internal::Notice(generation, notice) => self.notice(generation, notice),
            Internal::NoticeHeard(generation, resident, core) => {
                self.notice_heard(generation, resident, core);
            }
            Internal::Examined(generation, found) => self.examined(generation, *found),
            Internal::Reaped(generation) => self.gone(generation),
            Internal::Explained(generation, cause) => self.explained(generation, cause),
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

    /// Looks for the files that were missing, once a second. One look-out per plugin:
    /// the one before ends here.
    fn watch_for_healing(&mut self) {
        self.healer = None;
        if self.watched.is_empty() {
            return;
        }
        let (files, sink, number) = (self.watched.clone(), self.sink.clone(), self.checks);
        let look = move |files: Arc<Vec<PathBuf>>| {
            let stamp = |file: &PathBuf| {
                let metadata = std::fs::metadata(file).ok()?;
                Some((metadata.len(), metadata.modified().ok()?, metadata.permissions()))
            };
            files.iter().map(stamp).collect::<Vec<_>>()
        };
        let files = Arc::new(files);
        let healer = tokio::spawn(async move {
            // Away from here: a file system may not answer.
            let look = || {
                let files = files.clone();
                tokio::task::spawn_blocking(move || look(files))
            };
            let Ok(before) = look().await else { return };
            loop {
                tokio::time::sleep(HEAL).await;
                let Ok(now) = look().await else { return };
                if now != before {
                    sink.tell(Internal::Healed(number));
                    return;
                }
            }
        });
        self.healer = Some(Ending(healer.abort_handle()));
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

    fn launcher(&mut self, generation: u64, report: Option<Report>) {
        match report {
            Some(Report::Started(_) | Report::Listener(_)) => {}
            Some(Report::Failed(failed)) => {
                let cause = not_executed(
                    &self.name,
                    self.plan.as_ref().map(|plan| plan.program.as_path()),
                    &failed.step,
                    failed.errno,
                );
                self.step(Event::StartFailed(generation, cause));
            }
            Some(Report::Exited(exited)) => self.died(generation, Some(exited)),
            Some(Report::Gone(gone)) => {
                let after = if gone.stuck.is_empty() { After::Gone } else { After::Stuck };
                self.follows(generation, after);
            }
            // The launcher was killed. Its plugin died with it; whatever it held is
            // ours now.
            None => {
                let known = self.processes.get(&generation);
                if known.is_some_and(|process| process.after != Some(After::Gone)) {
                    self.died(generation, None);
                    self.follows(generation, After::Lost);
                }
            }
        }
    }

    /// What came of the tree: told once the cause of the death is known.
    fn follows(&mut self, generation: u64, after: After) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.after = Some(after);
        if process.died && !process.examined {
            return;
        }
        match after {
            After::Gone => self.gone(generation),
            After::Stuck => {
                process.after = None;
                self.step(Event::TreeStuck(generation));
            }
            After::Lost => {
                let (sink, reaps) = (self.sink.clone(), self.context.reaps_orphans);
                drop(tokio::task::spawn_blocking(move || {
                    if reaps {
                        launchers::reap_orphans();
                    }
                    sink.tell(Internal::Reaped(generation));
                }));
            }
        }
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

    /// A stack, into the plugin's log: its first and last lines.
    fn log_stack(&self, generation: u64, title: &str, stack: &str) {
        if stack.trim().is_empty() {
            return;
        }
        let put = |line: &str| {
            self.logs.push(generation, Stream::Supervisor, Some("error"), line.trim_end())
        };
        put(title);
        let count = stack.lines().count();
        for (index, line) in stack.lines().enumerate() {
            if index == STACK_LINES / 2 && count > STACK_LINES {
                put(&format!("… {} lines …", count - STACK_LINES));
            }
            if index < STACK_LINES / 2 || index + STACK_LINES / 2 >= count {
                put(line);
            }
        }
    }

    /// The callers are told at once, with the last words; the kernel's word on the
    /// death follows.
    fn notice(&mut self, generation: u64, notice: Notice) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.notice = Some(notice);
        // The kernel may have begun already: then the last sample tells.
        let (seen, pid) = (process.sample.memory().unwrap_or(0), process.pid);
        let (words, sink) = (process.last_words(), self.sink.clone());
        tokio::spawn(async move {
            let looked = tokio::task::spawn_blocking(move || {
                (pid.map_or(0, crate::machine::resident), death::core_pattern())
            });
            let ((), looked) = tokio::join!(words, looked);
            let (resident, core) = looked.unwrap_or_default();
            sink.tell(Internal::NoticeHeard(generation, resident.max(seen), core));
        });
    }

    fn notice_heard(&mut self, generation: u64, resident: u64, core: String) {
        let Some(process) = self.processes.get(&generation) else { return };
        // The kernel was quicker: what it says is examined already.
        let Some(notice) = process.notice.clone().filter(|_| !process.died) else { return };
        let cause = self.deceased(generation).cause_of_notice(&notice, &core);
        self.step(Event::Notice(generation, cause, resident >= LARGE));
    }

    /// The kernel's word. The cause is found out elsewhere: it takes /proc, hashes of
    /// arguments and the last words.
    fn died(&mut self, generation: u64, exited: Option<Exited>) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        if std::mem::replace(&mut process.died, true) {
            return;
        }
        let words = process.last_words();
        let (deceased, stacks) =
            (self.deceased(generation), process_stacks(&self.processes, generation));
        let (sink, oom) = (self.sink.clone(), self.context.oom.clone());
        tokio::spawn(async move {
            words.await;
            let examined = tokio::task::spawn_blocking(move || {
                let (cause, record) = deceased.examine(exited.as_ref(), &oom);
                (cause, record, stacks.map(|stacks| stacks.text()).unwrap_or_default())
            });
            let Ok(found) = examined.await else { return };
            sink.tell(Internal::Examined(generation, Box::new(found)));
        });
    }

    fn examined(&mut self, generation: u64, found: (Cause, CrashRecord, String)) {
        let Some(process) = self.processes.get_mut(&generation) else { return };
        process.examined = true;
        let after = process.after;
        self.dead(generation, found);
        if let Some(after) = after {
            self.follows(generation, after);
        }
    }

    fn dead(&mut self, generation: u64, found: (Cause, CrashRecord, String)) {
        let (mut cause, mut record, stacks) = found;
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
        // Its cgroup is removed where the kernel may take its time.
        drop(tokio::task::spawn_blocking(move || drop(process)));
        if self.processes.is_empty() {
            self.adopt_change();
        }
        self.step(Event::TreeGone(generation));
    }

    fn deceased(&self, generation: u64) -> Deceased {
        let process = self.processes.get(&generation);
        let manifest = self.usable.as_ref().ok();
        let version = manifest.and_then(|manifest| manifest.version.clone());
        Deceased {
            plugin: self.name.clone(),
            version: version.unwrap_or_default(),
            generation,
            pid: process.and_then(|process| process.pid),
            plan: process.map(|process| process.plan.clone()),
            leaf: process.and_then(|process| process.leaf.clone()),
            session: process.and_then(|process| process.session.clone()),
            logs: self.logs.clone(),
            spawned: process.map_or_else(Instant::now, |process| process.spawned),
            greeted: process.is_some_and(|process| process.greeted),
            asked: process.is_some_and(|process| process.asked),
            intent: self.machine.intent(generation).cloned(),
            notice: process.and_then(|process| process.notice.clone()),
            stacks: process_stacks(&self.processes, generation),
            traceback: process.map(|process| process.traceback.clone()).unwrap_or_default(),
            sample: process.map(|process| process.sample.clone()).unwrap_or_default(),
            init_progress: self.progress.clone(),
        }
    }
}

fn process_stacks(processes: &HashMap<u64, Process>, generation: u64) -> Option<Stacks> {
    processes.get(&generation).map(|process| process.stacks.clone())
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
