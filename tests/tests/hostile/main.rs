//! Nothing that a plugin or a client chooses decides how long or how large the
//! daemon's work is. Each test is an attack, made while somebody measures health,
//! another plugin's call and restart, and the daemon's memory.

mod calls;
mod connections;
mod disks;
mod doors;
mod ending;
mod frames;
mod host;
mod machine;
mod results;
mod scene;
mod schemas;
mod texts;
