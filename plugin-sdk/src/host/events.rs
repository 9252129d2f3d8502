//! Events: emitted under this plugin's name, heard from all.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use stockade_proto::{
    host::{EmitRequest, EventBatch, SubscribeRequest},
    worker,
};
use tokio::{runtime::Handle, sync::mpsc};

use super::{Ask, Host};
use crate::{Error, Result};

/// Emits and subscribes.
#[derive(Clone, Debug)]
pub struct Events(pub(super) Host);

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Ascending over all events of the daemon.
    pub sequence: u64,
    /// `plugin:<id>:<event>`, or the server's own.
    pub name: String,
    /// `plugin:<id>`, or `host`.
    pub source: String,
    /// Empty when it has none.
    pub workspace: String,
    /// Milliseconds since 1970.
    pub time_ms: u64,
    /// JSON text.
    pub payload: Bytes,
}

impl Event {
    /// The payload as what it should be.
    ///
    /// # Errors
    /// It is something else.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(&self.payload)?)
    }
}

impl From<worker::Event> for Event {
    fn from(wire: worker::Event) -> Self {
        Event {
            sequence: wire.sequence,
            name: wire.name,
            source: wire.source,
            workspace: wire.workspace,
            time_ms: wire.time_ms,
            payload: wire.payload,
        }
    }
}

impl From<stockade_proto::host::Event> for Event {
    fn from(wire: stockade_proto::host::Event) -> Self {
        Event {
            sequence: wire.sequence,
            name: wire.name,
            source: wire.source,
            workspace: wire.workspace,
            time_ms: wire.time_ms,
            payload: wire.payload,
        }
    }
}

impl Events {
    /// Emits `plugin:<own id>:<name>`; gives how many subscribers it was queued for.
    pub fn emit<T: Serialize + ?Sized>(&self, name: &str, payload: &T) -> Ask<u32> {
        let payload = match serde_json::to_vec(payload) {
            Ok(text) => text,
            Err(error) => return self.0.cannot(error),
        };
        let name = name.to_owned();
        self.0.ask(|mut client, scope| async move {
            let request = EmitRequest { scope: Some(scope), name, payload: payload.into() };
            Ok(client.emit(request).await?.into_inner().subscribers)
        })
    }

    /// What is emitted from now on under these names (`plugin:a:x`, `plugin:a:*`,
    /// `*`), while the subscription is held. For what a plugin always wants to hear,
    /// register a handler: [`crate::Tools::on_event`].
    pub fn subscribe(&self, patterns: &[&str]) -> Ask<Subscription> {
        let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
        self.0.ask(|mut client, scope| async move {
            let request = SubscribeRequest { scope: Some(scope), patterns };
            let mut stream = client.subscribe(request).await?.into_inner();
            // Batches of the host wait there; one is on its way to us.
            let (sender, batches) = mpsc::channel(1);
            tokio::spawn(async move {
                loop {
                    tokio::select! {
                        batch = stream.message() => {
                            let Ok(Some(batch)) = batch else { return };
                            if sender.send(batch).await.is_err() {
                                return;
                            }
                        }
                        () = sender.closed() => return,
                    }
                }
            });
            let waiting = VecDeque::new();
            Ok(Subscription { batches, waiting, dropped: 0, runtime: Handle::current() })
        })
    }
}

/// Events as they come; ends when dropped.
#[derive(Debug)]
pub struct Subscription {
    batches: mpsc::Receiver<EventBatch>,
    waiting: VecDeque<Event>,
    dropped: u64,
    runtime: Handle,
}

impl Subscription {
    /// The next event (async tools); None when the subscription is over. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Some(event);
            }
            let batch = self.batches.recv().await?;
            self.dropped += batch.dropped;
            self.waiting.extend(batch.events.into_iter().map(Event::from));
        }
    }

    /// The next event, waited for so long (blocking tools).
    pub fn next_within(&mut self, patience: Duration) -> Option<Event> {
        if let Some(event) = self.waiting.pop_front() {
            return Some(event);
        }
        let runtime = self.runtime.clone();
        runtime.block_on(async { tokio::time::timeout(patience, self.next()).await.ok().flatten() })
    }

    /// It has ended, or was refused: nothing more comes.
    pub fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.batches.is_closed() && self.batches.is_empty()
    }

    /// How many were lost because this plugin was behind.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

/// What a handler makes of a batch: how many failed, and the last failure.
pub(crate) fn answer(failed: usize, last: Option<Error>) -> Vec<u8> {
    let last = last.unwrap_or_default();
    let answer = serde_json::json!({
        "failed": failed,
        "error_type": last.kind(),
        "error": last.message(),
    });
    answer.to_string().into_bytes()
}
