//! A remote plugin's server: the same service over HTTP, WebSocket or gRPC.
//!
//! ```sh
//! remote-server http 127.0.0.1:8081        # or websocket, or grpc
//! ```
//!
//! `plugin.toml` beside it names the endpoint. With `SECRET` in the environment the
//! server refuses requests that are not signed with it.

mod grpc;
mod http;
mod service;
mod signature;
mod websocket;

use std::{net::SocketAddr, process::ExitCode};

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let parsed = match args.as_slice() {
        [protocol, address] => address.parse::<SocketAddr>().ok().map(|a| (protocol.as_str(), a)),
        _ => None,
    };
    let Some((protocol, address)) = parsed else {
        eprintln!("usage: remote-server http|websocket|grpc ADDRESS:PORT");
        return ExitCode::from(2);
    };
    let served = match protocol {
        "http" => http::serve(address).await,
        "websocket" => websocket::serve(address).await,
        "grpc" => grpc::serve(address).await,
        other => Err(format!("{other}: http, websocket or grpc").into()),
    };
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("remote-server: {error}");
            ExitCode::FAILURE
        }
    }
}
