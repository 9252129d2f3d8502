//! What a plugin's author wrote: `plugin.toml` or `manifest.json` → [`Manifest`].
//!
//! A directory is found (`discover`), its file read (`native` or `legacy`), and
//! checked; every problem is reported at once with its place.

mod ceilings;
mod discover;
mod entry_points;
mod legacy;
mod native;
mod ownership;
mod permissions;
mod quota;
mod remote;
mod sandbox;
mod settings;
mod types;

pub use ceilings::Ceilings;
pub use discover::{
    Found, MANIFEST_FILES, Unread, directories, fingerprint, load, parse, python_sources, scan,
    untrusted_now,
};
pub use entry_points::{advertised, libraries};
pub use permissions::{PermissionLists, Permissions, known_permission, risk};
pub use quota::{Quota, read_quota};
pub use remote::{NotANetwork, Offers, Protocol, Remote, RemoteRules};
pub use sandbox::{Allowed, AllowedPaths, Net, Profile, Restrictions, Sandbox};
pub use settings::{read_limits, read_restart, read_timeouts};
pub use types::{
    Activation, Exhausted, GpuNeed, Limits, Manifest, Model, OnError, Queue, Requires,
    RestartPolicy, Run, Timeouts, valid_name,
};
