//! What plugins and servers have of each other besides tools: permissions, data,
//! events, extensions, workspaces, providers, observability.

mod actor;
mod calls;
mod durability;
mod events;
mod extensions;
mod forgery;
mod kv;
mod observability;
mod order;
mod permissions;
mod providers;
mod remote;
mod state;
mod workspaces;
