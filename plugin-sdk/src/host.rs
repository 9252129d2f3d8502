//! What the supervisor offers to plugins, over the second inherited channel.

use std::sync::Arc;

use stockade_proto::{
    host::{GetSelfRequest, host_client::HostClient},
    inherited::Channel,
};
use tokio::{runtime::Handle, sync::OnceCell};

use crate::{Error, Result, adopt};

/// Who a plugin is, as the supervisor sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelfInfo {
    /// The plugin's name.
    pub plugin: String,
    /// The manifest's version.
    pub version: String,
    /// Counts this plugin's processes: 1 is the first.
    pub generation: u64,
    /// A writable directory that survives restarts.
    pub data_dir: String,
    /// Permissions granted.
    pub permissions: Vec<String>,
}

/// The client of the host channel. Connects at the first use.
#[derive(Clone, Debug)]
pub struct Host {
    client: Arc<OnceCell<HostClient<Channel>>>,
    runtime: Handle,
}

impl Host {
    pub(crate) fn new(runtime: Handle) -> Self {
        Host { client: Arc::default(), runtime }
    }

    async fn client(&self) -> Result<HostClient<Channel>> {
        let client = self
            .client
            .get_or_try_init(|| async {
                let io = adopt::host()?;
                let (channel, connection) = Channel::connect(io).await?;
                tokio::spawn(connection);
                Ok::<_, Error>(HostClient::new(channel))
            })
            .await?;
        Ok(client.clone())
    }

    /// Asks who this plugin is (async tools).
    ///
    /// # Errors
    /// The supervisor is gone or refuses.
    pub async fn get_self(&self) -> Result<SelfInfo> {
        let reply = self.client().await?.get_self(GetSelfRequest {}).await;
        let reply = reply.map_err(|status| Error::new("HostError", status.message()))?.into_inner();
        Ok(SelfInfo {
            plugin: reply.plugin,
            version: reply.version,
            generation: reply.generation,
            data_dir: reply.data_dir,
            permissions: reply.permissions,
        })
    }

    /// As [`Host::get_self`], from a blocking tool.
    ///
    /// # Errors
    /// As [`Host::get_self`].
    pub fn get_self_blocking(&self) -> Result<SelfInfo> {
        let host = self.clone();
        let (reply, answer) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            let _ = reply.send(host.get_self().await);
        });
        answer.recv().map_err(|_| Error::new("HostError", "the plugin is ending"))?
    }
}
