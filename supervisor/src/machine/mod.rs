//! Facts about this machine: processes, memory, GPUs.

mod gpu;
mod memory;
mod process;
mod resources;

pub use gpu::{Gpu, GpuInventory, Gpus};
pub use memory::OomWatch;
pub use process::{
    Usage, children, descendants, is_alive, process_ticks, resident, start_time, tree_pss,
    tree_usage, wchan,
};
pub use resources::{HostUsage, host_usage};
