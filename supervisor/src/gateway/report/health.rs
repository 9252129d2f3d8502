//! Health: a pure fold over snapshots. It takes no lock that anything waits
//! under, waits for nothing and cannot fail.

use serde::Serialize;
use stockade_proto::v1;

use crate::{
    lifecycle::{State, Substate},
    plugin::{Handle, Snapshot},
    registry::RegistrySnapshot,
};

/// How a plugin is, as JSON. Optional fields are present as null.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of stockade.v1.PluginHealth")]
pub struct PluginHealth {
    pub name: String,
    pub state: &'static str,
    pub substate: String,
    pub description: Option<String>,
    pub reason: Option<String>,
    pub version: Option<String>,
    pub uptime_seconds: Option<f64>,
    pub last_used: Option<String>,
    pub success_count: u64,
    pub error_count: u64,
    pub pid: Option<u32>,
    pub generation: u64,
    pub restarts: u64,
    pub last_exit: Option<LastExit>,
    pub in_flight: u32,
    pub queued: u32,
    pub missing: Vec<String>,
    pub kind: String,
    pub last_execution_time_ms: Option<f64>,
    pub avg_execution_time_ms: Option<f64>,
    pub cpu_percent: Option<f64>,
    pub memory_bytes: Option<u64>,
    pub next_retry_at: Option<String>,
    pub last_error: Option<String>,
    pub sandbox: String,
    pub directory: String,
    pub pending_change: Option<String>,
    pub progress: Option<String>,
}

/// How the last process ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of stockade.v1.LastExit")]
pub struct LastExit {
    pub cause: String,
    pub reason: String,
    pub signal: Option<String>,
    pub code: Option<i32>,
    pub time: String,
}

/// All plugins and their counts.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of stockade.v1.ListPluginsResponse")]
pub struct PluginList {
    pub plugins: Vec<PluginHealth>,
    pub total: u32,
    pub available: u32,
    pub failed: u32,
    pub unavailable: u32,
}

/// One plugin.
pub fn health(handle: &Handle) -> PluginHealth {
    let snapshot = handle.snapshot();
    let manifest = snapshot.manifest.as_deref();
    let counters = handle.counters();
    let times = handle.recent().last_and_average();
    let last_exit = snapshot.last_exit.as_deref().map(|exit| LastExit {
        cause: exit.cause.code.to_string(),
        reason: exit.cause.reason.clone(),
        signal: exit.signal.clone(),
        code: exit.code,
        time: exit.time.to_string(),
    });
    let reason = snapshot.cause.as_ref().map(|cause| cause.reason.clone());
    let last_error = reason
        .clone()
        .or_else(|| snapshot.warning.clone())
        .or_else(|| last_exit.as_ref().map(|exit| exit.reason.clone()));
    let running = snapshot.pid.is_some();
    PluginHealth {
        name: snapshot.name.to_string(),
        state: snapshot.state().as_str(),
        substate: snapshot.substate.to_string(),
        description: manifest.and_then(|manifest| manifest.description.clone()),
        reason: reason.or_else(|| snapshot.warning.clone()),
        version: manifest.and_then(|manifest| manifest.version.clone()),
        uptime_seconds: snapshot.uptime().map(|up| up.as_secs_f64()),
        last_used: counters
            .last_used()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms as i64).ok())
            .map(|time| time.to_string()),
        success_count: counters.successes(),
        error_count: counters.errors(),
        pid: snapshot.pid,
        generation: snapshot.generation,
        restarts: snapshot.restarts,
        last_exit,
        in_flight: snapshot.session.as_ref().map_or(0, |session| session.in_flight()),
        queued: snapshot.session.as_ref().map_or(0, |session| session.queued()),
        missing: snapshot.missing.clone(),
        kind: manifest.map_or("local", |manifest| manifest.kind()).to_owned(),
        last_execution_time_ms: times.map(|times| times.0),
        avg_execution_time_ms: times.map(|times| times.1),
        cpu_percent: snapshot.usage.cpu_percent().filter(|_| running),
        memory_bytes: snapshot.usage.memory().filter(|_| running),
        next_retry_at: snapshot.next_retry_at.map(|time| time.to_string()),
        last_error,
        sandbox: snapshot
            .plan
            .as_ref()
            .map(|plan| plan.confinement.label())
            .or_else(|| manifest.map(|manifest| manifest.sandbox.profile.as_str().to_owned()))
            .unwrap_or_default(),
        directory: snapshot.directory.display().to_string(),
        pending_change: snapshot.pending_change.clone(),
        progress: snapshot.progress.clone(),
    }
}

