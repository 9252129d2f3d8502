//! The tables that a manifest and the operator's configuration share: limits,
//! time-outs, restart policy. The configuration's values overlay the manifest's.

use std::time::Duration;

use super::types::{Exhausted, Limits, OnError, RestartPolicy, Timeouts};
use crate::document::Table;

/// Reads `[limits]` over `limits`. A memory limit without a data limit moves
/// the data limit along (4 × memory; none with a GPU).
pub fn read_limits(table: Table<'_>, limits: &mut Limits, gpu: bool) {
    if let Some(memory) = table.bytes("memory") {
        if memory < 1 << 20 {
            table.error("memory", "`limits.memory` is below 1MiB: nothing can run in it");
        }
        limits.memory = memory;
        limits.data = (!gpu).then(|| memory.saturating_mul(4));
    }
    if let Some(data) = table.bytes("data") {
        limits.data = Some(data);
    }
    if let Some(space) = table.bytes("address_space") {
        if gpu {
            table.error_with(
                "address_space",
                "`limits.address_space` cannot be used with a GPU: CUDA reserves twice the card",
                "use limits.memory",
            );
        }
        limits.address_space = Some(space);
    }
    if let Some(time) = table.duration("cpu_time") {
        limits.cpu_time = Some(time.as_secs().max(1));
    }
    limits.file_size = table.bytes("file_size").or(limits.file_size);
    limits.open_files = table.integer("open_files", 16..=1_048_576).unwrap_or(limits.open_files);
    limits.processes = table.integer("processes", 1..=1_000_000).unwrap_or(limits.processes);
    limits.core = table.bytes("core").unwrap_or(limits.core);
    limits.cpu = table.positive("cpu").or(limits.cpu);
    table.not_built_yet("gpu_memory");
    table.finish();
}

/// Reads `[timeouts]` over `timeouts`.
pub fn read_timeouts(table: Table<'_>, timeouts: &mut Timeouts) {
    let over = |key: &'static str, value: &mut Duration| {
        if let Some(duration) = table.duration(key) {
            if duration.is_zero() && key != "cancel_grace" {
                table.error(key, format!("`timeouts.{key}` must be longer than 0"));
            }
            *value = duration;
        }
    };
    over("handshake", &mut timeouts.handshake);
    over("init", &mut timeouts.init);
    over("call", &mut timeouts.call);
    over("cancel_grace", &mut timeouts.cancel_grace);
    over("stop", &mut timeouts.stop);
    over("ping", &mut timeouts.ping);
    if let Some(misses) = table.integer("ping_misses", 1..=100) {
        timeouts.ping_misses = misses as u32;
    }
    table.finish();
}

/// Reads `[restart]` over `restart`.
pub fn read_restart(table: Table<'_>, restart: &mut RestartPolicy) {
    restart.backoff_min = table.duration("backoff_min").unwrap_or(restart.backoff_min);
    restart.backoff_max = table.duration("backoff_max").unwrap_or(restart.backoff_max);
    if restart.backoff_min > restart.backoff_max {
        let message = "`restart.backoff_min` is longer than `restart.backoff_max`";
        table.error("backoff_min", message);
    }
    if let Some(deaths) = table.integer("max_deaths", 0..=1_000_000) {
        restart.max_deaths = deaths as u32;
    }
    restart.window = table.duration("window").unwrap_or(restart.window);
    let exhausted = [("slow_retry", Exhausted::SlowRetry), ("hold", Exhausted::Hold)];
    restart.exhausted = table.choice("exhausted", &exhausted).unwrap_or(restart.exhausted);
    restart.slow_retry = table.duration("slow_retry").unwrap_or(restart.slow_retry);
    let on_error = [("count", OnError::Count), ("fail", OnError::Fail)];
    restart.on_error = table.choice("on_error", &on_error).unwrap_or(restart.on_error);
    if let Some(errors) = table.integer("max_errors", 0..=1_000_000) {
        restart.max_errors = errors as u32;
    }
    table.finish();
}
