//! The wire of Stockade: generated code for the `.proto` files beside this
//! crate, and how large its messages may be.
//!
//! | module | package | who serves it |
//! |---|---|---|
//! | [`v1`] | `stockade.v1` | the supervisor, to clients |
//! | [`worker`] | `stockade.worker.v1` | the plugin, to the supervisor (fd 3) |
//! | [`host`] | `stockade.host.v1` | the supervisor, to the plugin (fd 4) |
//! | [`launch`] | `stockade.launch.v1` | messages on the launch socket |
//!
//! [`limits`] bounds what comes over it, [`gate`] looks before anything is decoded.

#![allow(missing_docs, clippy::doc_markdown, unreachable_pub)]
#![allow(rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links)]

/// The public API.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/stockade.v1.rs"));
}

/// Supervisor to plugin.
pub mod worker {
    include!(concat!(env!("OUT_DIR"), "/stockade.worker.v1.rs"));
}

/// Plugin to supervisor.
pub mod host {
    include!(concat!(env!("OUT_DIR"), "/stockade.host.v1.rs"));
}

/// Supervisor to launcher and back.
pub mod launch {
    include!(concat!(env!("OUT_DIR"), "/stockade.launch.v1.rs"));
}

/// Encoded `FileDescriptorSet` of every public package, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Versions of `stockade.worker.v1` that this release speaks, oldest first.
pub const PROTOCOL_VERSIONS: &[u32] = &[1];

/// Descriptors that a plugin inherits.
pub mod fds {
    /// gRPC: the plugin serves `Worker`.
    pub const CALLS: i32 = 3;
    /// gRPC: the plugin calls `Host`.
    pub const HOST: i32 = 4;
    /// Pipe: the fatal-signal handler writes one [`super::notice`] frame.
    pub const NOTICE: i32 = 5;
}

/// Layout of the fatal-signal notice: native-endian `u64` words. Before and
/// after it the pipe may carry text without NUL bytes: stacks that a language's
/// own handler prints.
pub mod notice {
    /// The first word; its first byte is the NUL that ends the text before it.
    pub const MAGIC: u64 = u64::from_ne_bytes(*b"\0notice1");
    /// `magic, signal, si_code, address, syscall, call id, frames, 16 × frame`.
    pub const WORDS: usize = 7 + MAX_FRAMES;
    /// Return addresses that fit.
    pub const MAX_FRAMES: usize = 16;
    /// Bytes of one notice; under PIPE_BUF, so that the write is atomic.
    pub const BYTES: usize = WORDS * 8;
}

pub mod limits;

#[cfg(feature = "grpc")]
pub mod frames;
#[cfg(feature = "grpc")]
pub mod gate;
#[cfg(feature = "grpc")]
pub mod inherited;
#[cfg(feature = "grpc")]
pub mod socket;

#[cfg(feature = "grpc")]
mod gates {
    use crate::{
        gate::{Field, Gate, Gated, Kind},
        limits,
    };
    include!(concat!(env!("OUT_DIR"), "/gates.rs"));
}
