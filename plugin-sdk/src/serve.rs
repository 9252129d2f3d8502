//! The life of a plugin process: adopt the channels, serve, exit with them.

use std::process::exit;

use stockade_proto::{inherited, worker::worker_server::WorkerServer};

use crate::{Plugin, adopt, fatal, host::Host, worker::Worker};

/// Runs the plugin `P` until the supervisor asks it to stop or is gone. The
/// whole `main` of a plugin.
pub fn main<P: Plugin>() {
    if !adopt::close_on_exec() {
        let name = std::env::args().next().unwrap_or_default();
        eprintln!(
            "{name} is a Stockade plugin. It is started by the daemon, not by hand:\n\n    \
             stockade serve --plugins DIR    (DIR holds one directory per plugin)\n    \
             stockade check DIRECTORY        (checks this plugin's plugin.toml)"
        );
        exit(2);
    }
    fatal::install();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cannot start the runtime: {error}");
            exit(1);
        }
    };
    let ended = runtime.block_on(serve::<P>());
    // Tool threads may still run; nobody waits for them any more.
    exit(match ended {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cannot serve the calls channel: {error}");
            1
        }
    });
}

async fn serve<P: Plugin>() -> std::io::Result<()> {
    let calls = adopt::calls()?;
    let (worker, stopped) = Worker::<P>::new(Some(Host::new(tokio::runtime::Handle::current())));
    let service = WorkerServer::new(worker)
        .max_decoding_message_size(inherited::MAX_MESSAGE)
        .max_encoding_message_size(inherited::MAX_MESSAGE);
    tokio::select! {
        // The supervisor is gone, or it closed the channel.
        _ = inherited::serve(calls, service) => {}
        // The shutdown hook has run; let its answer reach the supervisor.
        Ok(()) = stopped => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
    }
    Ok(())
}
