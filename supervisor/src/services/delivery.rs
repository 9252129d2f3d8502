//! Events to the handlers that plugins registered: one batch at a time for each,
//! as a call of their process, with a call's deadline and a call's way to die.

use std::{sync::Arc, time::Duration};

use serde::Deserialize;
use stockade_proto::worker::{Event as WireEvent, EventBatch, invoke::Kind};

use super::bus::{Batch, Bus, Pace, Subscriber};
use crate::{
    calls::{CallError, Calls, ToolCall},
    capacity::limits,
    lifecycle::Substate,
    plugin::{Handle, MetricKind},
};

/// Before a batch is tried again that found no place in the plugin's queue.
const PAUSE: Duration = Duration::from_millis(50);

/// What a handler answers for a batch.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    failed: u64,
    #[serde(default)]
    error_type: String,
    #[serde(default)]
    error: String,
}

/// Runs until the plugin is gone.
pub(super) async fn run(
    calls: Calls,
    bus: Arc<Bus>,
    plugin: Arc<str>,
    handler: String,
    subscriber: Arc<Subscriber>,
) {
    let mut pace = Pace::default();
    while subscriber.filled().await {
        pace.wait().await;
        let Some(handle) = ready(&calls, &plugin).await else { break };
        deliver(&calls, &handle, &handler, &subscriber).await;
    }
    bus.unsubscribe(&subscriber);
}

/// The plugin, once it takes calls; None when it was removed.
async fn ready(calls: &Calls, plugin: &str) -> Option<Handle> {
    loop {
        let handle = calls.registry().get(plugin).cloned()?;
        let mut snapshots = handle.watch();
        let wakes = handle.snapshot().substate == Substate::OnDemand;
        if wakes {
            handle.needed();
        }
        let serving = snapshots.wait_for(|snapshot| {
            snapshot.ready() && snapshot.session.as_ref().is_some_and(|one| one.closed().is_none())
        });
        if serving.await.is_ok() {
            return Some(handle);
        }
        // Its actor has ended: there may be a new plugin of the name.
        tokio::time::sleep(PAUSE).await;
    }
}

async fn deliver(calls: &Calls, handle: &Handle, handler: &str, subscriber: &Subscriber) {
    let batch = subscriber.take();
    let count = batch.events.len() as u64;
    if count == 0 {
        return;
    }
    let call = ToolCall {
        plugin: handle.name().to_string(),
        tool: handler.to_owned(),
        kind: Kind::Events,
        events: Some(to_wire(&batch)),
        ..ToolCall::default()
    };
    let outcome = calls.run(call).await;
    let (failed, error) = match (&outcome.result, outcome.delivered) {
        (Ok(success), _) => match serde_json::from_slice::<Answer>(&success.result) {
            Ok(answer) if answer.failed == 0 => (0, None),
            Ok(answer) => {
                let kind = limits::cut(&answer.error_type, limits::NAME);
                let text = limits::cut(&answer.error, limits::ERROR_TEXT);
                (answer.failed.min(count), Some((kind, text)))
            }
            Err(error) => (count, Some(("InvalidResult".to_owned(), error.to_string()))),
        },
        // It has not seen them: they wait for it.
        (Err(CallError::QueueFull(_) | CallError::PluginUnavailable { .. }), false) => {
            subscriber.put_back(batch);
            tokio::time::sleep(PAUSE).await;
            return;
        }
        (Err(error), _) => {
            subscriber.lost(count, batch.dropped);
            (count, Some((error.error_type().to_owned(), error.to_string())))
        }
    };
    let context = format!("event handler {handler}");
    let failure = error.as_ref().map(|(kind, message)| (kind.as_str(), message.clone(), context));
    handle.metrics().count_many(MetricKind::Event, count, failed, outcome.duration, failure);
}

fn to_wire(batch: &Batch) -> EventBatch {
    let events = batch.events.iter().map(|event| WireEvent {
        sequence: event.sequence,
        name: event.name.to_string(),
        payload: event.payload.clone(),
        source: event.source.to_string(),
        workspace: event.workspace.to_string(),
        time_ms: event.time_ms,
    });
    EventBatch { events: events.collect(), dropped: batch.dropped }
}
