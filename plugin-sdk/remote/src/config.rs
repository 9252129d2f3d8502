//! What the supervisor told: one variable of the environment, JSON.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

/// The variable.
const VARIABLE: &str = "STOCKADE_REMOTE";

/// Where the service is and how it is spoken to.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Config {
    pub(crate) plugin: String,
    pub(crate) endpoint: String,
    pub(crate) protocol: Protocol,
    pub(crate) timeout_ms: u64,
    pub(crate) offers: Names,
    /// Private addresses and networks that it may have.
    pub(crate) allow: Vec<String>,
    pub(crate) secret: Option<String>,
    pub(crate) ca: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Protocol {
    Grpc,
    Http,
    Websocket,
}

/// What it offers, by name only.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Names {
    pub(crate) tools: Vec<String>,
    pub(crate) conditions: Vec<String>,
    pub(crate) effects: Vec<String>,
    pub(crate) simulation_configs: Vec<String>,
    pub(crate) events: Vec<String>,
}

impl Config {
    /// Of one request.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

/// Reads it.
pub(crate) fn read() -> Result<Config, String> {
    let text = std::env::var(VARIABLE).map_err(|error| format!("{VARIABLE}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{VARIABLE}: {error}"))
}
