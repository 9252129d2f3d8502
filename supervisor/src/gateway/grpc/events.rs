//! `stockade.v1.Events`: events, logs, crash records.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use stockade_proto::v1::{
    CallInFlight, CrashRecord, Event, ListCrashesRequest, ListCrashesResponse, LogLine,
    ReadLogsRequest, WatchEventsRequest, events_server::Events,
};
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use super::plugins::not_found;
use crate::{
    Supervisor,
    gateway::{
        body::Reservation,
        door::Caller,
        follow::{Wish, follow},
        wanted::Wanted,
        watch::Watch,
        whole,
    },
    plugin, store,
};

pub(super) struct EventsService {
    supervisor: Supervisor,
    watch: Watch,
    asking: Arc<Semaphore>,
    /// Who operates the daemon does not wait for those who only read.
    operators: Arc<Semaphore>,
}

/// Questions of clients to the store at once, and of operators.
const ASKING: usize = 4;

impl EventsService {
    pub(super) fn new(supervisor: &Supervisor, watch: &Watch) -> Self {
        let places = || Arc::new(Semaphore::new(ASKING));
        EventsService {
            supervisor: supervisor.clone(),
            watch: watch.clone(),
            asking: places(),
            operators: places(),
        }
    }
}

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Events for EventsService {
    type WatchEventsStream = Replies<Event>;
    type ReadLogsStream = Replies<LogLine>;

    async fn watch_events(
        &self,
        request: Request<WatchEventsRequest>,
    ) -> Result<Response<Self::WatchEventsStream>, Status> {
        let place = self.watch.grpc_place_for(&request, &request.get_ref().plugins)?;
        let request = request.into_inner();
        let wish = Wish { last: request.last as usize, new: request.follow };
        let events = follow(self.supervisor.journal(), wish, place);
        let names = Wanted::new(request.plugins);
        let wanted = events.filter_map(move |one| {
            let wanted = names.has(&one.plugin);
            std::future::ready(wanted.then(|| Ok(event(one))))
        });
        Ok(Response::new(Box::pin(wanted)))
    }

    async fn read_logs(
        &self,
        request: Request<ReadLogsRequest>,
    ) -> Result<Response<Self::ReadLogsStream>, Status> {
        let place = self.watch.grpc_place(&request)?;
        let request = request.into_inner();
        let handle =
            self.supervisor.plugin(&request.plugin).ok_or_else(|| not_found(&request.plugin))?;
        let last = if request.last == 0 { usize::MAX } else { request.last as usize };
        let lines = follow(handle.logs(), Wish { last, new: request.follow }, place);
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
        Ok(Response::new(Box::pin(lines.map(move |line| Ok(convert(line))))))
    }

    async fn list_crashes(
        &self,
        request: Request<ListCrashesRequest>,
    ) -> Result<Response<ListCrashesResponse>, Status> {
        let reservation = request.extensions().get::<Reservation>().cloned();
        let of_operator = request.extensions().get::<Caller>().and_then(Caller::admin).is_some();
        let request = request.into_inner();
        let plugin = (!request.plugin.is_empty()).then_some(request.plugin);
        let limit = if request.limit == 0 { 50 } else { request.limit as usize };
        let store = self.supervisor.store().clone();
        // The daemon asks the store, too: clients leave room for it.
        let asking = if of_operator { &self.operators } else { &self.asking };
        let turn = asking.clone().acquire_owned().await;
        // The store may be slow; the gateway's thread is not the one to wait.
        let crashes = tokio::task::spawn_blocking(move || {
            let crashes = store.database.crashes(plugin, limit);
            crashes.map(|crashes| (crashes, turn))
        });
        let (crashes, _turn) = crashes.await.ok().flatten().ok_or_else(|| {
            Status::unavailable("the store does not answer now (`stockade status` says why)")
        })?;
        let make =
            move || ListCrashesResponse { crashes: crashes.into_iter().map(crash).collect() };
        whole::message(&self.supervisor, reservation, make).await
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