/// All of them, sorted by name.
pub fn list(registry: &RegistrySnapshot) -> PluginList {
    let plugins: Vec<PluginHealth> = registry.plugins.values().map(health).collect();
    let count = |states: &[&str]| {
        plugins.iter().filter(|plugin| states.contains(&plugin.state)).count() as u32
    };
    PluginList {
        total: plugins.len() as u32,
        available: count(&["LOADED", "INITIALIZED", "RUNNING"]),
        failed: count(&["FAILED"]),
        unavailable: count(&["UNAVAILABLE"]),
        plugins,
    }
}

/// Is it SERVING in the sense of grpc.health.v1?
pub fn serving(snapshot: &Snapshot) -> bool {
    match snapshot.resting {
        State::Initialized | State::Running => snapshot.substate != Substate::Draining,
        State::Loaded => snapshot.substate == Substate::OnDemand,
        State::Failed | State::Unavailable => false,
    }
}

impl From<PluginHealth> for v1::PluginHealth {
    fn from(health: PluginHealth) -> Self {
        v1::PluginHealth {
            state: v1::PluginState::from_str_name(health.state).unwrap_or_default() as i32,
            name: health.name,
            substate: health.substate,
            description: health.description,
            reason: health.reason,
            version: health.version,
            uptime_seconds: health.uptime_seconds,
            last_used: health.last_used,
            success_count: health.success_count,
            error_count: health.error_count,
            pid: health.pid,
            generation: health.generation,
            restarts: health.restarts,
            last_exit: health.last_exit.map(|exit| v1::LastExit {
                cause: exit.cause,
                reason: exit.reason,
                signal: exit.signal,
                code: exit.code,
                time: exit.time,
            }),
            in_flight: health.in_flight,
            queued: health.queued,
            missing: health.missing,
            kind: health.kind,
            last_execution_time_ms: health.last_execution_time_ms,
            avg_execution_time_ms: health.avg_execution_time_ms,
            cpu_percent: health.cpu_percent,
            memory_bytes: health.memory_bytes,
            next_retry_at: health.next_retry_at,
            last_error: health.last_error,
            sandbox: health.sandbox,
            directory: health.directory,
            pending_change: health.pending_change,
            progress: health.progress,
        }
    }
}

/// The CLI asks by gRPC and prints the same JSON as HTTP.
impl From<v1::PluginHealth> for PluginHealth {
    fn from(wire: v1::PluginHealth) -> Self {
        PluginHealth {
            state: wire.state().as_str_name(),
            name: wire.name,
            substate: wire.substate,
            description: wire.description,
            reason: wire.reason,
            version: wire.version,
            uptime_seconds: wire.uptime_seconds,
            last_used: wire.last_used,
            success_count: wire.success_count,
            error_count: wire.error_count,
            pid: wire.pid,
            generation: wire.generation,
            restarts: wire.restarts,
            last_exit: wire.last_exit.map(|exit| LastExit {
                cause: exit.cause,
                reason: exit.reason,
                signal: exit.signal,
                code: exit.code,
                time: exit.time,
            }),
            in_flight: wire.in_flight,
            queued: wire.queued,
            missing: wire.missing,
            kind: wire.kind,
            last_execution_time_ms: wire.last_execution_time_ms,
            avg_execution_time_ms: wire.avg_execution_time_ms,
            cpu_percent: wire.cpu_percent,
            memory_bytes: wire.memory_bytes,
            next_retry_at: wire.next_retry_at,
            last_error: wire.last_error,
            sandbox: wire.sandbox,
            directory: wire.directory,
            pending_change: wire.pending_change,
            progress: wire.progress,
        }
    }
}
