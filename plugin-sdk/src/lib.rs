//! Write a Stockade plugin in Rust.
//!
//! This is a whole plugin. It runs in a process of its own; if it panics, one
//! call fails; if it aborts, it is restarted and the caller is told why.
//!
//! ```no_run
//! use stockade_plugin_sdk::prelude::*;
//!
//! #[derive(Deserialize, JsonSchema)]
//! struct Greet { name: String }
//!
//! struct Hello;
//!
//! impl Plugin for Hello {
//!     fn init(_: &InitContext) -> Result<Self> { Ok(Hello) }
//!     fn tools(tools: &mut Tools<Self>) {
//!         tools.add("greet", "Says hello to somebody", |_, args: Greet, _| {
//!             Ok(format!("Hello, {}!", args.name))
//!         });
//!     }
//! }
//!
//! fn main() { stockade_plugin_sdk::main::<Hello>() }
//! ```
//!
//! Beside the binary goes a `plugin.toml`:
//!
//! ```toml
//! name = "hello"
//! [run]
//! binary = "bin/hello"
//! ```
//!
//! `stockade new hello` makes both, with a test. Then
//! `stockade call hello greet --arg name=Ada` prints `"Hello, Ada!"`.
//!
//! # What a tool gets and gives
//!
//! - **Arguments** are any `Deserialize + JsonSchema` type. The supervisor
//!   checks them against the derived schema before the plugin sees them.
//! - **Binary arguments** are fields of type [`Blob`]; they arrive as bytes,
//!   never as base64. `Vec<Blob>` takes several of one name.
//! - **Results** are any `Serialize + JsonSchema` type; a [`Blob`] anywhere in
//!   it becomes an attachment.
//! - **Streams**: [`Tools::stream`] tools send items with [`Context::emit`],
//!   which waits when the client reads slowly.
//! - **The context** knows the deadline ([`Context::deadline`]), cancellation
//!   ([`Context::is_cancelled`]), takes progress ([`Context::progress`]) and
//!   log lines ([`Context::log`]).
//! - **The host** ([`host`]): [`Context::kv`], [`Context::entity`],
//!   [`Context::events`], [`Context::metrics`], [`Context::plugin`] and
//!   [`Context::provider`], each behind a permission of `[permissions]`.
//! - **Extensions**: [`Tools::condition`], [`Tools::effect`],
//!   [`Tools::simulation_config`], [`Tools::on_event`], [`Tools::provider`].
//! - **Errors** carry a type and a message: `Err(Error::new("BadImage", "…"))`
//!   reaches the caller as `error_type` and `error`.
//!
//! # Testing
//!
//! [`testing::Harness`] runs a plugin in memory, without a supervisor:
//!
//! ```
//! # use stockade_plugin_sdk::prelude::*;
//! # #[derive(Deserialize, JsonSchema)] struct Greet { name: String }
//! # struct Hello;
//! # impl Plugin for Hello {
//! #     fn init(_: &InitContext) -> Result<Self> { Ok(Hello) }
//! #     fn tools(tools: &mut Tools<Self>) {
//! #         tools.add("greet", "Says hello", |_, args: Greet, _| Ok(format!("Hello, {}!", args.name)));
//! #     }
//! # }
//! use stockade_plugin_sdk::testing::Harness;
//!
//! let hello = Harness::<Hello>::start().unwrap();
//! let outcome = hello.call("greet").arg("name", "Ada").run().unwrap();
//! assert_eq!(outcome.result, "Hello, Ada!");
//! ```

mod adopt;
mod args;
mod blob;
mod context;
mod error;
mod extensions;
mod fatal;
pub mod guest;
pub mod host;
mod log;
mod native;
mod plugin;
mod pool;
mod serve;
pub mod testing;
mod tools;
mod worker;

pub use blob::Blob;
pub use context::Context;
pub use error::{Error, Result};
pub use extensions::Asking;
pub use log::Level;
pub use plugin::{InitContext, Plugin};
pub use serve::main;
pub use tools::Tools;

// What the derive macros of a plugin refer to.
pub use bytes::Bytes;
pub use schemars;
pub use serde;
pub use serde_json;

/// Everything that a plugin's source file needs.
pub mod prelude {
    pub use schemars::JsonSchema;
    pub use serde::{Deserialize, Serialize};

    pub use crate::host::Event;
    pub use crate::{
        Asking, Blob, Bytes, Context, Error, InitContext, Level, Plugin, Result, Tools,
    };
}
