//! Python plugins, from outside: real interpreters, real packages, real deaths.

mod calls;
mod deaths;
mod forms;
mod packages;
mod start;
