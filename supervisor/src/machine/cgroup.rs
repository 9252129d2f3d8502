//! Leaves of a delegated cgroup v2: the kernel's own count and limit of what a
//! plugin uses, and one write that kills all of it.
//!
//! ```text
//! stockade.service/          what systemd delegated
//!   supervisor/              the daemon and the launchers
//!   plugins/                 controllers memory, pids, cpu
//!     ocr.3/                 one process tree of one plugin
//! ```

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use super::Usage;

const MOUNT: &str = "/sys/fs/cgroup";
/// The daemon's own; also what `DelegateSubgroup=` is to say.
const OWN: &str = "supervisor";
const PLUGINS: &str = "plugins";
/// Those that leaves need; cpu is used where it is there.
const NEEDED: [&str; 2] = ["memory", "pids"];
/// The period of cpu.max in microseconds.
const PERIOD: u64 = 100_000;

/// The folder of all leaves, or why there is none.
#[derive(Clone, Debug)]
pub struct Cgroups {
    plugins: PathBuf,
    cpu: bool,
}

/// What a leaf enforces.
#[derive(Clone, Copy, Debug)]
pub struct LeafLimits {
    /// Bytes.
    pub memory: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Processors.
    pub cpu: Option<f64>,
}

impl Cgroups {
    /// Takes possession of the cgroup that this process is in: moves it into a
    /// child and makes room for leaves. Only for a process whose cgroup is its
    /// own (the daemon).
    ///
    /// # Errors
    /// The sentence that says why not, and how to get it.
    pub fn claim() -> Result<Self, String> {
        let root = delegated()?;
        let told = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| {
                format!("cannot {what} in {}: {error}; {DELEGATE}", root_shown())
            }
        };
        let own = root.join(OWN);
        make(&own).map_err(told("make a group"))?;
        for pid in pids(&root).map_err(told("read processes"))? {
            fs::write(own.join("cgroup.procs"), pid).map_err(told("move a process"))?;
        }
        let cpu = controllers(&root)?;
        let plugins = root.join(PLUGINS);
        make(&plugins).map_err(told("make a group"))?;
        for group in [&root, &plugins] {
            for controller in NEEDED {
                enable(group, controller).map_err(told("enable a controller"))?;
            }
            if cpu {
                enable(group, "cpu").map_err(told("enable a controller"))?;
            }
        }
        clear(&plugins);
        Ok(Cgroups { plugins, cpu })
    }

    /// Whether there is something to claim, without claiming it.
    ///
    /// # Errors
    /// As [`Cgroups::claim`].
    pub fn look() -> Result<PathBuf, String> {
        let root = delegated()?;
        controllers(&root)?;
        let writable =
            rustix::fs::access(root.join("cgroup.subtree_control"), rustix::fs::Access::WRITE_OK);
        match writable {
            Ok(()) => Ok(root),
            Err(error) => Err(format!("{} is not ours ({error}); {DELEGATE}", root.display())),
        }
    }

    /// A new leaf.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn leaf(&self, name: &str, limits: LeafLimits) -> io::Result<Leaf> {
        let path = self.plugins.join(name);
        make(&path)?;
        let leaf = Leaf { path };
        leaf.write("memory.max", &limits.memory.to_string())?;
        // Swap would only put off the end. Absent where the kernel has none.
        let _ = leaf.write("memory.swap.max", "0");
        leaf.write("memory.oom.group", "1")?;
        // The guard kills above the limit, and says so; this holds a bomb until then.
        leaf.write("pids.max", &(limits.processes * 2 + 16).to_string())?;
        if let Some(cpu) = limits.cpu.filter(|_| self.cpu) {
            let quota = (cpu * PERIOD as f64).max(1000.0) as u64;
            leaf.write("cpu.max", &format!("{quota} {PERIOD}"))?;
        }
        Ok(leaf)
    }
}

const DELEGATE: &str = "set Delegate=memory pids cpu and DelegateSubgroup=supervisor in the unit";

fn root_shown() -> String {
    delegated().map_or_else(|why| why, |root| root.display().to_string())
}

