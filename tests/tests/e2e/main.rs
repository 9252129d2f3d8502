//! What users do, from outside: real processes, real sockets, the command line.

mod calls;
mod cli;
mod documents;
mod doors;
mod embed;
mod gpu;
mod health;
mod http;
mod libraries;
mod manifests;
mod new;
mod rooms;
mod sandbox;
