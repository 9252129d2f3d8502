//! Stockade runs every plugin in a process of its own, so that no plugin can
//! take the server down, and tells exactly what each one is doing and why it
//! died. This crate is the supervisor: the daemon's library, and one to embed.
//!
//! # Embedding
//!
//! The same calls as through the daemon, with one process hop instead of two:
//!
//! ```no_run
//! use stockade::{Config, Supervisor, ToolCall};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let config = Config::new("plugins", "state");
//! let supervisor = Supervisor::start(config).await?;
//! supervisor.ready("image", std::time::Duration::from_secs(10)).await?;
//!
//! let call = ToolCall {
//!     plugin: "image".into(),
//!     tool: "describe".into(),
//!     args: "{}".into(),
//!     ..ToolCall::default()
//! };
//! let outcome = supervisor.calls().run(call).await;
//! match outcome.result {
//!     Ok(success) => println!("{}", String::from_utf8_lossy(&success.result)),
//!     Err(error) => println!("{}: {error}", error.error_type()),
//! }
//! supervisor.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! `supervisor/examples/embed.rs` is a whole server.
//!
//! # The rooms
//!
//! Imports run one way, down this list; `tests/tests/e2e/rooms.rs` checks it.
//!
//! | room | what it is for |
//! |---|---|
//! | [`gateway`] | gRPC, HTTP: requests in, outcomes out, one table of statuses |
//! | [`services`] | what plugins and servers have of each other besides tools |
//! | [`calls`] | the one path of every call |
//! | [`registry`] | all plugins: name → handle |
//! | [`plugin`] | one actor per plugin, its processes and sessions |
//! | [`lifecycle`] | pure: state, event, effect, policy, causes of death |
//! | [`preflight`] | manifest + machine → launch plan, or why not |
//! | [`store`] | what survives the daemon |
//! | [`manifest`], [`machine`], [`config`] | what people wrote, what there is |
//! | [`document`] | text files read into checked values |
//! | [`capacity`] | bytes and threads for what outsiders choose, and its bounds |
//!
//! # The three journeys
//!
//! - **Start**: found directory → [`manifest::Manifest`] →
//!   [`preflight::LaunchPlan`] → launcher → handshake → [`plugin::Session`].
//! - **Call**: request → [`ToolCall`] → admission → lease → plugin →
//!   [`Outcome`].
//! - **Death**: the kernel's word, the notice, our own intent →
//!   [`lifecycle::infer`] → the session closes with the cause → crash record →
//!   restart or not → health.

pub mod calls;
pub mod capacity;
pub mod config;
pub mod document;
pub mod gateway;
pub mod lifecycle;
pub mod machine;
pub mod manifest;
pub mod plugin;
pub mod preflight;
pub mod registry;
pub mod services;
pub mod store;
mod supervisor;

pub use calls::{CallError, Outcome, Success, ToolCall};
pub use config::Config;
pub use supervisor::{NotReady, StartError, Supervisor};
