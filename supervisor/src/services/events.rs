//! Events of one plugin, by its channel.

use std::pin::Pin;

use futures_util::Stream;
use stockade_proto::host as wire;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{
    Batch,
    bus::Pace,
    channel::{Channel, Reply},
    names,
};
use crate::capacity::limits;

/// Subscriptions that one process may hold, and patterns of each.
pub(super) const MAX_SUBSCRIPTIONS: usize = 16;
const MAX_PATTERNS: usize = limits::EVENT_PATTERNS;

/// Batches as they come.
pub(super) type Batches = Pin<Box<dyn Stream<Item = Result<wire::EventBatch, Status>> + Send>>;

impl Channel {
    pub(super) async fn emit_event(&self, request: wire::EmitRequest) -> Reply<wire::EmitResponse> {
        let wire::EmitRequest { scope, name, payload } = request;
        let Some(granted) = self.ask("events.emit", &["event:emit"], scope)? else {
            let denied = wire::EmitResponse { denied: true, ..Default::default() };
            return Ok(Response::new(denied));
        };
        self.within(&self.events, "events")?;
        let own = names::own(&self.name, &name).map_err(|error| self.name_error(error))?;
        if own.contains('*') {
            let text = format!("{name:?} is no event's name: `*` stands for names in patterns");
            return Err(Status::invalid_argument(text));
        }
        if payload.len() as u64 > self.caller.manifest.quota.value {
            return Err(Status::resource_exhausted("the event is larger than quota.value"));
        }
        let payload = self.valid_json(payload).await?;
        let inner = &self.host.inner;
        let (sequence, subscribers) = inner.bus.emit(
            self.actor.clone(),
            &names::full(&self.name, own),
            payload,
            granted.author.workspace,
            |workspace, plugin| inner.data.workspaces.allows(workspace, plugin),
        );
        Ok(Response::new(wire::EmitResponse { sequence, subscribers, denied: false }))
    }

    pub(super) fn hear(&self, request: wire::SubscribeRequest) -> Reply<Batches> {
        let wire::SubscribeRequest { scope, patterns } = request;
        let (sender, receiver) = mpsc::channel(1);
        let stream: Batches = Box::pin(ReceiverStream::new(receiver));
        if self.ask("events.subscribe", &["event:subscribe"], scope)?.is_none() {
            return Ok(Response::new(stream));
        }
        for pattern in &patterns {
            names::pattern(pattern).map_err(|error| self.name_error(error))?;
        }
        let place = self.subscriptions.clone().try_acquire_owned();
        let (Ok(place), true) = (place, patterns.len() <= MAX_PATTERNS) else {
            self.host.inner.permits.over_quota(&self.name);
            return Err(Status::resource_exhausted(format!(
                "{MAX_SUBSCRIPTIONS} subscriptions of {MAX_PATTERNS} patterns are allowed at once"
            )));
        };
        let bus = self.host.inner.bus.clone();
        let subscriber = bus.subscribe(self.actor.clone(), patterns);
        tokio::spawn(async move {
            let _place = place;
            let mut pace = Pace::default();
            loop {
                tokio::select! {
                    there = subscriber.filled() => if !there { break },
                    () = sender.closed() => break,
                }
                pace.wait().await;
                // Room first: what waits for it waits in the bounded queue.
                let Ok(place) = sender.reserve().await else { break };
                place.send(Ok(to_wire(subscriber.take())));
            }
            bus.unsubscribe(&subscriber);
        });
        Ok(Response::new(stream))
    }
}

fn to_wire(batch: Batch) -> wire::EventBatch {
    let events = batch.events.iter().map(|event| wire::Event {
        sequence: event.sequence,
        name: event.name.to_string(),
        payload: event.payload.clone(),
        source: event.source.to_string(),
        workspace: event.workspace.to_string(),
        time_ms: event.time_ms,
    });
    wire::EventBatch { events: events.collect(), dropped: batch.dropped }
}
