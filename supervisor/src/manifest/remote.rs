//! `[run.remote]`: a plugin that is a service somewhere else.

use std::{path::PathBuf, time::Duration};

use http::Uri;
use serde::Serialize;

use crate::document::Table;

/// How a remote plugin is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// `stockade.worker.v1`.
    Grpc,
    /// JSON by POST.
    Http,
    /// JSON text frames.
    Websocket,
}

impl Protocol {
    /// As in the manifest.
    pub const NAMES: [(&'static str, Protocol); 3] =
        [("grpc", Protocol::Grpc), ("http", Protocol::Http), ("websocket", Protocol::Websocket)];

    fn schemes(self) -> &'static [&'static str] {
        match self {
            Protocol::Grpc | Protocol::Http => &["https", "http"],
            Protocol::Websocket => &["wss", "ws"],
        }
    }
}

/// A plugin that is a service somewhere else.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remote {
    /// Its URL.
    pub endpoint: String,
    /// How it is spoken to.
    pub protocol: Protocol,
    /// Of one request.
    pub timeout: Duration,
    /// Requests per second at most.
    pub rate: Option<f64>,
    /// Context keys that it gets besides those of its permissions.
    pub context: Vec<String>,
    /// Names of what it offers, if it does not say so itself (`describe`).
    pub offers: Offers,
    /// Private addresses that it may have: numbers, or networks (`10.0.0.0/8`).
    /// The operator's.
    pub allow: Vec<String>,
    /// Signs the requests that are sent to it. The operator's.
    #[serde(skip)]
    pub secret: Option<String>,
    /// Certificates (PEM) that are trusted besides the public ones. The operator's.
    pub ca: Option<PathBuf>,
}

/// Names of what a remote plugin offers.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Offers {
    /// Tools.
    pub tools: Vec<String>,
    /// Conditions.
    pub conditions: Vec<String>,
    /// Effects.
    pub effects: Vec<String>,
    /// Simulation configurations.
    pub simulation_configs: Vec<String>,
    /// Patterns of events that it wants.
    pub events: Vec<String>,
}

/// Requests at once, if the manifest does not say.
pub(super) const REMOTE_CONCURRENCY: u32 = 16;

/// `timeout_ms`, if the manifest has none.
pub(super) const TIMEOUT: Duration = Duration::from_millis(500);

impl Remote {
    /// One without options.
    pub(super) fn new(endpoint: String, protocol: Protocol, timeout: Duration) -> Self {
        Remote {
            endpoint,
            protocol,
            timeout,
            rate: None,
            context: Vec::new(),
            offers: Offers::default(),
            allow: Vec::new(),
            secret: None,
            ca: None,
        }
    }
}

/// What is wrong with an endpoint, if anything is.
pub(super) fn wrong_endpoint(endpoint: &str, protocol: Protocol) -> Option<String> {
    let schemes = protocol.schemes();
    let uri: Option<Uri> = endpoint.parse().ok();
    let fine = uri.as_ref().is_some_and(|uri| {
        let scheme = uri.scheme_str().unwrap_or_default();
        // User and password do not belong into an URL.
        let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
        schemes.contains(&scheme) && plain && uri.query().is_none()
    });
    (!fine).then(|| {
        format!("{endpoint:?} is not like \"{}://host/path\"", schemes.first().unwrap_or(&"https"))
    })
}

/// Reads `[run.remote]`.
pub(super) fn read_remote(table: Table<'_>) -> Option<Remote> {
    let endpoint = table.text("endpoint");
    if endpoint.is_none() && !table.has("endpoint") {
        table.error("endpoint", "`run.remote.endpoint` is missing");
    }
    let protocol = table.choice("protocol", &Protocol::NAMES).unwrap_or(Protocol::Grpc);
    if let Some(why) = endpoint.as_deref().and_then(|text| wrong_endpoint(text, protocol)) {
        table.error("endpoint", format!("`run.remote.endpoint` {why}"));
    }
    let timeout = table.integer("timeout_ms", 1..=3_600_000).map(Duration::from_millis);
    let rate = table.text("rate").and_then(|text| {
        let rate = parse_rate(&text);
        if rate.is_none() {
            let message = format!("`run.remote.rate` {text:?} is not like \"100/s\" or \"6/m\"");
            table.error("rate", message);
        }
        rate
    });
    let list = |key| table.texts(key).unwrap_or_default();
    let remote = Remote {
        rate,
        context: list("context"),
        offers: Offers {
            tools: list("tools"),
            conditions: list("conditions"),
            effects: list("effects"),
            simulation_configs: list("simulation_configs"),
            events: list("events"),
        },
        ..Remote::new(endpoint.unwrap_or_default(), protocol, timeout.unwrap_or(TIMEOUT))
    };
    table.finish();
    Some(remote)
}

