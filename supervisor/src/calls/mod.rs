//! The one path of every call, whoever makes it: admission → lease → the
//! plugin, racing deadline, cancellation and death → [`Outcome`].

mod account;
mod admission;
mod arguments;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod outcome;
mod reply;
mod run;
mod waiting;

pub use error::CallError;
pub use outcome::{Outcome, Success};
pub use run::{CallEvent, Calls, ToolCall};
