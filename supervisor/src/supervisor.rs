//! The whole house as one value: started, asked, ended.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError, RwLock, mpsc},
    time::{Duration, Instant},
};

use jiff::Timestamp;
use tokio::{
    runtime::Handle as Runtime,
    sync::{Semaphore, oneshot},
};

use crate::{
    calls::Calls,
    capacity::{Budget, Crew, give_way, limits},
    config::Config,
    document::Bytes,
    gateway::report::health,
    lifecycle::State,
    machine::{self, Cgroups, Gpus, LayerProbe, OomWatch, Tracer},
    manifest::{Ceilings, Restrictions},
    plugin::{Context, EventKind, Guard, Handle, Journal, Spawner, Totals},
    preflight::{Guarded, PythonHost, Surroundings},
    registry::{self, Folders, Registry, Reloaded},
    services::HostServices,
    store::{Keep, Store, StoreError},
};

/// Why a supervisor could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The state directory cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The launcher is not there.
    #[error(
        "the launcher {0} is not there; install stockade-worker beside stockade or set `worker`"
    )]
    Worker(PathBuf),
    /// The machine refuses threads.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
}

/// A plugin that did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// There is none of this name.
    #[error("Plugin {0} not found")]
    NotFound(String),
    /// It is as the text says.
    #[error("Plugin {name} is {state}: {reason}")]
    NotServing {
        /// Its name.
        name: String,
        /// Its state.
        state: State,
        /// Why.
        reason: String,
    },
}

/// Every plugin of some folders, supervised. Cheap to clone; the plugins end
/// with the last clone, or with [`Supervisor::shutdown`].
#[derive(Clone, Debug)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: RwLock<Arc<Config>>,
    /// With which it was started: what a reload cannot change.
    first: Arc<Config>,
    config_problems: Mutex<Vec<String>>,
    store: Arc<Store>,
    journal: Arc<Journal>,
    registry: Registry,
    calls: Calls,
    services: HostServices,
    budget: Budget,
    guard: Guard,
    started: Timestamp,
    /// Ends the control thread when dropped.
    _control: oneshot::Sender<()>,
    /// Ends the thread that reads output when dropped.
    _output: oneshot::Sender<()>,
}

