//! The doors to the outside: one port and one unix socket, each with gRPC and
//! HTTP. Requests come in, become calls or questions, and go out as answers;
//! nothing is decided here.

mod door;
mod grpc;
pub mod health;
mod http;
pub mod sandbox;
mod server;
mod status;
mod tls;

pub use server::{Doors, open};
