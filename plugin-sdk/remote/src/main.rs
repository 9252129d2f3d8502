//! `stockade-remote`: speaks to a plugin that is a service somewhere else. The
//! supervisor starts it, confined as any plugin; what a hostile service answers is
//! read here and not in the daemon.
//!
//! | file | what it is for |
//! |---|---|
//! | `config.rs` | what the supervisor told it |
//! | `bridge.rs` | calls in, requests out, answers back |
//! | `connect.rs` | addresses that may be had, TLS |
//! | `sign.rs` | proves who asks |
//! | `http.rs`, `websocket.rs`, `grpc.rs` | the three protocols |
//! | `offer.rs` | what the service offers, and its answers, checked |

mod bridge;
mod config;
mod connect;
mod grpc;
mod http;
mod offer;
mod sign;
mod websocket;

use std::{process::ExitCode, sync::Arc};

fn main() -> ExitCode {
    if !stockade_plugin_sdk::guest::close_on_exec() {
        eprintln!(
            "stockade-remote: no supervisor on the inherited channels. It is started by \
             `stockade serve` for plugins with [run.remote], not by hand."
        );
        return ExitCode::from(96);
    }
    stockade_plugin_sdk::guest::install_fatal_handler();
    let config = match config::read() {
        Ok(config) => config,
        Err(error) => {
            eprintln!("<3>cannot read what the supervisor told: {error}");
            return ExitCode::FAILURE;
        }
    };
    match stockade_plugin_sdk::guest::serve(Arc::new(bridge::Bridge::new(config))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("<3>cannot serve the calls channel: {error}");
            ExitCode::FAILURE
        }
    }
}
