//! How a command ends when it does not work: a sentence and an exit code.

use std::process::ExitCode;

use stockade::document::Problem;
use tonic::{Code, Status};

use super::output;

/// What went wrong.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// It failed (1).
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Failure { code: 1, message: message.into() }
    }

    /// The command line or a file is wrong (2).
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Failure { code: 2, message: message.into() }
    }

    /// The plugin is not running (3).
    pub(super) fn not_running(message: impl Into<String>) -> Self {
        Failure { code: 3, message: message.into() }
    }

    /// No such plugin, or no daemon (4).
    pub(super) fn unknown(message: impl Into<String>) -> Self {
        Failure { code: 4, message: message.into() }
    }

    /// Every problem of a configuration, one per line.
    pub(super) fn problems(problems: &[Problem]) -> Self {
        let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
        Failure::usage(lines.join("\n"))
    }

    /// Prints it.
    pub(super) fn report(self) -> ExitCode {
        if !self.message.is_empty() {
            eprintln!("stockade: {}", output::harmless(&self.message));
        }
        ExitCode::from(self.code)
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        let code = match status.code() {
            Code::NotFound => 4,
            Code::Unavailable => 3,
            Code::InvalidArgument => 2,
            _ => 1,
        };
        Failure { code, message: status.message().to_owned() }
    }
}
