//! Health: a pure fold over snapshots. It takes no lock that anything waits
//! under, waits for nothing and cannot fail.
//!
//! Everything of a plugin's health whose length others choose is rendered when its
//! snapshot is published ([`portrait`]); an answer copies those bytes and writes a dozen
//! numbers beside them.

use std::{fmt::Write as _, sync::Arc};

use serde::Serialize;
use stockade_proto::v1;

use crate::{
    capacity::limits,
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

/// What a snapshot says, rendered once.
#[derive(Debug)]
pub struct Portrait {
    /// A JSON object without its closing brace.
    json: String,
    health: PluginHealth,
}

/// Names of what is missing that health shows.
const MISSING: usize = 64;

/// What stays as it is until the next snapshot.
#[derive(Serialize)]
struct Fixed<'h> {
    name: &'h str,
    substate: &'h str,
    description: &'h Option<String>,
    reason: &'h Option<String>,
    version: &'h Option<String>,
    pid: Option<u32>,
    generation: u64,
    restarts: u64,
    last_exit: &'h Option<LastExit>,
    missing: &'h [String],
    kind: &'h str,
    next_retry_at: &'h Option<String>,
    last_error: &'h Option<String>,
    sandbox: &'h str,
    directory: &'h str,
    pending_change: &'h Option<String>,
    progress: &'h Option<String>,
}

/// What changes without one.
#[derive(Serialize)]
struct Moving {
    state: &'static str,
    uptime_seconds: Option<f64>,
    last_used: Option<String>,
    success_count: u64,
    error_count: u64,
    in_flight: u32,
    queued: u32,
    last_execution_time_ms: Option<f64>,
    avg_execution_time_ms: Option<f64>,
    cpu_percent: Option<f64>,
    memory_bytes: Option<u64>,
}

/// The portrait of a snapshot; made when it is published.
pub fn portrait(snapshot: &Snapshot) -> Arc<Portrait> {
    snapshot.rendered.get(|| {
        let health = fixed(snapshot);
        let json = serde_json::to_string(&Fixed {
            name: &health.name,
            substate: &health.substate,
            description: &health.description,
            reason: &health.reason,
            version: &health.version,
            pid: health.pid,
            generation: health.generation,
            restarts: health.restarts,
            last_exit: &health.last_exit,
            missing: &health.missing,
            kind: &health.kind,
            next_retry_at: &health.next_retry_at,
            last_error: &health.last_error,
            sandbox: &health.sandbox,
            directory: &health.directory,
            pending_change: &health.pending_change,
            progress: &health.progress,
        });
        let mut json = json.unwrap_or_else(|_| "{\"name\":\"\"}".to_owned());
        json.pop();
        Portrait { json, health }
    })
}

/// One plugin.
pub fn health(handle: &Handle) -> PluginHealth {
    let snapshot = handle.snapshot();
    let moving = moving(handle, &snapshot);
    PluginHealth {
        state: moving.state,
        uptime_seconds: moving.uptime_seconds,
        last_used: moving.last_used,
        success_count: moving.success_count,
        error_count: moving.error_count,
        in_flight: moving.in_flight,
        queued: moving.queued,
        last_execution_time_ms: moving.last_execution_time_ms,
        avg_execution_time_ms: moving.avg_execution_time_ms,
        cpu_percent: moving.cpu_percent,
        memory_bytes: moving.memory_bytes,
        ..portrait(&snapshot).health.clone()
    }
}

/// One plugin, as JSON.
pub fn health_json(handle: &Handle) -> String {
    let mut json = String::new();
    write_json(handle, &mut json);
    json
}

fn write_json(handle: &Handle, json: &mut String) -> &'static str {
    let snapshot = handle.snapshot();
    let moving = moving(handle, &snapshot);
    json.push_str(&portrait(&snapshot).json);
    json.push(',');
    let numbers = serde_json::to_string(&moving).unwrap_or_default();
    json.push_str(numbers.get(1..).unwrap_or("}"));
    moving.state
}

/// All of them, sorted by name, as JSON.
pub fn list_json(registry: &RegistrySnapshot) -> String {
    let mut json = String::with_capacity(64 + 1024 * registry.plugins.len());
    json.push_str("{\"plugins\":[");
    let mut states = Vec::with_capacity(registry.plugins.len());
    for handle in registry.plugins.values() {
        if !states.is_empty() {
            json.push(',');
        }
        states.push(write_json(handle, &mut json));
    }
    let count = |wanted: &[&str]| states.iter().filter(|state| wanted.contains(state)).count();
    let _ = write!(
        json,
        "],\"total\":{},\"available\":{},\"failed\":{},\"unavailable\":{}}}",
        states.len(),
        count(&AVAILABLE),
        count(&["FAILED"]),
        count(&["UNAVAILABLE"])
    );
    json
}

/// States of plugins that can be called.
const AVAILABLE: [&str; 3] = ["LOADED", "INITIALIZED", "RUNNING"];

fn moving(handle: &Handle, snapshot: &Snapshot) -> Moving {
    let counters = handle.counters();
    let times = handle.recent().last_and_average();
    let running = snapshot.pid.is_some();
    Moving {
        state: snapshot.state().as_str(),
        uptime_seconds: snapshot.uptime().map(|up| up.as_secs_f64()),
        last_used: counters
            .last_used()
            .and_then(|ms| jiff::Timestamp::from_millisecond(ms as i64).ok())
            .map(|time| time.to_string()),
        success_count: counters.successes(),
        error_count: counters.errors(),
        in_flight: snapshot.session.as_ref().map_or(0, |session| session.in_flight()),
        queued: snapshot.session.as_ref().map_or(0, |session| session.queued()),
        last_execution_time_ms: times.map(|times| times.0),
        avg_execution_time_ms: times.map(|times| times.1),
        cpu_percent: snapshot.usage.cpu_percent().filter(|_| running),
        memory_bytes: snapshot.usage.memory().filter(|_| running),
    }
}

fn fixed(snapshot: &Snapshot) -> PluginHealth {
    let manifest = snapshot.manifest.as_deref();
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
    let bounded =
        |text: &Option<String>| text.as_ref().map(|text| limits::cut(text, limits::ERROR_TEXT));
    PluginHealth {
        name: snapshot.name.to_string(),
        state: snapshot.resting.as_str(),
        substate: snapshot.substate.to_string(),
        description: bounded(&manifest.and_then(|manifest| manifest.description.clone())),
        reason: bounded(&reason.or_else(|| snapshot.warning.clone())),
        version: bounded(&manifest.and_then(|manifest| manifest.version.clone())),
        pid: snapshot.pid,
        generation: snapshot.generation,
        restarts: snapshot.restarts,
        last_exit,
        missing: snapshot.missing.iter().take(MISSING + 1).cloned().collect(),
        kind: manifest.map_or("local", |manifest| manifest.kind()).to_owned(),
        next_retry_at: snapshot.next_retry_at.map(|time| time.to_string()),
        last_error: bounded(&last_error),
        sandbox: snapshot
            .plan
            .as_ref()
            .map(|plan| plan.confinement.label())
            .or_else(|| manifest.map(|manifest| manifest.sandbox.profile.as_str().to_owned()))
            .unwrap_or_default(),
        directory: snapshot.directory.display().to_string(),
        pending_change: bounded(&snapshot.pending_change),
        progress: snapshot.progress.clone(),
        ..PluginHealth::default()
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
        available: count(&AVAILABLE),
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