/// `100/s`, `6/m`, `1000/h`: per second.
fn parse_rate(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once('/')?;
    let number: f64 = number.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n > 0.0)?;
    match unit.trim() {
        "s" => Some(number),
        "m" => Some(number / 60.0),
        "h" => Some(number / 3600.0),
        _ => None,
    }
}

/// The operator's word on remote plugins: `[remote]` of the configuration or of
/// `[plugin.NAME]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RemoteRules {
    allow: Option<Vec<String>>,
    secret: Option<String>,
    ca: Option<PathBuf>,
}

/// An address or a network that is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not like \"127.0.0.1\" or \"10.0.0.0/8\"")]
pub struct NotANetwork(String);

impl RemoteRules {
    /// Those that let remote plugins have these addresses and networks besides the
    /// public ones: for embedding.
    ///
    /// # Errors
    /// One is neither.
    pub fn allowing(networks: &[&str]) -> Result<Self, NotANetwork> {
        if let Some(wrong) = networks.iter().find(|text| parse_network(text).is_none()) {
            return Err(NotANetwork((*wrong).to_owned()));
        }
        let allow = networks.iter().map(|text| (*text).to_owned()).collect();
        Ok(RemoteRules { allow: Some(allow), ..RemoteRules::default() })
    }

    /// Reads `allow`, `secret` and `ca`.
    pub fn of_operator(table: Table<'_>) -> Self {
        let rules = RemoteRules {
            allow: table.texts("allow"),
            secret: table.text("secret"),
            ca: table.path("ca"),
        };
        if rules.ca.as_ref().is_some_and(|path| !path.is_absolute()) {
            table.error("ca", "`remote.ca` must be an absolute path");
        }
        for text in rules.allow.iter().flatten() {
            if parse_network(text).is_none() {
                let message = format!(
                    "`remote.allow` entry {text:?} is not like \"127.0.0.1\" or \"10.0.0.0/8\""
                );
                table.error("allow", message);
            }
        }
        table.finish();
        rules
    }

    /// What a later file says, laid over this.
    pub fn add(&mut self, later: RemoteRules) {
        self.allow = later.allow.or(self.allow.take());
        self.secret = later.secret.or(self.secret.take());
        self.ca = later.ca.or(self.ca.take());
    }

    /// Changes when any of it does.
    pub fn fingerprint(&self) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// Lays them over a remote plugin; what is not set stays.
    pub fn apply(&self, remote: &mut Remote) {
        if let Some(allow) = &self.allow {
            remote.allow.clone_from(allow);
        }
        remote.secret = self.secret.clone().or(remote.secret.take());
        remote.ca = self.ca.clone().or(remote.ca.take());
    }
}

/// An address and the length of its prefix.
fn parse_network(text: &str) -> Option<(std::net::IpAddr, u8)> {
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address: std::net::IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = if bits.is_empty() { most } else { bits.parse().ok()? };
    (bits <= most).then_some((address, bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_rates_and_networks_are_checked() {
        for (endpoint, protocol) in [
            ("https://plugins.example/x", Protocol::Http),
            ("http://127.0.0.1:8080", Protocol::Grpc),
            ("wss://plugins.example/ws", Protocol::Websocket),
        ] {
            assert_eq!(wrong_endpoint(endpoint, protocol), None, "{endpoint}");
        }
        for (endpoint, protocol) in [
            ("plugins.example", Protocol::Http),
            ("file:///etc/passwd", Protocol::Http),
            ("https://user:secret@plugins.example", Protocol::Http),
            ("https://plugins.example", Protocol::Websocket),
            ("", Protocol::Grpc),
        ] {
            assert!(wrong_endpoint(endpoint, protocol).is_some(), "{endpoint}");
        }
        assert_eq!(parse_rate("100/s"), Some(100.0));
        assert_eq!(parse_rate("6 / m"), Some(0.1));
        assert_eq!(parse_rate("0/s").or(parse_rate("x/s")).or(parse_rate("1/d")), None);
        assert!(parse_network("10.0.0.0/8").is_some() && parse_network("::1").is_some());
        assert_eq!(parse_network("10.0.0.0/33").or(parse_network("x")), None);
    }
}
