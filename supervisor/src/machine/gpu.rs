//! GPUs, by NVML on a thread of its own: its calls block and can hang.

use std::{
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, mpsc},
    time::{Duration, Instant},
};

use nvml_wrapper::Nvml;

/// One GPU.
#[derive(Clone, Debug, PartialEq)]
pub struct Gpu {
    /// `GPU-…`, what CUDA_VISIBLE_DEVICES gets.
    pub uuid: String,
    /// Marketing name.
    pub name: String,
    /// Bytes.
    pub memory_total: u64,
    /// Bytes.
    pub memory_free: u64,
    /// Compute capability.
    pub capability: (u32, u32),
    /// N of /dev/nvidiaN; None when the driver does not tell.
    pub minor: Option<u32>,
}

/// The GPUs, or why there are none.
pub type GpuInventory = Result<Vec<Gpu>, String>;

/// An answer is used this long.
const FRESH: Duration = Duration::from_secs(5);
/// NVML has this long to answer.
const PATIENCE: Duration = Duration::from_secs(10);

type Question = mpsc::Sender<GpuInventory>;

/// Asks the GPU thread, which starts with the first question.
#[derive(Debug)]
pub struct Gpus {
    library: Option<PathBuf>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    thread: Option<mpsc::Sender<Question>>,
    last: Option<(Instant, GpuInventory)>,
}

impl Gpus {
    /// `library`: another one than libnvidia-ml.so.1.
    pub fn new(library: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Gpus { library, state: Mutex::default() })
    }

    /// The inventory, at most five seconds old. Blocks for ten at most.
    pub fn inventory(&self) -> GpuInventory {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((when, inventory)) = &state.last
            && when.elapsed() < FRESH
        {
            return inventory.clone();
        }
        let (reply, answer) = mpsc::channel();
        let asked = match &state.thread {
            Some(thread) => thread.send(reply).is_ok(),
            None => {
                let library = self.library.clone();
                let (questions, inbox) = mpsc::channel::<Question>();
                let spawned = std::thread::Builder::new()
                    .name("gpu".into())
                    .spawn(move || answer_all(library, &inbox));
                let sent = spawned.is_ok() && questions.send(reply).is_ok();
                state.thread = sent.then_some(questions);
                sent
            }
        };
        let inventory = match asked.then(|| answer.recv_timeout(PATIENCE)) {
            Some(Ok(inventory)) => inventory,
            // A hung thread is left alone; the next question gets a new one.
            Some(Err(_)) => {
                state.thread = None;
                Err(format!("NVML did not answer within {} s", PATIENCE.as_secs()))
            }
            None => {
                state.thread = None;
                Err("the GPU thread could not be started".to_owned())
            }
        };
        state.last = Some((Instant::now(), inventory.clone()));
        inventory
    }
}

impl Gpus {
    /// The device files that a plugin with these GPUs needs, as far as there are
    /// such files.
    pub fn devices(&self, uuids: &[String]) -> Vec<PathBuf> {
        let gpus = self.inventory().unwrap_or_default();
        let own = gpus.iter().filter(|gpu| uuids.contains(&gpu.uuid)).filter_map(|gpu| gpu.minor);
        let mut devices: Vec<PathBuf> =
            own.map(|minor| PathBuf::from(format!("/dev/nvidia{minor}"))).collect();
        devices.extend(
            ["/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools"].map(PathBuf::from),
        );
        devices.retain(|device| device.exists());
        devices
    }
}

fn answer_all(library: Option<PathBuf>, inbox: &mpsc::Receiver<Question>) {
    let name: OsString = library.map_or_else(|| "libnvidia-ml.so.1".into(), Into::into);
    let mut nvml: Option<Nvml> = None;
    for question in inbox {
        // A driver that was installed meanwhile is found.
        let opened = match nvml.take() {
            Some(nvml) => Ok(nvml),
            None => Nvml::builder().lib_path(&name).init(),
        };
        let inventory = match opened {
            Ok(opened) => {
                let list = list(&opened);
                nvml = Some(opened);
                list
            }
            Err(error) => Err(format!("NVML ({}): {error}", name.to_string_lossy())),
        };
        let _ = question.send(inventory);
    }
}

fn list(nvml: &Nvml) -> GpuInventory {
    let text = |error: nvml_wrapper::error::NvmlError| format!("NVML: {error}");
    let count = nvml.device_count().map_err(text)?;
    let mut gpus = Vec::new();
    for index in 0..count {
        let device = nvml.device_by_index(index).map_err(text)?;
        let memory = device.memory_info().map_err(text)?;
        let capability = device.cuda_compute_capability().map_err(text)?;
        gpus.push(Gpu {
            uuid: device.uuid().map_err(text)?,
            name: device.name().unwrap_or_default(),
            memory_total: memory.total,
            memory_free: memory.free,
            capability: (capability.major.max(0) as u32, capability.minor.max(0) as u32),
            minor: device.minor_number().ok(),
        });
    }
    if gpus.is_empty() { Err("NVML reports no GPU".to_owned()) } else { Ok(gpus) }
}
