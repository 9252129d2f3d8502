//! One actor per plugin: event → step → effects. It is the only writer of the
//! plugin's state; everybody else reads [`Snapshot`]s.
//!
//! Control goes through the actor's mailbox; calls go around it, by a lease on
//! the [`Session`] that the snapshot holds.

mod actor;
mod attachment;
mod death;
mod effects;
mod feed;
#[cfg(fuzzing)]
pub mod fuzzing;
mod guard;
mod handshake;
mod journal;
mod launch;
mod launchers;
mod lease;
mod logs;
mod look;
mod mailbox;
mod metrics;
mod notice;
mod peers;
mod pending;
mod ping;
mod pump;
mod rate;
mod readiness;
mod registered;
mod reports;
mod schema;
mod scope;
mod session;
mod snapshot;
mod spawner;
mod together;
mod tool;
mod unstarted;
mod weight;

pub use actor::{Context, Recollection, spawn};
pub use feed::Feed;
pub use guard::Guard;
pub use handshake::{Caller, GpuTokens, HostChannel, HostHandler};
pub use journal::{Event, EventKind, Journal};
pub use look::Sample;
pub(crate) use reports::call_timeout;
pub use together::Totals;

pub use attachment::Attachment;
pub use lease::{Lease, LeaseError, Running};
pub use logs::{LogLine, Logs, Stream};
pub use mailbox::{Command, Handle, MailboxError};
pub use metrics::{
    Failure, Kind as MetricKind, Labels, Metrics, MetricsSnapshot, RecentError, Series, SeriesKind,
    Tries, Unrecorded,
};
pub use peers::{Peers, in_order_of_end};
pub use pending::{Invocation, Reply, Update};
pub use rate::Rate;
pub use registered::{Effect, Provider, Refused, Registered};
pub use schema::{Allowance, Schema, Verdict};
pub use scope::{CallScope, Chain};
pub use session::Session;
pub use snapshot::{LastExit, Recent, Rendered, Snapshot};
pub use spawner::Spawner;
pub use tool::{Binary, Tool, Tools};
