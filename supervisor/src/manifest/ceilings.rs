//! What any manifest may ask for at most: the operator's `[limits]`.

use serde::Serialize;

use super::types::Manifest;
use crate::document::{Bytes, Table};

/// The operator's ceilings. Without a key: what the manifest asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Ceilings {
    /// Bytes of one plugin's memory.
    pub memory: Option<u64>,
    /// Processes and threads of one plugin.
    pub processes: Option<u64>,
    /// RLIMIT_DATA of one process.
    pub data: Option<u64>,
    /// Calls that wait for one plugin.
    pub queue: Option<u32>,
    /// Calls in flight of one plugin.
    pub concurrency: Option<u32>,
    /// Bytes of memory of all plugins together.
    pub memory_total: Option<u64>,
    /// Processes and threads of all plugins together.
    pub processes_total: Option<u64>,
}

impl Ceilings {
    /// Reads `[limits]` of stockade.toml over these.
    pub fn add(&mut self, table: Table<'_>) {
        for key in ["memory", "memory_total"] {
            if table.bytes(key).is_some_and(|bytes| bytes < 1 << 20) {
                table.error(key, format!("`limits.{key}` is below 1MiB: nothing can run in it"));
            }
        }
        self.memory = table.bytes("memory").or(self.memory);
        self.processes = table.integer("processes", 1..=1_000_000).or(self.processes);
        self.data = table.bytes("data").or(self.data);
        let number = |key, range| table.integer(key, range).and_then(|n| u32::try_from(n).ok());
        self.queue = number("queue", 0..=1_000_000).or(self.queue);
        self.concurrency = number("concurrency", 1..=4096).or(self.concurrency);
        self.memory_total = table.bytes("memory_total").or(self.memory_total);
        self.processes_total =
            table.integer("processes_total", 1..=10_000_000).or(self.processes_total);
        table.finish();
    }

    /// Changes when any of it does.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        format!("{self:?}").hash(&mut hasher);
        hasher.finish()
    }

    /// Lowers what the manifest asks for; each thing that was lowered as a sentence.
    pub fn apply(&self, manifest: &mut Manifest) -> Vec<String> {
        let mut lowered = Vec::new();
        let name = manifest.name.clone();
        let mut say = |key: &str, asked: String, most: String| {
            lowered.push(format!(
                "plugin {name} asks for {key} = {asked}; [limits] of stockade.toml allows {most}"
            ));
        };
        let bytes = |bytes: u64| Bytes(bytes).to_string();
        let limits = &mut manifest.limits;
        if let Some(most) = self.memory.filter(|most| *most < limits.memory) {
            say("limits.memory", bytes(limits.memory), bytes(most));
            limits.memory = most;
        }
        if let Some(most) = self.data.filter(|most| limits.data.is_none_or(|asked| *most < asked)) {
            let asked = limits.data.map_or_else(|| "any".to_owned(), bytes);
            say("limits.data", asked, bytes(most));
            limits.data = Some(most);
        }
        if let Some(most) = self.processes.filter(|most| *most < limits.processes) {
            say("limits.processes", limits.processes.to_string(), most.to_string());
            limits.processes = most;
        }
        if let Some(most) = self.concurrency.filter(|most| *most < manifest.concurrency) {
            say("run.concurrency", manifest.concurrency.to_string(), most.to_string());
            manifest.concurrency = most;
        }
        if let Some(most) = self.queue.filter(|most| *most < manifest.queue.size) {
            say("run.queue.size", manifest.queue.size.to_string(), most.to_string());
            manifest.queue.size = most;
        }
        lowered
    }
}
