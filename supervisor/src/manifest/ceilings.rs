//! What any manifest may ask for at most: the operator's `[limits]`.

use serde::Serialize;

use super::{
    remote::REMOTE_CONCURRENCY,
    types::{Limits, MEMORY_WITH_GPU, Manifest, Queue},
};
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

    /// Lowers what the manifest asks for.
    pub fn apply(&self, manifest: &mut Manifest) {
        fn lower<T: PartialOrd + Copy>(asked: &mut T, most: Option<T>) {
            if let Some(most) = most.filter(|most| most < asked) {
                *asked = most;
            }
        }
        let limits = &mut manifest.limits;
        lower(&mut limits.memory, self.memory);
        lower(&mut limits.processes, self.processes);
        lower(&mut manifest.concurrency, self.concurrency);
        lower(&mut manifest.queue.size, self.queue);
        self.cap_data(manifest);
    }

    /// Lowers RLIMIT_DATA alone.
    pub fn cap_data(&self, manifest: &mut Manifest) {
        let limits = &mut manifest.limits;
        limits.data = match (limits.data, self.data) {
            (Some(asked), Some(most)) => Some(asked.min(most)),
            (asked, most) => asked.or(most),
        };
    }

    /// What the author asks for and the plugin does not get, each as a sentence. Of what is
    /// as the defaults are nothing is said, most often nobody has asked for it; and what was
    /// laid over this plugin alone may give it more than its ceiling.
    pub fn lowered(&self, asked: &Manifest, given: &Manifest) -> Vec<String> {
        let each = |manifest: &Manifest| {
            let limits = manifest.limits;
            [
                Some(limits.memory),
                limits.data,
                Some(limits.processes),
                Some(manifest.concurrency.into()),
                Some(manifest.queue.size.into()),
            ]
        };
        let keys = [
            "limits.memory",
            "limits.data",
            "limits.processes",
            "run.concurrency",
            "run.queue.size",
        ];
        let (concurrency, queue) = (self.concurrency.map(u64::from), self.queue.map(u64::from));
        let ceilings = [self.memory, self.data, self.processes, concurrency, queue];
        let Limits { memory, processes, .. } = Limits::default();
        let is_gpu = asked.requires.gpu.is_some();
        let usual = [
            Some(if is_gpu { MEMORY_WITH_GPU } else { memory }),
            (!is_gpu).then(|| asked.limits.memory.saturating_mul(4)),
            Some(processes),
            asked.remote().map(|_| REMOTE_CONCURRENCY.into()),
            Some(Queue::default().size.into()),
        ];
        let mut lowered = Vec::new();
        for (index, (asked_for, given)) in each(asked).into_iter().zip(each(given)).enumerate() {
            let (key, Some(most)) = (keys[index], ceilings[index]) else { continue };
            let usual = asked_for == usual[index];
            if usual || given != Some(most) || asked_for.is_some_and(|asked| asked <= most) {
                continue;
            }
            let text = |number: u64| match key {
                "limits.memory" | "limits.data" => Bytes(number).to_string(),
                _ => number.to_string(),
            };
            let asked_for = asked_for.map_or_else(|| "any".to_owned(), text);
            lowered.push(format!(
                "plugin {} asks for {key} = {asked_for}; [limits] of stockade.toml allows {}",
                asked.name,
                text(most)
            ));
        }
        lowered
    }
}
