//! `stockade-library`: hosts the plugin of one shared library. The supervisor
//! starts it, confined as any plugin, and names the library in Init.

mod guest;
mod library;
mod open_call;

use std::{process::ExitCode, sync::Arc};

fn main() -> ExitCode {
    if !stockade_plugin_sdk::guest::close_on_exec() {
        eprintln!(
            "stockade-library: no supervisor on the inherited channels. It is started by \
             `stockade serve` for plugins with run.library, not by hand."
        );
        return ExitCode::from(96);
    }
    stockade_plugin_sdk::guest::install_fatal_handler();
    match stockade_plugin_sdk::guest::serve(Arc::new(guest::LibraryPlugin::default())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>cannot serve the calls channel: {error}");
            ExitCode::FAILURE
        }
    }
}
