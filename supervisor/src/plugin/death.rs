//! From a death to its cause and its record.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use stockade_proto::launch::Exited;

use super::{
    logs::Logs,
    look::Sample,
    notice::{Notice, Stacks},
    pending::CallInfo,
    session::Session,
};
use crate::{
    document::Bytes,
    lifecycle::{self, Cause, CauseCode, Evidence, ExitStatus, KillFacts},
    machine::{Leaf, OomWatch},
    manifest::Limits,
    preflight::LaunchPlan,
    store::{CrashRecord, InFlight},
};

/// Standard error kept in a record.
const STDERR: usize = 2048;

/// What the actor knows of the process that died.
pub(super) struct Deceased {
    pub(super) plugin: Arc<str>,
    pub(super) version: String,
    pub(super) generation: u64,
    pub(super) pid: Option<u32>,
    pub(super) plan: Option<Arc<LaunchPlan>>,
    pub(super) session: Option<Arc<Session>>,
    pub(super) leaf: Option<Arc<Leaf>>,
    pub(super) logs: Arc<Logs>,
    pub(super) spawned: Instant,
    pub(super) greeted: bool,
    pub(super) asked: bool,
    pub(super) intent: Option<Cause>,
    pub(super) notice: Option<Notice>,
    pub(super) stacks: Option<Stacks>,
    /// Where its start failed.
    pub(super) traceback: String,
    pub(super) sample: Arc<Sample>,
    pub(super) init_progress: Option<String>,
}

impl Deceased {
    fn limits(&self) -> Limits {
        self.plan.as_ref().map_or_else(Limits::default, |plan| plan.limits)
    }

    fn calls(&self) -> Vec<CallInfo> {
        self.session.as_ref().map(|session| session.calls()).unwrap_or_default()
    }

    /// Where it was when it died, in its own language: stacks that it printed at
    /// its death, else where its start or its last call failed.
    fn last_traceback(&self) -> String {
        let stacks = self.stacks.as_ref().map(Stacks::text).unwrap_or_default();
        if !stacks.is_empty() {
            return stacks;
        }
        let raised = self.session.as_ref().map(|session| session.last_traceback());
        raised.filter(|traceback| !traceback.is_empty()).unwrap_or_else(|| self.traceback.clone())
    }

    /// The most that its tree held. Reads the cgroup's files.
    fn peak(&self) -> u64 {
        let leaf = self.leaf.as_ref().and_then(|leaf| leaf.peak());
        leaf.unwrap_or(0).max(self.sample.peak())
    }

    /// The tool that ran on the crashed thread, else the only one in flight.
    fn tool(&self, calls: &[CallInfo]) -> Option<String> {
        let named = self.notice.as_ref().and_then(|notice| notice.call_id);
        let call = match named {
            Some(id) => calls.iter().find(|call| call.id == id),
            None => match calls {
                [only] => Some(only),
                _ => None,
            },
        };
        call.map(|call| call.tool.to_string())
    }

    fn evidence(
        &self,
        status: ExitStatus,
        kill: KillFacts,
        calls: &[CallInfo],
        (core, peak): (&str, u64),
    ) -> Evidence {
        let limits = self.limits();
        let bytes = |name: &str, value: u64| format!("limits.{name} = {}", Bytes(value));
        Evidence {
            status,
            intent: self.intent.clone(),
            asked: self.asked,
            up: self.spawned.elapsed(),
            greeted: self.greeted,
            notice_signal: self.notice.as_ref().map(|notice| notice.signal),
            syscall: self.notice.as_ref().and_then(|notice| notice.syscall).map(syscall_name),
            tool: self.tool(calls),
            kill,
            stderr: self.logs.stderr_tail(self.generation, STDERR),
            memory_limit: limits
                .address_space
                .map(|value| bytes("address_space", value))
                .or_else(|| limits.data.map(|value| bytes("data", value))),
            cpu_limit: limits.cpu_time.map(|seconds| {
                humantime::format_duration(Duration::from_secs(seconds)).to_string()
            }),
            file_size_limit: limits.file_size.map(|value| Bytes(value).to_string()),
            memory: (Bytes(limits.memory).to_string(), Bytes(peak).to_string()),
            core: core_place(core, self.plan.as_deref()),
            program: self
                .plan
                .as_ref()
                .map_or_else(String::new, |plan| plan.program.display().to_string()),
        }
    }