impl Supervisor {
    /// Opens the state directory, reads the plugin folders and starts what is
    /// to be started; returns when every folder has been read. Calls are
    /// carried on the runtime that this is called on (a current-thread one is
    /// fastest); actors have a thread of their own.
    ///
    /// # Errors
    /// The state directory is not ours to use, the launcher is not there, or
    /// the machine refuses threads.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::launch(config, false, None).await
    }

    /// As [`Supervisor::start`], with every plugin unconfined and traced: what it
    /// touches is told to the tracer.
    ///
    /// # Errors
    /// As [`Supervisor::start`].
    pub async fn start_traced(config: Config, tracer: Tracer) -> Result<Self, StartError> {
        Self::launch(config, false, Some(tracer)).await
    }

    /// As [`Supervisor::start`], for a process that is nothing but this
    /// supervisor: it becomes undumpable and the reaper of every orphan.
    ///
    /// # Errors
    /// As [`Supervisor::start`].
    pub async fn start_daemon(config: Config) -> Result<Self, StartError> {
        use rustix::process::{DumpableBehavior, set_child_subreaper, set_dumpable_behavior};
        // Nobody of the same user reads our memory or takes our descriptors.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
        let _ = set_child_subreaper(Some(rustix::process::getpid()));
        Self::launch(config, true, None).await
    }

    async fn launch(
        config: Config,
        reaps_orphans: bool,
        tracer: Option<Tracer>,
    ) -> Result<Self, StartError> {
        if !config.worker.exists() {
            return Err(StartError::Worker(config.worker.clone()));
        }
        let keep = Keep {
            crash_records: config.crash_records,
            provenance_records: config.provenance_records,
        };
        let crew = Crew::computing()?;
        let budget = Budget::new(config.max_buffered);
        let store = Store::open(&config.state_dir, keep)?;
        let journal = Arc::new(Journal::default());
        let services = HostServices::new(store.data.clone(), journal.clone(), budget.of_events());
        let (output_end, output) = output_thread()?;
        let guard = Guard::start()?;
        guard.allow(Self::totals(&config));
        let context = Context {
            store: store.clone(),
            spawner: Spawner::start()?,
            guard: guard.clone(),
            journal: journal.clone(),
            surroundings: Surroundings {
                state_dir: config.state_dir.clone(),
                gpus: Gpus::new(config.nvml.clone()),
                digests: Arc::default(),
                python: PythonHost::from(&config),
                library_host: config.library_host.clone(),
                remote_host: config.remote_host.clone(),
                guarded: Guarded::from(&config),
                tracer,
                layers: Arc::new(LayerProbe::new(
                    config.worker.clone(),
                    config.plugin_uids.clone(),
                )),
            },
            cgroups: claim_cgroups(reaps_orphans),
            oom: Arc::new(OomWatch::default()),
            peers: Default::default(),
            starts: Arc::new(Semaphore::new(config.max_starting)),
            host: Arc::new(services.clone()),
            gpu_tokens: Default::default(),
            data: Runtime::current(),
            output,
            crew: crew.clone(),
            budget: budget.clone(),
            render: |snapshot| drop(health::portrait(snapshot)),
            worker: config.worker.clone(),
            max_result: config.max_result,
            log_lines: config.log_lines,
            reaps_orphans,
            epoch: Instant::now(),
        };
        let (control, registry) = control_thread(context, folders(&config), config.watch)?;
        let calls = Calls::new(registry.watch(), config.max_request, store.data.clone(), crew);
        services.open(calls.clone());
        let mut scanned = registry.watch();
        let _ = scanned.wait_for(|list| list.scanned).await;
        let config = Arc::new(config);
        let supervisor = Supervisor {
            inner: Arc::new(Inner {
                config: RwLock::new(config.clone()),
                first: config,
                config_problems: Mutex::default(),
                store,
                journal,
                registry,
                calls,
                services,
                budget,
                guard,
                started: Timestamp::now(),
                _control: control,
                _output: output_end,
            }),
        };
        let recovered = supervisor.store().database.recovered();
        tokio::spawn(registry::obey(recovered, supervisor.registry().watch()));
        supervisor.unreachable().for_each(|problem| tracing::warn!("{problem}"));
        Ok(supervisor)
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        self.inner.config.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes calls.
    pub fn calls(&self) -> &Calls {
        &self.inner.calls
    }

    /// What plugins and servers have of each other.
    pub fn services(&self) -> &HostServices {
        &self.inner.services
    }

    /// The list of plugins.
    pub fn registry(&self) -> &Registry {
        &self.inner.registry
    }

    /// What happened.
    pub fn journal(&self) -> &Arc<Journal> {
        &self.inner.journal
    }

    /// Crash records, counters.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Bytes that are held for others.
    pub fn budget(&self) -> &Budget {
        &self.inner.budget
    }

    /// When it was started.
    pub fn started(&self) -> Timestamp {
        self.inner.started
    }

    /// One plugin.
    pub fn plugin(&self, name: &str) -> Option<Handle> {
        self.inner.registry.snapshot().get(name).cloned()
    }

    /// All plugins by name.
    pub fn plugins(&self) -> BTreeMap<Arc<str>, Handle> {
        self.inner.registry.snapshot().plugins.clone()
    }

    /// Waits until a plugin takes calls.
    ///
    /// # Errors
    /// It is not there, it cannot run, or the time is over.
    pub async fn ready(&self, name: &str, timeout: Duration) -> Result<(), NotReady> {
        let handle = self.plugin(name).ok_or_else(|| NotReady::NotFound(name.to_owned()))?;
        let mut snapshots = handle.watch();
        let settled = snapshots.wait_for(|snapshot| {
            snapshot.session.is_some() || snapshot.resting == State::Unavailable
        });
        let _ = tokio::time::timeout(timeout, settled).await;
        let snapshot = handle.snapshot();
        if snapshot.session.is_some() {
            return Ok(());
        }
        let reason = snapshot.cause.as_ref().map(|cause| cause.reason.clone());
        Err(NotReady::NotServing {
            name: name.to_owned(),
            state: snapshot.state(),
            reason: reason.unwrap_or_else(|| snapshot.substate.to_string()),
        })
    }

    /// Reads every plugin folder again.
    pub async fn reload(&self) -> Reloaded {
        self.inner.registry.reload(None).await
    }

    /// Reads the configuration and every plugin folder again. A configuration
    /// with problems is not taken: the old one stays.
    pub async fn reload_all(&self) -> Reloaded {
        let config = self.config();
        let Some(source) = config.source.clone() else { return self.reload().await };
        // Away from the thread of all calls: a disk may not answer.
        let Ok(loaded) = tokio::task::spawn_blocking(move || source.load()).await else {
            return self.reload().await;
        };
        match loaded {
            Ok(fresh) => self.reconfigure(fresh).await,
            Err(problems) => {
                let mut reloaded = self.reload().await;
                for problem in &problems {
                    tracing::warn!("configuration not taken: {problem}");
                    let text = format!("configuration not taken: {problem}");
                    self.inner.journal.say("", EventKind::Reload, text.clone());
                    reloaded.problems.push(text);
                }
                *self.inner.config_problems.lock().unwrap_or_else(PoisonError::into_inner) =
                    problems
                        .iter()
                        .map(|problem| format!("configuration not taken: {problem}"))
                        .collect();
                reloaded
            }
        }
    }

    /// What an operator should know of: folders that cannot be read, damaged
    /// files, a configuration that was not taken, a disk that is full.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = self.inner.registry.snapshot().problems.clone();
        problems.extend(self.inner.store.problems.iter().cloned());
        problems.extend(self.inner.store.database.damaged());
        problems.extend(self.inner.store.database.problem());
        problems.extend(self.inner.store.data.problem());
        problems.extend(self.unreachable());
        let config = self.inner.config_problems.lock().unwrap_or_else(PoisonError::into_inner);
        problems.extend(config.iter().cloned());
        problems
    }

    /// Bounds that another one keeps anybody from reaching.
    fn unreachable(&self) -> impl Iterator<Item = String> {
        let (first, share) = (&self.inner.first, self.inner.budget.share_of_connection());
        let bounds = [("max_request", first.max_request), ("max_result", first.max_result)];
        let beyond = bounds.into_iter().filter(move |(_, bytes)| *bytes > share);
        beyond.map(move |(key, bytes)| {
            format!(
                "{key} ({}) cannot be reached: one connection may hold a quarter of \
                 max_buffered ({}). Raise max_buffered, or lower {key}.",
                Bytes(bytes as u64),
                Bytes(share as u64)
            )
        })
    }

    /// What all plugins may use together: a quarter of the machine is nobody's.
    pub fn totals(config: &Config) -> Totals {
        let Ceilings { memory_total, processes_total, .. } = config.ceilings;
        let most = |machine: u64| match machine / 4 * 3 {
            0 => u64::MAX,
            most => most,
        };
        Totals {
            memory: memory_total.unwrap_or_else(|| most(machine::host_usage().memory_total)),
            processes: processes_total.unwrap_or_else(|| most(machine::tasks_max())),
        }
    }

    /// Resolves when what operators have wanted so far is on the disk.
    ///
    /// # Errors
    /// It is not, and why that matters.
    pub async fn noted(&self, plugin: &str) -> Result<(), String> {
        if self.inner.store.database.noted().await {
            return Ok(());
        }
        let state = self.inner.first.state_dir.display();
        Err(format!(
            "Plugin '{plugin}' does what you asked for, but {state} could not be written: it may \
             be forgotten when the daemon restarts. `stockade status` says what is wrong."
        ))
    }

    /// Takes over what can be changed while running: the folders and what is
    /// laid over single plugins. The rest keeps its value until a restart.
    pub async fn reconfigure(&self, config: Config) -> Reloaded {
        let folders = folders(&config);
        let until_restart = until_restart(&self.inner.first, &config);
        self.inner.guard.allow(Self::totals(&config));
        *self.inner.config.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
        self.inner.config_problems.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut reloaded = self.inner.registry.reload(Some(folders)).await;
        reloaded.problems.extend(until_restart);
        reloaded
    }

    /// Stops every plugin, within `shutdown_timeout`, of which a part is left for the last
    /// answers and for the disk. What is still there then is killed with this process; its
    /// names are returned.
    pub async fn shutdown(&self) -> Vec<String> {
        let timeout = self.inner.first.shutdown_timeout;
        let left = self.inner.registry.shutdown(timeout - limits::FLUSH.min(timeout / 4)).await;
        let store = self.inner.store.clone();
        let _ = tokio::task::spawn_blocking(move || store.database.flush()).await;
        left
    }
}

