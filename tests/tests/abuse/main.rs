//! Abuse: what a hostile plugin tries. Each attempt succeeds without a sandbox
//! (the control) and is refused with an exact error under each profile, with the
//! daemon as root and as a user. The numbers in the tests' comments are those of
//! docs/security.md.

mod files;
mod grants;
mod kernel;
mod memory;
mod network;
mod prison;
mod processes;
