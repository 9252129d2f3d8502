//! `stockade.v1.Hosting`: providers of servers, and events in both directions.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::{Stream, StreamExt as _};
use stockade_proto::{
    v1::{
        EmitEventRequest, EmitEventResponse, FromServer, PluginEvent, PluginEventBatch,
        ProviderAnswer, ProviderCall, ProvidersRegistered, ToServer, WatchPluginEventsRequest,
        from_server, hosting_server::Hosting, to_server,
    },
    worker,
};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{super::status, who};
use crate::{
    Supervisor,
    capacity::Held,
    gateway::{body::Reservation, texts, watch::Watch},
    services::{Ask, Batch, check_json},
    store::time_text,
};

/// Frames that may wait for a server; further requests wait as such, and are charged.
const WAITING: usize = 4;

pub(super) struct HostingService {
    supervisor: Supervisor,
    watch: Watch,
}

impl HostingService {
    pub(super) fn new(supervisor: &Supervisor, watch: &Watch) -> Self {
        HostingService { supervisor: supervisor.clone(), watch: watch.clone() }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answers = Arc<Mutex<HashMap<u64, oneshot::Sender<Result<bytes::Bytes, (String, String)>>>>>;

#[tonic::async_trait]
impl Hosting for HostingService {
    type ServeProvidersStream = Replies<ToServer>;
    type WatchPluginEventsStream = Replies<PluginEventBatch>;

    async fn serve_providers(
        &self,
        request: Request<Streaming<FromServer>>,
    ) -> Result<Response<Self::ServeProvidersStream>, Status> {
        who(&request)?;
        let reservation = request.extensions().get::<Reservation>().cloned();
        let mut incoming = request.into_inner();
        let first = incoming.message().await?.and_then(|message| message.frame);
        let paid = reservation.as_ref().and_then(Reservation::next_message);
        let Some(from_server::Frame::Register(register)) = first else {
            return Err(Status::invalid_argument("the first frame must register providers"));
        };
        let offered = register.providers.into_iter().map(|one| worker::Provider {
            name: one.name,
            permission: one.permission,
            description: one.description,
            request_schema: one.request_schema,
            response_schema: one.response_schema,
        });
        let payer = reservation.as_ref().map(Reservation::account);
        let provided = self.supervisor.services().provide(offered.collect(), payer.as_ref());
        let (registration, mut asks) = provided.await.map_err(status::overloaded)?;
        drop(paid);
        let (sender, receiver) = mpsc::channel::<(_, Option<Held>)>(WAITING);
        let registered = ProvidersRegistered {
            names: registration.names.clone(),
            refused: registration.refused.clone(),
        };
        let frame = to_server::Frame::Registered(registered);
        let _ = sender.send((Ok(ToServer { frame: Some(frame) }), None)).await;
        tokio::spawn(async move {
            // Gone with the stream, and so are its providers.
            let _registration = registration;
            let answers = Answers::default();
            let mut next = 0;
            loop {
                tokio::select! {
                    // Room first: what waits for it is not taken out of its queue.
                    taken = async {
                        let place = sender.reserve().await.ok()?;
                        Some((place, asks.recv().await?))
                    } => {
                        let Some((place, ask)) = taken else { return };
                        // One that nobody waits for any more is passed over.
                        if !ask.answer.is_closed() {
                            next += 1;
                            let (frame, held) = ask_frame(next, ask, &answers);
                            place.send((Ok(frame), Some(held)));
                        }
                    }
                    message = incoming.message() => {
                        // Paid for until it has been passed on.
                        let _paid = reservation.as_ref().and_then(Reservation::next_message);
                        match message {
                            Ok(Some(message)) => match message.frame {
                                Some(from_server::Frame::Answer(answer)) => {
                                    take_answer(&answers, answer);
                                }
                                _ => if sender.try_send((Ok(too_late()), None)).is_err() { return },
                            },
                            Ok(None) => return,
                            Err(status) => {
                                let _ = sender.try_send((Err(status), None));
                                return;
                            }
                        }
                    }
                }
            }
        });
        // What is in a frame is paid for until the connection takes it.
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver).map(|(frame, _held)| frame))))
    }

    async fn emit_event(
        &self,
        request: Request<EmitEventRequest>,
    ) -> Result<Response<EmitEventResponse>, Status> {
        who(&request)?;
        let EmitEventRequest { name, payload, workspace } = request.into_inner();
        let checked = texts::read(&self.supervisor, payload.clone(), move |_| check_json(payload));
        let checked = checked.await.map_err(status::overloaded)?;
        let payload = checked.map_err(Status::invalid_argument)?;
        let emitted = self.supervisor.services().emit_checked(&name, payload, &workspace);
        let (sequence, subscribers) = emitted.map_err(Status::invalid_argument)?;
        Ok(Response::new(EmitEventResponse { sequence, subscribers }))
    }

    async fn watch_plugin_events(
        &self,
        request: Request<WatchPluginEventsRequest>,
    ) -> Result<Response<Self::WatchPluginEventsStream>, Status> {
        who(&request)?;
        let place = self.watch.grpc_place_for(&request, &request.get_ref().patterns)?;
        let watch = self.supervisor.services().watch(request.into_inner().patterns);
        let watch = watch.map_err(Status::invalid_argument)?;
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let _place = place;
            loop {
                // Room first: what waits for it waits in the bounded queue.
                let Ok(place) = sender.reserve().await else { return };
                tokio::select! {
                    batch = watch.next() => place.send(batch),
                    () = sender.closed() => return,
                }
            }
        });
        let batches = ReceiverStream::new(receiver).map(|batch| Ok(to_wire(&batch)));
        Ok(Response::new(Box::pin(batches)))
    }
}

fn ask_frame(id: u64, ask: Ask, answers: &Answers) -> (ToServer, Held) {
    let mut waiting = answers.lock().unwrap_or_else(PoisonError::into_inner);
    // What nobody waits for any more has timed out.
    waiting.retain(|_, answer| !answer.is_closed());
    waiting.insert(id, ask.answer);
    let frame = to_server::Frame::Call(ProviderCall {
        id,
        name: ask.name,
        request: ask.request,
        plugin: ask.plugin.to_string(),
        workspace: ask.workspace.to_string(),
        call_id: ask.call_id.to_string(),
        timeout_ms: ask.timeout.as_millis() as u64,
    });
    (ToServer { frame: Some(frame) }, ask.held)
}

/// What comes after the first frame and is no answer is not taken.
fn too_late() -> ToServer {
    let refused = "providers are registered with the first frame, once; open another stream".into();
    let registered = ProvidersRegistered { names: Vec::new(), refused: vec![refused] };
    ToServer { frame: Some(to_server::Frame::Registered(registered)) }
}

fn take_answer(answers: &Answers, answer: ProviderAnswer) {
    let waiting = answers.lock().unwrap_or_else(PoisonError::into_inner).remove(&answer.id);
    let Some(waiting) = waiting else { return };
    let _ = waiting.send(match answer.error_type.is_empty() {
        true => Ok(answer.response),
        false => Err((answer.error_type, answer.error)),
    });
}

fn to_wire(batch: &Batch) -> PluginEventBatch {
    let events = batch.events.iter().map(|event| PluginEvent {
        sequence: event.sequence,
        name: event.name.to_string(),
        payload: event.payload.clone(),
        source: event.source.to_string(),
        workspace: event.workspace.to_string(),
        time: time_text(event.time_ms as i64),
    });
    PluginEventBatch { events: events.collect(), dropped: batch.dropped }
}
