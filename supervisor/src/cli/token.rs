//! `stockade token`

use clap::Args;
use stockade::config::{Role, token_digest, token_hex};

use super::{failure::Failure, output};

/// Make a token for the port: the text for the client, the digest for the daemon
#[derive(Args)]
#[command(
    after_help = "Example:\n  stockade token grafana --role read\n\nThe client sends it as `Authorization: Bearer TOKEN`. It is shown once; the\nconfiguration keeps its digest."
)]
pub(super) struct Token {
    /// Who it is for: the name in the log
    name: String,
    /// What it opens: read (health), call (tools too), admin (everything)
    #[arg(long, value_parser = ["read", "call", "admin"])]
    role: String,
}

pub(super) fn run(token: &Token) -> Result<(), Failure> {
    let valid = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if token.name.is_empty() || !token.name.chars().all(valid) {
        let text = format!("{:?} is not a name: use letters, digits, `-` and `_`", token.name);
        return Err(Failure::usage(text));
    }
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut random| std::io::Read::read_exact(&mut random, &mut bytes))
        .map_err(|error| Failure::failed(format!("cannot read /dev/urandom: {error}")))?;
    let text = format!("sk_{}", token_hex(&bytes));
    let role =
        Role::NAMES.iter().find(|(name, _)| *name == token.role).map_or("", |(name, _)| name);
    output::line(&format!(
        "{text}\n\n# for stockade.toml:\n[tokens.{}]\nrole = \"{role}\"\nsha256 = \"{}\"",
        token.name,
        token_hex(&token_digest(&text))
    ));
    Ok(())
}
