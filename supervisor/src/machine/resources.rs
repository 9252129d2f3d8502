//! What the machine as a whole has left.

use sysinfo::{MemoryRefreshKind, System};

/// Memory and load of the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct HostUsage {
    /// Bytes of memory.
    pub memory_total: u64,
    /// Bytes that can be had without swapping.
    pub memory_available: u64,
    /// Processors.
    pub cpus: usize,
    /// Load average of the last minute.
    pub load: f64,
}

/// Processes and threads that the machine can have; 0 when that cannot be read.
pub fn tasks_max() -> u64 {
    let read = |name| std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok();
    let number = |name| read(name)?.trim().parse::<u64>().ok();
    let both = [number("threads-max"), number("pid_max")];
    both.into_iter().flatten().min().unwrap_or(0)
}

/// Asks the kernel now; what cannot be read is 0.
pub fn host_usage() -> HostUsage {
    let mut usage = HostUsage {
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        load: System::load_average().map_or(0.0, |load| load.one),
        ..HostUsage::default()
    };
    if let Ok(mut system) = System::new() {
        system.refresh_memory_specifics(MemoryRefreshKind::nothing().with_ram());
        usage.memory_total = system.total_memory();
        usage.memory_available = system.available_memory();
    }
    usage
}
