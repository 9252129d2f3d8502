//! `stockade.v1.Events`: events, logs, crash records.

use std::{pin::Pin, sync::Arc};

use futures_util::Stream;
use stockade_proto::v1::{
    CallInFlight, CrashRecord, Event, ListCrashesRequest, ListCrashesResponse, LogLine,
    ReadLogsRequest, WatchEventsRequest, events_server::Events,
};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::plugins::not_found;
use crate::{
    Supervisor,
    capacity::{Account, Held},
    gateway::watch::{Place, Watch},
    plugin, store,
};

pub(super) struct EventsService {
    supervisor: Supervisor,
    watch: Watch,
    asking: Arc<Semaphore>,
    /// Of what all followers have not taken yet.
    account: Account,
}

/// Questions of clients to the store at once.
const ASKING: usize = 4;

impl EventsService {
    pub(super) fn new(supervisor: &Supervisor, watch: &Watch) -> Self {
        let asking = Arc::new(Semaphore::new(ASKING));
        let account = supervisor.budget().of_followers();
        EventsService { supervisor: supervisor.clone(), watch: watch.clone(), asking, account }
    }
}

impl EventsService {
    fn hold(&self, bytes: usize) -> Result<Held, Status> {
        let charge = self.account.charge(bytes);
        charge.map(Held::new).map_err(|why| Status::resource_exhausted(why.to_string()))
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Events or lines that wait for their reader, besides those of its ring.
const WAITING: usize = 16;
/// What one old event or line is held with.
const ENVELOPE: usize = 128;

/// First the old ones, then (if wanted) each new one.
fn stream<A, T>(
    (old, held): (Vec<A>, Held),
    new: Option<mpsc::Receiver<A>>,
    place: Place,
    wanted: impl Fn(&A) -> bool + Send + 'static,
    convert: impl Fn(A) -> T + Send + 'static,
) -> Replies<T>
where
    A: Send + 'static,
    T: Send + 'static,
{
    let (sender, receiver) = mpsc::channel(WAITING);
    tokio::spawn(async move {
        let _place = place;
        for one in old {
            if !wanted(&one) {
                continue;
            }
            let Ok(room) = sender.reserve().await else { return };
            room.send(Ok(convert(one)));
        }
        drop(held);
        let Some(mut new) = new else { return };
        loop {
            let one = tokio::select! {
                one = new.recv() => one,
                () = sender.closed() => return,
            };
            let Some(one) = one else { return };
            if wanted(&one) && sender.send(Ok(convert(one))).await.is_err() {
                return;
            }
        }
    });
    Box::pin(ReceiverStream::new(receiver))
}

#[tonic::async_trait]
impl Events for EventsService {
    type WatchEventsStream = Replies<Event>;
    type ReadLogsStream = Replies<LogLine>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let place = self.watch.grpc_place(&request)?;
        let request = request.into_inner();
        let (old, new) = self.supervisor.journal().follow(request.last as usize);
        let bytes = old.iter().map(|event| event.message.len() + ENVELOPE).sum();
        let old = (old, self.hold(bytes)?);
        let names = request.plugins;
        let wanted = move |event: &Arc<plugin::Event>| {
            names.is_empty() || names.iter().any(|name| **name == *event.plugin)
        };
        let new = request.follow.then_some(new);
        Ok(Response::new(stream(old, new, place, wanted, event)))
    }

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let place = self.watch.grpc_place(&request)?;
        let request = request.into_inner();
        let handle =
            self.supervisor.plugin(&request.plugin).ok_or_else(|| not_found(&request.plugin))?;
        let new = request.follow.then(|| handle.logs().follow());
        let old = handle.logs().last(request.last as usize);
        let bytes = old.iter().map(|line| line.text.len() + ENVELOPE).sum();
        let old = (old, self.hold(bytes)?);
        let name = request.plugin;
        let convert = move |line: plugin::LogLine| LogLine {
            time: line.time.to_string(),
            plugin: name.clone(),
            generation: line.generation,
            stream: line.stream.as_str().to_owned(),
            level: line.level.unwrap_or_default().to_owned(),
            text: line.text.to_string(),
            dropped: line.dropped,
        };
        Ok(Response::new(stream(old, new, place, |_| true, convert)))
    }

    async fn list_crashes(
        &self,
        request: Request<ListCrashesRequest>,
    ) -> Result<Response<ListCrashesResponse>, Status> {
        let request = request.into_inner();
        let plugin = (!request.plugin.is_empty()).then_some(request.plugin);
        let limit = if request.limit == 0 { 50 } else { request.limit as usize };
        let store = self.supervisor.store().clone();
        // The daemon asks the store, too: clients leave room for it.
        let turn = self.asking.clone().acquire_owned().await;
        // The store may be slow; the gateway's thread is not the one to wait.
        let crashes = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            store.database.crashes(plugin, limit)
        });
        let crashes = crashes.await.ok().flatten().ok_or_else(|| {
            Status::unavailable("the store does not answer now (`stockade status` says why)")
        })?;
        Ok(Response::new(ListCrashesResponse { crashes: crashes.into_iter().map(crash).collect() }))
    }
}

pub(crate) fn event(event: Arc<plugin::Event>) -> Event {
    Event {
        sequence: event.sequence,
        time: event.time.to_string(),
        plugin: event.plugin.to_string(),
        generation: event.generation,
        kind: event.kind.as_str().to_owned(),
        state: event.state.to_owned(),
        substate: event.substate.to_owned(),
        message: event.message.clone(),
        cause: event.cause.to_owned(),
    }
}

fn crash(record: store::CrashRecord) -> CrashRecord {
    CrashRecord {
        id: record.id,
        plugin: record.plugin,
        generation: record.generation,
        time: record.time,
        cause: record.cause,
        reason: record.reason,
        exit_code: record.exit_code,
        signal: record.signal,
        core_dumped: record.core_dumped,
        uptime_seconds: record.uptime_seconds,
        peak_memory_bytes: record.peak_memory_bytes,
        cpu_seconds: record.cpu_seconds,
        calls: record
            .calls
            .into_iter()
            .map(|call| CallInFlight {
                call_id: call.call_id,
                tool: call.tool,
                input_digest: call.input_digest,
                running_ms: call.running_ms,
            })
            .collect(),
        last_progress: record.last_progress,
        stderr_tail: record.stderr_tail,
        backtrace: record.backtrace,
        traceback: record.traceback,
        version: record.version,
        pid: record.pid,
    }
}
