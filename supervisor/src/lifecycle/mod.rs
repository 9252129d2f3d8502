//! The lifecycle of one instance: pure. No I/O, no clock, no tokio, nothing of
//! ours imported. [`Machine::step`] takes an event and the time and returns
//! effects; the plugin actor carries them out.
//!
//! ```text
//!            start            passed          token         hello+init
//!  (idle) ─────────► Checking ──────► Queued ──────► Starting ──────► Serving
//!    ▲                  │ missing                       │ dies, hangs    │ │ stop
//!    │                  ▼                               ▼                │ ▼
//!    │             Unavailable ◄──── rejected ────── Killing ◄───────────┘ Draining
//!    │                                                  │ tree gone        │
//!    │ stop                                             ▼                  ▼
//!    └───────────────────── Backoff / Exhausted ◄── policy ◄────────── Stopping
//! ```
//!
//! A notice of death moves Serving to Dying; a large process's successor may
//! start while the kernel still tears it down (the *predecessor*).

mod cause;
mod down;
mod evidence;
mod machine;
mod policy;
#[cfg(test)]
mod property;
mod state;
#[cfg(test)]
mod tests;
mod up;
mod wanted;

pub use cause::{Cause, CauseCode, Class, signal_name};
pub use evidence::{Evidence, ExitStatus, KillFacts, crash_reason, infer, oom_reason};

pub use machine::{Effect, Event, Machine, Slot};
pub use policy::{Policy, Verdict, Wanted};
pub use state::{Phase, State, Substate, Unavailability};
