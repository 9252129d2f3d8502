//! `stockade serve`: the daemon.

use std::time::{Duration, Instant};

use clap::Args;
use stockade::{
    Config, Supervisor,
    config::Source,
    gateway::{self, Doors},
};
use tracing::{info, warn};
use tracing_subscriber::EnvFilter;

use super::{
    Place, allocator,
    failure::Failure,
    signals::{self, Asked, Signals},
    stderr::Stderr,
    systemd,
};

/// Run the daemon
#[derive(Args)]
#[command(
    after_help = "Every flag is also a key of stockade.toml and a variable STOCKADE_…; see `stockade config show`.\n\nExamples:\n  stockade serve --plugins ./plugins --dev\n  stockade serve --plugins /srv/plugins --state-dir /srv/state --listen 127.0.0.1:7077"
)]
pub(super) struct Serve {
    /// A folder of plugin directories; may be given several times
    #[arg(long, value_name = "DIR")]
    plugins: Vec<String>,
    /// Where counters, crash records and plugins' data are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<String>,
    /// Address of gRPC and HTTP; `none` = the socket only [default: 127.0.0.1:7077]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// What to log (`info`, `debug`, `stockade=trace`)
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Plugins may ask for no sandbox (profile = "none")
    #[arg(long)]
    allow_unsandboxed: bool,
    /// Plugins run where a layer of their sandbox is missing; health says which
    #[arg(long)]
    allow_degraded: bool,
    /// Development: debug log with plugins' output, and --allow-degraded
    #[arg(long)]
    dev: bool,
}

impl Place {
    /// The flags that are also keys of the configuration.
    pub(super) fn flags(&self) -> Vec<(&'static str, String)> {
        self.socket.iter().map(|path| ("socket", text(path))).collect()
    }
}

fn text(path: &std::path::Path) -> String {
    path.display().to_string()
}

pub(super) fn run(serve: Serve, place: Place) -> Result<(), Failure> {
    let mut flags = place.flags();
    flags.extend(serve.plugins.into_iter().map(|folder| ("plugins", folder)));
    flags.extend(serve.state_dir.map(|folder| ("state_dir", folder)));
    flags.extend(serve.listen.map(|address| ("listen", address)));
    flags.extend(serve.log.map(|filter| ("log", filter)));
    for (key, given) in
        [("allow_unsandboxed", serve.allow_unsandboxed), ("allow_degraded", serve.allow_degraded)]
    {
        flags.extend(given.then(|| (key, "true".to_owned())));
    }
    flags.extend(serve.dev.then(|| ("dev", "true".to_owned())));
    let source = Source { file: place.config, flags };
    let config = source.load().map_err(|problems| Failure::problems(&problems))?;
    // Before there is a second thread.
    allocator::give_back_large_blocks();
    let failed = |error: &std::io::Error| Failure::failed(format!("cannot start: {error}"));
    signals::block().map_err(|error| failed(&error))?;
    let log = Stderr::start().map_err(|error| failed(&error))?;
    start_log(&config, log.clone());
    raise_descriptor_limit();
    // One thread carries all calls: a hand-over between threads costs more
    // than a call. Actors, checks and the store have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let done = runtime.block_on(daemon(config, &log));
    runtime.shutdown_background();
    log.flush(LAST_LINES);
    done
}

/// For the last lines of the log.
const LAST_LINES: Duration = Duration::from_secs(1);

fn start_log(config: &Config, writer: Stderr) {
    // A panic is a line of the log like any other: it waits for nobody.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    // Of the libraries only errors: a line for each odd frame of a client is one that the
    // client writes.
    let filter = match (config.dev, config.log.as_str()) {
        (true, "info") => "stockade=debug,error",
        (false, "info") => "stockade=info,error",
        (_, filter) => filter,
    };
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr()) && !no_color;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colours)
        .with_target(false);
    let _ = match config.log_json {
        true => log.json().try_init(),
        // journald has its own time.
        false if systemd::journal() => log.without_time().try_init(),
        false => log.try_init(),
    };
}

/// Eight descriptors per plugin: as many as the system lets us have.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

async fn daemon(config: Config, log: &Stderr) -> Result<(), Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::failed(error.to_string());
    let shutdown_timeout = config.shutdown_timeout;
    let signals = Signals::start(shutdown_timeout, config.socket.clone(), log.clone());
    let mut signals = signals.map_err(|error| failed(&error))?;
    let supervisor = Supervisor::start_daemon(config).await.map_err(|error| failed(&error))?;
    let doors = match gateway::open(&supervisor).await {
        Ok(doors) => doors,
        Err(error) => {
            supervisor.shutdown().await;
            return Err(failed(&error));
        }
    };
    greet(&supervisor, &doors);
    let service = systemd::Service::start(&supervisor, &doors);
    loop {
        match signals.next().await {
            Asked::End(name) => {
                info!("{name}: stopping every plugin");
                break;
            }
            Asked::Reload => service.reload(),
        }
    }
    // Before the other thread does.
    let deadline = Instant::now() + shutdown_timeout - LAST_LINES.min(shutdown_timeout / 8);
    service.stopping();
    // A second signal, or the end of the time, ends the process from another thread.
    let left = supervisor.shutdown().await;
    // What is still there is killed with its launcher, which sees us go.
    if !left.is_empty() {
        warn!("killed with the daemon, still there at the end: {}", left.join(", "));
    }
    doors.close(deadline).await;
    Ok(())
}

fn greet(supervisor: &Supervisor, doors: &Doors) {
    let config = supervisor.config();
    let folders: Vec<String> = config.plugin_dirs.iter().map(|path| text(path)).collect();
    let address = doors.address.map(|address| format!(", http and gRPC on {address}"));
    info!(
        "stockade {} serves {} plugins of {}: socket {}{}",
        env!("CARGO_PKG_VERSION"),
        supervisor.plugins().len(),
        folders.join(", "),
        doors.socket.display(),
        address.unwrap_or_default()
    );
}
