//! The rogue: a plugin that misbehaves on request. What it does while starting
//! is said by its arguments (`--at-start`, `--raw`), what it does in a call by
//! the tool's name.

mod attack;
mod bombs;
mod crumbs;
mod floods;
mod forge;
mod hosting;
mod raw;
mod start;
mod tools;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(mode) = value(&args, "--before") {
        start::misbehave(&mode);
    }
    match value(&args, "--raw") {
        Some(mode) => raw::serve(&mode),
        None => stockade_plugin_sdk::main::<tools::Rogue>(),
    }
}

/// `--flag value`
fn value(args: &[String], flag: &str) -> Option<String> {
    let at = args.iter().position(|arg| arg == flag)?;
    args.get(at + 1).cloned()
}
