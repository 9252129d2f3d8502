//! Facts about this machine: processes, memory, GPUs.

mod cgroup;
mod gpu;
mod layers;
mod memory;
mod process;
mod resources;
mod trace;

pub use cgroup::{Cgroups, Leaf, LeafLimits};
pub use gpu::{Gpu, GpuInventory, Gpus};
pub use layers::{Gap, LayerProbe, Layers};
pub use memory::OomWatch;
pub use process::{
    Usage, children, descendants, is_alive, parent, pid_of, process_ticks, resident, scratch,
    start_time, tree_pss, tree_usage, tree_wait, wchan,
};
pub use resources::{HostUsage, host_usage, tasks_max};
pub use trace::{Observed, Tracer, plain};
