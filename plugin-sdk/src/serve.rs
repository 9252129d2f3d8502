//! The life of a plugin process: adopt the channels, serve, exit with them.

use std::process::exit;

use crate::{Plugin, adopt, fatal, guest, native::Native};

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
    // Tool threads may still run; nobody waits for them any more.
    exit(match guest::serve(Native::<P>::new()) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cannot serve the calls channel: {error}");
            1
        }
    });
}
