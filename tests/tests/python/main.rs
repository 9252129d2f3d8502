//! Python plugins, from outside: real interpreters, real packages, real deaths.

mod calls;
mod clients;
mod confined;
mod deaths;
mod examples;
mod forms;
mod hosting;
mod packages;
mod start;
mod versions;