    /// What callers are told when only the notice is known.
    pub(super) fn cause_of_notice(&self, notice: &Notice, core: &str) -> Cause {
        let calls = self.calls();
        let status = ExitStatus::Signal { signal: notice.signal, core: false };
        let evidence = Evidence {
            notice_signal: Some(notice.signal),
            intent: None,
            ..self.evidence(status, KillFacts::default(), &calls, (core, self.sample.peak()))
        };
        lifecycle::infer(&evidence)
    }

    /// The cause, and the record that is kept of it. Reads files; blocks.
    pub(super) fn examine(&self, exited: Option<&Exited>, oom: &OomWatch) -> (Cause, CrashRecord) {
        // A launcher that was killed reports nothing: its plugin went with it.
        let status = exited.map_or(ExitStatus::Signal { signal: 9, core: false }, |exited| {
            ExitStatus::from_wait(exited.wait_status)
        });
        let cpu = exited.map_or(0, |exited| exited.user_usec + exited.system_usec);
        let kill = KillFacts {
            own_oom: self.leaf.as_ref().is_some_and(|leaf| leaf.killed_for_memory()),
            host_oom: status.signal() == Some(9) && oom.recent(),
            cpu_spent: self.limits().cpu_time.is_some_and(|limit| cpu >= limit * 1_000_000),
        };
        let (calls, peak) = (self.calls(), self.peak());
        let evidence = self.evidence(status, kill, &calls, (&core_pattern(), peak));
        let cause = lifecycle::infer(&evidence);
        let record = CrashRecord {
            id: 0,
            plugin: self.plugin.to_string(),
            version: self.version.clone(),
            generation: self.generation,
            pid: self.pid.unwrap_or(0),
            time: Timestamp::now().to_string(),
            cause: cause.code.to_string(),
            reason: cause.reason.clone(),
            exit_code: status.code(),
            signal: status.signal().map(lifecycle::signal_name),
            core_dumped: matches!(status, ExitStatus::Signal { core: true, .. }),
            uptime_seconds: evidence.up.as_secs_f64(),
            peak_memory_bytes: peak.max(exited.map_or(0, |exited| exited.max_rss_kib * 1024)),
            cpu_seconds: cpu as f64 / 1e6,
            calls: calls.iter().map(in_flight).collect(),
            last_progress: self
                .session
                .as_ref()
                .map(|session| session.last_progress())
                .filter(|text| !text.is_empty())
                .or_else(|| self.init_progress.clone())
                .unwrap_or_default(),
            traceback: self.last_traceback(),
            stderr_tail: evidence.stderr,
            backtrace: self
                .notice
                .as_ref()
                .map(|notice| notice.backtrace.clone())
                .unwrap_or_default(),
        };
        (cause, record)
    }
}

/// `mount`, or the number of a call that is newer than our table.
fn syscall_name(number: u64) -> String {
    let known = usize::try_from(number).ok().and_then(syscalls::Sysno::new);
    known.map_or_else(|| format!("number {number}"), |call| call.name().to_owned())
}

/// Where the kernel puts cores.
pub(super) fn core_pattern() -> String {
    std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default()
}

/// Where it puts a core of this plugin.
fn core_place(pattern: &str, plan: Option<&LaunchPlan>) -> String {
    let pattern = pattern.trim();
    match pattern.strip_prefix('|') {
        Some(handler) => format!("handed to {handler}"),
        None if pattern.starts_with('/') => pattern.to_owned(),
        None => {
            let directory = plan.map(|plan| plan.directory.display().to_string());
            format!("{}/{pattern}", directory.unwrap_or_default())
        }
    }
}

fn in_flight(call: &CallInfo) -> InFlight {
    let mut hasher = Sha256::new();
    hasher.update(&call.args);
    for attachment in &call.attachments {
        hasher.update(attachment);
    }
    let digest = hasher.finalize();
    InFlight {
        call_id: call.public_id.to_string(),
        tool: call.tool.to_string(),
        input_digest: digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect(),
        running_ms: call.started.elapsed().as_secs_f64() * 1000.0,
    }
}

/// The reason of an UNKILLABLE plugin.
pub(super) fn unkillable(pid: u32, gpus: &[String]) -> Cause {
    let place = crate::machine::wchan(pid);
    let gpu = match gpus {
        [] => String::new(),
        gpus => format!(" Its GPU {} stays reserved.", gpus.join(", ")),
    };
    let reason = format!(
        "Process {pid} is stuck in the kernel ({place}) after SIGKILL.{gpu} \
         It is not started again until the process is gone."
    );
    Cause::new(CauseCode::Unkillable, reason)
}
