//! Who may come in by the port, and how far: `[tokens.NAME]`, of which only
//! digests are kept, and what an address for others needs.

use sha2::{Digest as _, Sha256};

use super::Config;
use crate::document::Table;

/// What a caller may do; each role includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Health, logs, events, crash records.
    Read,
    /// Call tools.
    Call,
    /// Start, stop, reload: everything.
    Admin,
}

impl Role {
    /// Their names, as written.
    pub const NAMES: [(&'static str, Role); 3] =
        [("read", Role::Read), ("call", Role::Call), ("admin", Role::Admin)];

    /// `read`, `call` or `admin`.
    pub fn as_str(self) -> &'static str {
        Self::NAMES.iter().find(|(_, role)| *role == self).map_or("", |(name, _)| name)
    }
}

/// One token, by its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Who it is, for the log.
    pub name: String,
    /// What it opens.
    pub role: Role,
    /// Of the token's text.
    pub sha256: [u8; 32],
}

/// The digest that the configuration keeps.
pub fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// As lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Token {
    /// Is this its text? Takes equally long for every wrong one.
    pub fn fits(&self, digest: &[u8; 32]) -> bool {
        let difference =
            self.sha256.iter().zip(digest).fold(0u8, |sum, (ours, theirs)| sum | (ours ^ theirs));
        std::hint::black_box(difference) == 0
    }
}

/// Reads one `[tokens.NAME]`.
pub(super) fn read(name: &str, table: Table<'_>) -> Option<Token> {
    let role = table.choice("role", &Role::NAMES);
    if !table.has("role") {
        table.error("role", format!("`tokens.{name}.role` is missing: read, call or admin"));
    }
    let sha256 = table.text("sha256").and_then(|text| parse(&text));
    if sha256.is_none() {
        let message = format!("`tokens.{name}.sha256` must be 64 hexadecimal digits");
        table.error_with("sha256", message, "make a token with `stockade token NAME --role ROLE`");
    }
    table.finish();
    Some(Token { name: name.to_owned(), role: role?, sha256: sha256? })
}

/// Why the port cannot be opened as it is configured: key and message.
pub(super) fn problems(config: &Config) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    if config.tls_cert.is_some() != config.tls_key.is_some() {
        problems.push(("tls_cert", "`tls_cert` and `tls_key` belong together".to_owned()));
    }
    if config.tls_client_ca.is_some() && config.tls_cert.is_none() {
        let message = "`tls_client_ca` needs `tls_cert` and `tls_key`";
        problems.push(("tls_client_ca", message.to_owned()));
    }
    let Some(address) = config.listen.filter(|address| !address.ip().is_loopback()) else {
        return problems;
    };
    let mut missing = Vec::new();
    if config.tls_cert.is_none() {
        missing.push("TLS (tls_cert and tls_key)");
    }
    if config.tokens.is_empty() && config.tls_client_ca.is_none() {
        missing.push("tokens (`stockade token`) or client certificates (tls_client_ca)");
    }
    if !missing.is_empty() {
        let missing = missing.join(", and ");
        let message =
            format!("`{address}` is not a loopback address: access from outside needs {missing}");
        problems.push(("listen", message));
    }
    problems
}

fn parse(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_read_as_it_is_written() {
        let own = digest("secret");
        assert_eq!(parse(&hex(&own)), Some(own));
        assert_eq!(parse("zz"), None);
        let token = Token { name: "n".into(), role: Role::Call, sha256: own };
        assert!(token.fits(&digest("secret")) && !token.fits(&digest("Secret")));
        assert!(Role::Read < Role::Call && Role::Call < Role::Admin);
    }
}
