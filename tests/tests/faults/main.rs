//! What Stockade must survive: each fault with the cause that is told, its
//! reason, a bystander that noticed nothing, and nothing left behind.

mod exit;
mod hang;
mod policy;
mod protocol;
mod resources;
mod scene;
mod supervisor;
