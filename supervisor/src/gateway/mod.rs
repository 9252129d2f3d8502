//! The doors to the outside: one port and one unix socket, each with gRPC and
//! HTTP. Requests come in, become calls or questions, and go out as answers;
//! nothing is decided here.

mod answer;
mod body;
mod connection;
mod door;
mod follow;
mod grpc;
mod hangup;
mod house;
mod http;
mod questions;
mod refusal;
pub mod report;
mod server;
mod status;
mod texts;
mod tls;
mod traffic;
mod unread;
mod wanted;
mod watch;
mod whole;

pub use server::{Doors, Within, open};
