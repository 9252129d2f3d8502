//! A request to the host: what is asked, how a refusal looks, then sent.

use std::{future::IntoFuture, pin::Pin};

use stockade_proto::{
    host::{OnDenied, Scope, host_client::HostClient},
    inherited::Channel,
};

use super::{Host, error_of};
use crate::{Error, Result};

type Sent<T> = Pin<Box<dyn Future<Output = Result<T>> + Send>>;
type Sender<T> = Box<dyn FnOnce(HostClient<Channel>, Scope) -> Sent<T> + Send>;

/// A request that has not been sent yet: `.wait()?` from a blocking tool,
/// `.await?` from an async one.
#[must_use = "nothing is asked before `.wait()` or `.await`"]
pub struct Ask<T> {
    host: Host,
    scope: Scope,
    send: std::result::Result<Sender<T>, Error>,
}

/// What the transport or the request itself says.
pub(crate) struct Failure(Error);

impl From<tonic::Status> for Failure {
    fn from(status: tonic::Status) -> Self {
        Failure(error_of(&status))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Failure(error.into())
    }
}

impl Host {
    pub(crate) fn ask<T, F, R>(&self, send: F) -> Ask<T>
    where
        F: FnOnce(HostClient<Channel>, Scope) -> R + Send + 'static,
        R: Future<Output = std::result::Result<T, Failure>> + Send + 'static,
    {
        let send: Sender<T> = Box::new(|client, scope| {
            let sent = send(client, scope);
            Box::pin(async move { sent.await.map_err(|Failure(error)| error) })
        });
        Ask { host: self.clone(), scope: self.scope.clone(), send: Ok(send) }
    }

    /// A request that cannot even be written.
    pub(crate) fn cannot<T>(&self, error: impl Into<Error>) -> Ask<T> {
        Ask { host: self.clone(), scope: self.scope.clone(), send: Err(error.into()) }
    }
}

impl<T: Send + 'static> Ask<T> {
    /// A refusal is an error (`PermissionDenied`).
    pub fn or_raise(self) -> Self {
        self.on_denied(OnDenied::Raise)
    }

    /// A refusal is the empty value and a line in the plugin's log (as usual).
    pub fn or_warn(self) -> Self {
        self.on_denied(OnDenied::Warn)
    }

    /// A refusal is the empty value.
    pub fn or_silent(self) -> Self {
        self.on_denied(OnDenied::Silent)
    }

    fn on_denied(mut self, mode: OnDenied) -> Self {
        self.scope.on_denied = mode as i32;
        self
    }

    /// In another workspace than the call's.
    pub fn in_workspace(mut self, workspace: &str) -> Self {
        if !workspace.is_empty() {
            workspace.clone_into(&mut self.scope.workspace);
        }
        self
    }

    /// Sends it and waits: for blocking tools.
    ///
    /// # Errors
    /// The host refuses, or this is an async tool's thread (use `.await`).
    pub fn wait(self) -> Result<T> {
        let Some(link) = self.host.link.clone() else { return Err(no_host()) };
        if link.process != std::process::id() {
            return Err(Error::new("HostError", "a forked child has no host; ask in the plugin"));
        }
        if tokio::runtime::Handle::try_current().is_ok() {
            return Err(Error::new("HostError", "in an async tool use `.await`, not `.wait()`"));
        }
        let (reply, answer) = std::sync::mpsc::sync_channel(1);
        link.runtime.spawn(async move {
            let _ = reply.send(self.await);
        });
        answer.recv().map_err(|_| Error::new("HostError", "the plugin is ending"))?
    }
}

fn no_host() -> Error {
    Error::new("HostError", "there is no host here: the test harness runs without a supervisor")
}

impl<T: Send + 'static> IntoFuture for Ask<T> {
    type Output = Result<T>;
    type IntoFuture = Sent<T>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let send = self.send?;
            let client = self.host.link.as_ref().ok_or_else(no_host)?.client().await?;
            send(client, self.scope).await
        })
    }
}
