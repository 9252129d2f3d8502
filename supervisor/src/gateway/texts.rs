//! JSON texts of clients: the crew reads those that are not small, one at a time for
//! each connection and the connections in turn.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::Mutex;
use tonic::Status;

use super::{door::Caller, status};
use crate::{
    Supervisor,
    capacity::{Account, Lane, Overloaded, is_quick, read_exactly},
    services::Turn,
};

tokio::task_local! {
    /// Of the connection whose request is being answered.
    static READER: Reader;
}

/// A connection's turn with the crew.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    lane: Lane,
    one: Arc<Mutex<()>>,
    building: Arc<Mutex<()>>,
    account: Option<Account>,
}

impl Reader {
    /// Of a new connection.
    pub(super) fn new(account: Option<Account>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let lane = Lane::Client(format!("connection {number}").into());
        Reader { lane, one: Arc::default(), building: Arc::default(), account }
    }

    /// The same connection's, for a request of this caller.
    pub(super) fn of(&self, caller: &Caller) -> Self {
        let mut own = self.clone();
        if let (Lane::Client(name), Some(_)) = (&self.lane, caller.admin()) {
            own.lane = Lane::Operator(name.clone());
        }
        own
    }

    /// What is read while this is answered is read in the connection's turn.
    pub(super) async fn during<F: Future>(self, answering: F) -> F::Output {
        READER.scope(self, answering).await
    }
}

/// What `read` makes of the text.
pub(super) async fn read<T: Send + 'static>(
    supervisor: &Supervisor,
    text: Bytes,
    read: impl FnOnce(&Bytes) -> T + Send + 'static,
) -> Result<T, Overloaded> {
    if is_quick(&text) {
        return Ok(read(&text));
    }
    of_bytes(supervisor, text.len(), move || read(&text)).await
}

/// Has an answer of the daemon's own made by the crew, in the connection's turn.
pub(super) async fn aside<T: Send + 'static>(
    supervisor: &Supervisor,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Overloaded> {
    of_bytes(supervisor, 0, work).await
}

/// Has work on so many bytes of a client done by the crew, in the connection's turn.
pub(super) async fn of_bytes<T: Send + 'static>(
    supervisor: &Supervisor,
    bytes: usize,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Overloaded> {
    let reader = READER.try_with(Clone::clone).unwrap_or_else(|_| Reader::new(None));
    let _turn = reader.one.lock().await;
    supervisor.calls().crew().run(reader.lane.for_bytes(bytes), work).await
}

/// The turn of the connection whose request is being answered.
pub(super) fn lane() -> Lane {
    READER.try_with(|reader| reader.lane.clone()).unwrap_or_else(|_| Reader::new(None).lane)
}

/// The turn of this connection, for texts that are read elsewhere.
pub(super) fn turn() -> Turn {
    let Reader { lane, one, building, account } =
        READER.try_with(Clone::clone).unwrap_or_else(|_| Reader::new(None));
    Turn { lane, one, building, account }
}

/// The value, for gRPC; `what` is said of one that is none.
pub(super) async fn json<T: DeserializeOwned + Send + 'static>(
    supervisor: &Supervisor,
    text: Bytes,
    what: &str,
) -> Result<T, Status> {
    valid(supervisor, text, what, read_exactly).await
}

/// The same of what `check` makes of it.
pub(super) async fn valid<T: Send + 'static>(
    supervisor: &Supervisor,
    text: Bytes,
    what: &str,
    check: impl FnOnce(&[u8]) -> serde_json::Result<T> + Send + 'static,
) -> Result<T, Status> {
    let read = read(supervisor, text, move |text| check(text)).await;
    let read = read.map_err(status::overloaded)?;
    read.map_err(|error| Status::invalid_argument(format!("{what}: {error}")))
}
