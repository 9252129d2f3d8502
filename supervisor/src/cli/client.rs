//! The connection to the daemon, and names typed by people.

use std::path::PathBuf;

use hyper_util::rt::TokioIo;
use stockade::config::{Source, default_socket};
use stockade_proto::v1::{
    ListPluginsRequest, PluginHealth, admin_client::AdminClient, data_client::DataClient,
    events_client::EventsClient, extensions_client::ExtensionsClient,
    observability_client::ObservabilityClient, plugins_client::PluginsClient,
    tools_client::ToolsClient, workspaces_client::WorkspacesClient,
};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::{Place, failure::Failure};

/// Largest message of either direction.
const MAX_MESSAGE: usize = 256 << 20;

/// A connection to the daemon's socket.
#[derive(Clone)]
pub(super) struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to the socket of the flag, the configuration, or the default.
    pub(super) async fn connect(place: &Place) -> Result<Self, Failure> {
        let path = socket(place);
        let connect = {
            let path = path.clone();
            tower::service_fn(move |_| {
                let path = path.clone();
                async move { UnixStream::connect(path).await.map(TokioIo::new) }
            })
        };
        let endpoint = Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connect).await.map_err(|error| {
            let mut source: &dyn std::error::Error = &error;
            while let Some(inner) = source.source() {
                source = inner;
            }
            Failure::unknown(format!(
                "cannot reach the daemon at {}: {source}. Is `stockade serve` running? Name its \
                 socket with --socket.",
                path.display()
            ))
        })?;
        Ok(Client { channel })
    }

    pub(super) fn plugins(&self) -> PluginsClient<Channel> {
        PluginsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn tools(&self) -> ToolsClient<Channel> {
        ToolsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel.clone())
    }

    pub(super) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn data(&self) -> DataClient<Channel> {
        DataClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn workspaces(&self) -> WorkspacesClient<Channel> {
        WorkspacesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn extensions(&self) -> ExtensionsClient<Channel> {
        ExtensionsClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(super) fn observability(&self) -> ObservabilityClient<Channel> {
        ObservabilityClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    /// All plugins, sorted by name.
    pub(super) async fn all(&self) -> Result<Vec<PluginHealth>, Failure> {
        Ok(self.plugins().list_plugins(ListPluginsRequest {}).await?.into_inner().plugins)
    }

    /// The plugins that the names and globs mean; none = all.
    pub(super) async fn select(&self, names: &[String]) -> Result<Vec<PluginHealth>, Failure> {
        let all = self.all().await?;
        if names.is_empty() {
            return Ok(all);
        }
        let known: Vec<String> = all.iter().map(|plugin| plugin.name.clone()).collect();
        let mut wanted = Vec::new();
        for name in names {
            let matching = matching(name, &known)?;
            if matching.is_empty() {
                return Err(unknown(name, &known));
            }
            wanted.extend(matching);
        }
        Ok(all.into_iter().filter(|plugin| wanted.contains(&plugin.name)).collect())
    }
}

fn matching(pattern: &str, known: &[String]) -> Result<Vec<String>, Failure> {
    let pattern = glob::Pattern::new(pattern)
        .map_err(|error| Failure::usage(format!("{pattern:?} is not a pattern: {error}")))?;
    Ok(known.iter().filter(|name| pattern.matches(name)).cloned().collect())
}

fn unknown(name: &str, known: &[String]) -> Failure {
    let near = known
        .iter()
        .min_by_key(|candidate| strsim::damerau_levenshtein(name, candidate))
        .filter(|candidate| strsim::damerau_levenshtein(name, candidate) <= 3);
    let hint = match near {
        Some(near) => format!(" Did you mean {near}?"),
        None => " `stockade list` shows all.".to_owned(),
    };
    Failure::unknown(format!("Plugin {name} not found.{hint}"))
}

fn socket(place: &Place) -> PathBuf {
    if let Some(socket) = &place.socket {
        return socket.clone();
    }
    let source = Source { file: place.config.clone(), flags: Vec::new() };
    match source.load() {
        Ok(config) => config.socket,
        Err(problems) => {
            let socket = default_socket();
            eprintln!(
                "stockade: the configuration has mistakes, so its `socket` was not read ({}). \
                 Trying {}; use --socket for another.",
                problems.first().map(ToString::to_string).unwrap_or_default(),
                socket.display()
            );
            socket
        }
    }
}