fn folders(config: &Config) -> Folders {
    Folders {
        folders: config.plugin_dirs.clone(),
        python: config.entry_points.then(|| config.python.clone()),
        restrictions: restrictions(config),
        permissions: config.permissions.clone(),
        ceilings: config.ceilings,
        quota: config.quota,
        remote: config.remote.clone(),
        overlays: config.plugins.clone(),
    }
}

/// Only the daemon's own cgroup may be divided.
fn claim_cgroups(daemon: bool) -> Option<Cgroups> {
    let claimed = daemon.then(Cgroups::claim)?;
    match &claimed {
        Ok(_) => {
            tracing::info!("cgroups: memory, processes and processors are limited by the kernel")
        }
        Err(why) => tracing::info!("no cgroups ({why}): the guard limits"),
    }
    claimed.ok()
}

/// `[sandbox]`, under the two switches that flags and the environment can set.
fn restrictions(config: &Config) -> Restrictions {
    let mut restrictions = config.sandbox.clone();
    let degraded = config.allow_degraded || config.dev;
    restrictions.allow_unsandboxed.get_or_insert(config.allow_unsandboxed);
    restrictions.allow_degraded.get_or_insert(degraded);
    restrictions
}

/// What is not as it was at the start and is taken at the next one only, as a problem of
/// the reload.
fn until_restart(first: &Config, new: &Config) -> Option<String> {
    macro_rules! changed {
        ($($key:ident)*) => {
            [$((stringify!($key), first.$key != new.$key)),*]
        };
    }
    let changed = changed! {
        state_dir listen socket worker allowed_hosts dev log log_json max_starting
        shutdown_timeout max_request max_result max_buffered max_connections log_lines
        crash_records provenance_records watch nvml python python_host library_host remote_host
        plugin_uids tls_cert tls_key tls_client_ca tokens
    };
    let names: Vec<&str> =
        changed.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name).collect();
    (!names.is_empty()).then(|| {
        format!("{}: changed in stockade.toml, in force after a restart only", names.join(", "))
    })
}

/// The thread that reads what plugins print: however much that is, nobody else waits
/// for it.
fn output_thread() -> io::Result<(oneshot::Sender<()>, Runtime)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (end, ended) = oneshot::channel::<()>();
    std::thread::Builder::new().name("output".into()).spawn(move || {
        // Plugins choose how much it has to do.
        give_way(0);
        let _ = runtime.block_on(ended);
    })?;
    Ok((end, handle))
}

/// The thread of all actors: lifecycle work never waits for a call, nor a call
/// for it.
fn control_thread(
    context: Context,
    folders: Folders,
    watch: bool,
) -> io::Result<(oneshot::Sender<()>, Registry)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (end, ended) = oneshot::channel::<()>();
    let (started, start) = mpsc::channel();
    std::thread::Builder::new().name("control".into()).spawn(move || {
        runtime.block_on(async move {
            let _ = started.send(registry::start(context, folders, watch));
            let _ = ended.await;
        });
        // Checks that hang in the kernel must not hold up the end.
        runtime.shutdown_background();
    })?;
    let registry = start.recv().map_err(|_| io::Error::other("the control thread ended"))?;
    Ok((end, registry))
}