/// The cgroup that is ours to divide: our own, or the parent of our part of it.
fn delegated() -> Result<PathBuf, String> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let Some(path) = path.filter(|_| Path::new(MOUNT).join("cgroup.controllers").exists()) else {
        return Err("this machine does not use cgroup v2 (alone); boot it with \
                    systemd.unified_cgroup_hierarchy=1"
            .to_owned());
    };
    let own = Path::new(MOUNT).join(path);
    let root = if own.ends_with(OWN) { own.parent().unwrap_or(&own).to_owned() } else { own };
    if root == Path::new(MOUNT) {
        return Err(format!("this process is in the root cgroup; run it as a unit and {DELEGATE}"));
    }
    if Path::new("/run/systemd/system").exists() && !has_mark(&root) {
        return Err(format!("{} is not delegated; {DELEGATE}", root.display()));
    }
    // Somebody else's processes must not be moved.
    if !pids(&root).unwrap_or_default().iter().all(|pid| *pid == std::process::id().to_string()) {
        return Err(format!("{} holds other processes, too; {DELEGATE}", root.display()));
    }
    Ok(root)
}

/// systemd marks what it delegates.
fn has_mark(root: &Path) -> bool {
    let mut value = [0; 8];
    ["user.delegate", "trusted.delegate"]
        .into_iter()
        .any(|mark| rustix::fs::getxattr(root, mark, &mut value).is_ok())
}

/// True when cpu is among them.
fn controllers(root: &Path) -> Result<bool, String> {
    let text = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    let has = |name: &str| text.split_whitespace().any(|known| known == name);
    match NEEDED.iter().find(|name| !has(name)) {
        Some(name) => Err(format!("the controller {name} is not delegated; {DELEGATE}")),
        None => Ok(has("cpu")),
    }
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

fn pids(group: &Path) -> io::Result<Vec<String>> {
    let text = fs::read_to_string(group.join("cgroup.procs"))?;
    Ok(text.lines().map(str::to_owned).collect())
}

fn enable(group: &Path, controller: &str) -> io::Result<()> {
    fs::write(group.join("cgroup.subtree_control"), format!("+{controller}"))
}

/// Leaves of a daemon before this one.
fn clear(plugins: &Path) {
    for entry in fs::read_dir(plugins).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            let _ = fs::write(path.join("cgroup.kill"), "1");
            let _ = fs::remove_dir(&path);
        }
    }
}

/// One process tree's cgroup. Removed with the last handle, when it is empty.
#[derive(Debug)]
pub struct Leaf {
    path: PathBuf,
}

impl Leaf {
    fn write(&self, file: &str, text: &str) -> io::Result<()> {
        fs::write(self.path.join(file), text)
    }

    fn number(&self, file: &str) -> Option<u64> {
        fs::read_to_string(self.path.join(file)).ok()?.trim().parse().ok()
    }

    /// A line `NAME VALUE` of a file.
    fn field(&self, file: &str, name: &str) -> Option<u64> {
        let text = fs::read_to_string(self.path.join(file)).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// Where a process writes "0" to join.
    ///
    /// # Errors
    /// The leaf is gone.
    pub fn entrance(&self) -> io::Result<OwnedFd> {
        let file = fs::File::options().write(true).open(self.path.join("cgroup.procs"))?;
        Ok(file.into())
    }

    /// Kills everything in it, at once. False where the kernel (before 5.14)
    /// cannot.
    pub fn kill(&self) -> bool {
        self.write("cgroup.kill", "1").is_ok()
    }

    /// The kernel killed in it for its own limit.
    pub fn killed_for_memory(&self) -> bool {
        self.field("memory.events", "oom_kill").is_some_and(|count| count > 0)
            || self.field("memory.events", "oom_group_kill").is_some_and(|count| count > 0)
    }

    /// The most that it used, where the kernel (5.19) tells.
    pub fn peak(&self) -> Option<u64> {
        self.number("memory.peak")
    }

    /// What it uses now: memory without the page cache that could be dropped.
    pub fn usage(&self) -> Option<Usage> {
        let cache = self.field("memory.stat", "inactive_file").unwrap_or(0);
        let tasks = self.number("pids.current")?.saturating_sub(1);
        Some(Usage {
            rss: self.number("memory.current")?.saturating_sub(cache),
            cpu: Duration::from_micros(self.field("cpu.stat", "usage_usec")?),
            tasks,
            processes: tasks,
        })
    }
}

impl Drop for Leaf {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.path);
    }
}
