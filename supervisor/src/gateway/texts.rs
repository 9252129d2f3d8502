//! JSON texts of clients: the crew reads those that are not small.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tonic::Status;

use crate::{
    Supervisor,
    capacity::{Overloaded, limits},
};

/// What `read` makes of the text.
pub(super) async fn read<T: Send + 'static>(
    supervisor: &Supervisor,
    text: Bytes,
    read: impl FnOnce(&[u8]) -> T + Send + 'static,
) -> Result<T, Overloaded> {
    if text.len() <= limits::STEP {
        return Ok(read(&text));
    }
    supervisor.calls().crew().run(&"(clients)".into(), move || read(&text)).await
}

/// The value, for gRPC; `what` is said of one that is none.
pub(super) async fn json<T: DeserializeOwned + Send + 'static>(
    supervisor: &Supervisor,
    text: Bytes,
    what: &str,
) -> Result<T, Status> {
    valid(supervisor, text, what, |text| serde_json::from_slice(text)).await
}

/// The same of what `check` makes of it.
pub(super) async fn valid<T: Send + 'static>(
    supervisor: &Supervisor,
    text: Bytes,
    what: &str,
    check: impl FnOnce(&[u8]) -> serde_json::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let read = read(supervisor, text, check).await;
    let read = read.map_err(|why| Status::resource_exhausted(why.to_string()))?;
    read.map_err(|error| Status::invalid_argument(format!("{what}: {error}")))
}
