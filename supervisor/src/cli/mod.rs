//! The command line: what can be typed, and who carries it out.

mod act;
mod allocator;
mod arguments;
mod call;
mod check;
mod client;
mod config;
mod crashes;
mod describe;
mod doctor;
mod events;
mod extensions;
mod failure;
mod kv;
mod list;
mod logs;
mod metrics;
mod new;
mod notify;
mod output;
mod permissions;
mod provenance;
mod reload;
mod serve;
mod signals;
mod status;
mod stderr;
mod systemd;
mod token;
mod trace;
mod workspace;

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory as _, Parser, Subcommand};

use failure::Failure;

/// Runs every plugin in a process of its own, and knows why it died.
#[derive(Parser)]
#[command(
    name = "stockade",
    version,
    about,
    after_help = "Exit codes:\n  0  it worked\n  1  it failed\n  2  the command line or a file is wrong\n  3  the plugin is not running\n  4  there is no such plugin, or the daemon cannot be reached\n\nStart here:\n  stockade serve --plugins ./plugins\n  stockade list"
)]
struct Cli {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: Command,
}

/// Where the daemon is, for every command but serve.
#[derive(Args)]
struct Place {
    /// The daemon's unix socket [default: as configured]
    #[arg(long, global = true, value_name = "PATH", env = "STOCKADE_SOCKET")]
    socket: Option<PathBuf>,
    /// The configuration file [default: /etc/stockade/stockade.toml, or the user's]
    #[arg(long, global = true, value_name = "FILE", env = "STOCKADE_CONFIG")]
    config: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon
    Serve(serve::Serve),
    /// List the plugins
    #[command(visible_alias = "ls")]
    List(list::List),
    /// Show how one or more plugins are
    Status(status::Status),
    /// Show everything about a plugin: tools, limits, set-up
    Describe(describe::Describe),
    /// Call a tool
    Call(call::Call),
    /// Start plugins
    #[command(after_help = "Example:\n  stockade start ocr 'video-*'")]
    Start(act::Act),
    /// Stop plugins; they stay stopped until started
    #[command(after_help = "Example:\n  stockade stop ocr")]
    Stop(act::Act),
    /// Replace plugins' processes by new ones
    #[command(after_help = "Example:\n  stockade restart ocr")]
    Restart(act::Act),
    /// Forget all deaths of plugins and start them
    #[command(after_help = "Example:\n  stockade reset ocr    (after it was EXHAUSTED)")]
    Reset(act::Act),
    /// Let disabled plugins run again
    #[command(after_help = "Example:\n  stockade enable ocr")]
    Enable(act::Act),
    /// Never run plugins, also after a restart of the daemon
    #[command(after_help = "Example:\n  stockade disable ocr")]
    Disable(act::Act),
    /// Read the configuration and the plugin directories again
    Reload(reload::Reload),
    /// Show a plugin's output
    Logs(logs::Logs),
    /// Show what happened
    Events(events::Events),
    /// Show why plugins died
    Crashes(crashes::Crashes),
    /// Show how plugins have fared
    Metrics(metrics::Metrics),
    /// Show what plugins may ask of the host, and what they do ask
    Permissions(permissions::Permissions),
    /// Read and change what plugins have stored
    Kv(kv::Kv),
    /// Show who changed what plugins have stored
    Provenance(provenance::Provenance),
    /// Which plugins are enabled where
    Workspace(workspace::Workspace),
    /// List conditions, effects, event handlers and providers
    Extensions(extensions::Extensions),
    /// Check a plugin's directory without a daemon
    Check(check::Check),
    /// Try what this machine can hold plugins back with
    Doctor(doctor::Doctor),
    /// Run a plugin unconfined and print the grants that it would need
    Trace(trace::Trace),
    /// Make a new plugin's directory
    New(new::New),
    /// Make a token for the port
    Token(token::Token),
    /// Show the configuration
    Config(config::Config),
    /// Print a completion script for a shell
    #[command(
        after_help = "Example:\n  stockade completions bash > /etc/bash_completion.d/stockade"
    )]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Print the version
    #[command(after_help = "Example:\n  stockade version")]
    Version,
}

/// Parses the command line and carries it out.
pub(crate) fn main() -> ExitCode {
    let Cli { place, command } = Cli::parse();
    let done = match command {
        Command::Serve(serve) => serve::run(serve, place),
        Command::Doctor(doctor) => {
            return doctor::run(&doctor, &place).unwrap_or_else(Failure::report);
        }
        Command::Trace(trace) => trace::run(&trace, &place),
        Command::Check(check) => check::run(&check),
        Command::New(new) => new::run(&new),
        Command::Token(token) => token::run(&token),
        Command::Config(show) => config::run(&show, &place),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "stockade", &mut std::io::stdout());
            Ok(())
        }
        Command::Version => {
            output::line(&format!("stockade {}", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
        remote => ask(remote, &place),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// The commands that talk to the daemon.
fn ask(command: Command, place: &Place) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let client = client::Client::connect(place).await?;
        match command {
            Command::List(list) => list::run(list, client).await,
            Command::Status(status) => status::run(status, client).await,
            Command::Describe(describe) => describe::run(describe, client).await,
            Command::Call(call) => call::run(call, client).await,
            Command::Start(act) => act::run(act, act::Action::Start, client).await,
            Command::Stop(act) => act::run(act, act::Action::Stop, client).await,
            Command::Restart(act) => act::run(act, act::Action::Restart, client).await,
            Command::Reset(act) => act::run(act, act::Action::Reset, client).await,
            Command::Enable(act) => act::run(act, act::Action::Enable, client).await,
            Command::Disable(act) => act::run(act, act::Action::Disable, client).await,
            Command::Reload(reload) => reload::run(reload, client).await,
            Command::Logs(logs) => logs::run(logs, client).await,
            Command::Events(events) => events::run(events, client).await,
            Command::Crashes(crashes) => crashes::run(crashes, client).await,
            Command::Metrics(metrics) => metrics::run(metrics, client).await,
            Command::Permissions(permissions) => permissions::run(permissions, client).await,
            Command::Kv(kv) => kv::run(kv, client).await,
            Command::Provenance(provenance) => provenance::run(provenance, client).await,
            Command::Workspace(workspace) => workspace::run(workspace, client).await,
            Command::Extensions(extensions) => extensions::run(extensions, client).await,
            Command::Serve(_)
            | Command::Check(_)
            | Command::Doctor(_)
            | Command::Trace(_)
            | Command::New(_)
            | Command::Token(_)
            | Command::Config(_)
            | Command::Completions { .. }
            | Command::Version => Ok(()),
        }
    })
}
