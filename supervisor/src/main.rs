//! `stockade`: the daemon and its operators' command.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
