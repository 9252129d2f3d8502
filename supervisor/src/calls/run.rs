//! One call from arrival to outcome.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use stockade_proto::worker::{self as wire, invoke::Kind};
use tokio::sync::{mpsc, watch};

use super::{
    CallError, Outcome, Success,
    account::account,
    admission::admit,
    arguments::{Given, Prepared, check_extension, check_result, is_quick, is_quick_call, prepare},
    reply::paid_by,
    waiting::{LEAST, ready},
};
use crate::{
    capacity::{Account, Crew, Held, limits},
    plugin::{Attachment, Chain, Handle, Invocation, LeaseError, Running, Session, Update},
    registry::RegistrySnapshot,
    store::Data,
};

/// A call that somebody wants made.
#[derive(Clone, Debug, Default)]
pub struct ToolCall {
    /// Of this plugin.
    pub plugin: String,
    /// This tool.
    pub tool: String,
    /// JSON object text; empty = `{}`.
    pub args: Bytes,
    /// Binary arguments by name.
    pub attachments: Vec<Attachment>,
    /// The caller's deadline; None = the plugin's own.
    pub timeout: Option<Duration>,
    /// Empty when it has none.
    pub workspace: String,
    /// The plugins that may run, instead of the workspace's own list.
    pub enabled_plugins: Option<Arc<BTreeSet<String>>>,
    /// A tool's, or of something else that the plugin registered, by that name.
    pub kind: Kind,
    /// For an event handler.
    pub events: Option<wire::EventBatch>,
    /// The plugins through which it comes.
    pub chain: Chain,
    /// Arguments that are text are read as the type of their schema: for
    /// query parameters and command lines. An attachment without a name is the
    /// tool's only binary argument.
    pub loose: bool,
    /// What it takes of the daemon's budget.
    pub held: Held,
    /// Who pays for what it gives, from when the plugin has given it; None = the plugin.
    pub payer: Option<Account>,
}

/// Makes calls. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Calls {
    registry: watch::Receiver<Arc<RegistrySnapshot>>,
    max_request: usize,
    data: Arc<Data>,
    crew: Crew,
}

/// What is known of a call once it has been sent.
#[derive(Default)]
struct Sent {
    call_id: Arc<str>,
    generation: u64,
    delivered: bool,
}

/// What a streamed call tells, in order; the outcome is the last.
#[derive(Debug)]
pub enum CallEvent {
    /// Progress or an item.
    Update(Update),
    /// What came of it.
    Outcome(Box<Outcome>),
}

/// Events that may wait for their reader.
const WAITING: usize = 16;

type Sink = mpsc::Sender<CallEvent>;

impl Calls {
    pub(crate) fn new(
        registry: watch::Receiver<Arc<RegistrySnapshot>>,
        max_request: usize,
        data: Arc<Data>,
        crew: Crew,
    ) -> Self {
        Calls { registry, max_request, data, crew }
    }

    /// Does what is too large to be done where others wait.
    pub fn crew(&self) -> &Crew {
        &self.crew
    }

    /// The list of plugins now.
    pub fn registry(&self) -> Arc<RegistrySnapshot> {
        self.registry.borrow().clone()
    }

    /// The process of a plugin that takes calls, waiting for a start that is
    /// under way.
    ///
    /// # Errors
    /// There is none, or not within the time.
    pub async fn session_of(
        &self,
        plugin: &str,
        patience: Duration,
    ) -> Result<Arc<Session>, CallError> {
        let handle = self.registry.borrow().get(plugin).cloned();
        let handle = handle.ok_or_else(|| CallError::PluginNotFound(plugin.to_owned()))?;
        if let Some(session) = ready(&handle.snapshot()) {
            return Ok(session);
        }
        let started = Instant::now();
        let tool: Arc<str> = Arc::default();
        let (handle, tool, crew) = (&handle, &tool, &self.crew);
        let attempt = Attempt { handle, tool, started, updates: None, payer: None, crew };
        attempt.session(Some(started + patience)).await
    }

    /// Makes the call. Dropping the future cancels it.
    pub async fn run(&self, call: ToolCall) -> Outcome {
        self.run_to(call, None).await
    }

    /// Makes the call on a task of its own and tells what happens. Dropping the
    /// receiver cancels the call; a slow reader holds back the tool alone.
    pub fn stream(&self, call: ToolCall) -> mpsc::Receiver<CallEvent> {
        let (events, receiver) = mpsc::channel(WAITING);
        let calls = self.clone();
        tokio::spawn(async move {
            tokio::select! {
                outcome = calls.run_to(call, Some(events.clone())) => {
                    let _ = events.send(CallEvent::Outcome(Box::new(outcome))).await;
                }
                () = events.closed() => {}
            }
        });
        receiver
    }

    async fn run_to(&self, mut call: ToolCall, updates: Option<Sink>) -> Outcome {
        let started = Instant::now();
        // A name that has to be cut is nobody's.
        limits::cut_to(&mut call.plugin, limits::NAME);
        limits::cut_to(&mut call.tool, limits::NAME);
        let plugin: Arc<str> = std::mem::take(&mut call.plugin).into();
        let tool: Arc<str> = std::mem::take(&mut call.tool).into();
        let handle = self.registry.borrow().get(&plugin).cloned();
        let (mut sent, kind, payer) = (Sent::default(), call.kind, call.payer.take());
        let result = match &handle {
            None => Err(CallError::PluginNotFound(plugin.to_string())),
            Some(handle) => match admit(&self.data, &call, &plugin) {
                Ok(()) => {
                    let (tool, payer, crew) = (&tool, payer.as_ref(), &self.crew);
                    let attempt = Attempt { handle, tool, started, updates, payer, crew };
                    attempt.run(call, self.max_request, &mut sent).await
                }
                Err(error) => Err(error),
            },
        };
        let duration = started.elapsed();
        if let Some(handle) = handle
            && sent.delivered
        {
            account(&handle, kind, &tool, &result, duration);
        }
        let result = result.map_err(|error| match error {
            CallError::PluginUnavailable { state, .. } if self.registry.borrow().draining => {
                let reason = "The daemon is ending. Ask the next one.".to_owned();
                let retry_after = Some(Duration::from_secs(1));
                CallError::PluginUnavailable { state, reason, retry_after }
            }
            error => error,
        });
        let result = result.and_then(|success| {
            let held = paid_by(payer.as_ref(), success.held, &tool)?;
            Ok(Success { held, ..success })
        });
        let Sent { call_id, generation, delivered } = sent;
        Outcome { result, plugin, tool, duration, call_id, generation, delivered }
    }
}

/// One call on its way.
pub(super) struct Attempt<'c> {
    pub(super) handle: &'c Handle,
    pub(super) tool: &'c Arc<str>,
    pub(super) started: Instant,
    pub(super) updates: Option<Sink>,
    pub(super) payer: Option<&'c Account>,
    crew: &'c Crew,
}

impl Attempt<'_> {
    async fn run(
        self,
        call: ToolCall,
        max_request: usize,
        sent: &mut Sent,
    ) -> Result<Success, CallError> {
        let kind = call.kind;
        let size =
            call.args.len() + call.attachments.iter().map(|blob| blob.data.len()).sum::<usize>();
        if size > max_request {
            let message = format!(
                "The arguments are {size} bytes long; {max_request} are allowed. Send less, or \
                 raise max_request in stockade.toml."
            );
            return Err(CallError::PayloadTooLarge(message));
        }
        let deadline = call.timeout.map(|timeout| self.started + timeout.max(LEAST));
        let (running, session, own) = loop {
            if let Some(sent) = self.send(&call, deadline).await? {
                break sent;
            }
            // The process went away in between, and the plugin has not seen the
            // call: it waits for the successor.
        };
        *sent = Sent {
            call_id: running.public_id.clone(),
            generation: session.generation(),
            delivered: true,
        };
        self.handle.counters().touch(unix_ms());
        let success = self.finish(running, &session, deadline, own).await?;
        let tool = session.tools.get(self.tool).filter(|_| kind == Kind::Tool);
        let schema = tool.and_then(|tool| tool.output.as_ref());
        match is_quick(schema, &success.result) {
            true => check(&session, self.tool, kind, &success.result)?,
            false => {
                let checked = self.check_aside(&session, kind, success.result.clone());
                Box::pin(in_time(deadline, checked)).await?;
            }
        }
        Ok(success)
    }

    /// By the crew, in the plugin's turn.
    async fn check_aside(
        &self,
        session: &Arc<Session>,
        kind: Kind,
        result: Bytes,
    ) -> Result<(), CallError> {
        let (session, tool) = (session.clone(), self.tool.clone());
        let check = move || check(&session, &tool, kind, &result);
        self.crew.conclude(self.handle.name(), check).await?
    }

    /// By the crew, in the plugin's turn.
    async fn prepare_aside(
        &self,
        session: &Arc<Session>,
        given: Given,
    ) -> Result<Prepared, CallError> {
        let (session, name) = (session.clone(), self.tool.clone());
        let prepare = move || match session.tools.get(&name) {
            Some(tool) => prepare(tool, given, &session.account),
            None => Ok((given.args, given.attachments)),
        };
        self.crew.run(self.handle.name(), prepare).await?
    }

    /// Admission and the frame to the plugin; None when the session was closed
    /// before the frame was sent.
    async fn send(
        &self,
        call: &ToolCall,
        deadline: Option<Instant>,
    ) -> Result<Option<(Running, Arc<Session>, Instant)>, CallError> {
        // What rarely happens is boxed: a call's future stays small.
        let session = match ready(&self.handle.snapshot()) {
            Some(session) => session,
            None => Box::pin(self.session(deadline)).await?,
        };
        let (args, attachments) = match call.kind {
            Kind::Tool => {
                let Some(tool) = session.tools.get(self.tool) else {
                    return Err(CallError::ToolNotFound {
                        tool: self.tool.to_string(),
                        plugin: self.handle.name().to_string(),
                        available: session.tools.names(),
                    });
                };
                let given = Given {
                    args: call.args.clone(),
                    attachments: call.attachments.clone(),
                    loose: call.loose,
                };
                match is_quick_call(tool.input.as_ref(), &call.args, call.loose) {
                    true => prepare(tool, given, &session.account)?,
                    false => Box::pin(self.prepare_aside(&session, given)).await?,
                }
            }
            _ => (call.args.clone(), Vec::new()),
        };
        if !session.rate.take() {
            return Err(CallError::QueueFull(format!(
                "Plugin '{}' is asked more often than run.remote.rate allows. Retry, or raise it.",
                self.handle.name()
            )));
        }
        let patience = deadline
            .map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
        let lease = match session.try_lease() {
            Some(lease) => lease,
            None => match Box::pin(session.lease(patience)).await {
                Ok(lease) => lease,
                Err(LeaseError::Closed(Some(_))) => return Ok(None),
                Err(LeaseError::QueueTimeout)
                    if deadline.is_some_and(|deadline| deadline <= Instant::now()) =>
                {
                    let message = format!(
                        "No other call ended within the caller's deadline: {} run. Give it more \
                         time, or raise run.concurrency.",
                        session.manifest.concurrency
                    );
                    return Err(CallError::Timeout { message, cause: None });
                }
                Err(error) => return Err(self.not_leased(&session, error)),
            },
        };
        let now = Instant::now();
        let own = now + session.manifest.timeouts.call;
        let timeout = deadline.unwrap_or(own).min(own).saturating_duration_since(now);
        let invocation = Invocation {
            tool: self.tool.clone(),
            args,
            attachments,
            kind: call.kind,
            events: call.events.clone(),
            workspace: match call.workspace.is_empty() {
                true => Arc::default(),
                false => call.workspace.as_str().into(),
            },
            chain: call.chain.clone(),
            enabled: call.enabled_plugins.clone(),
            timeout: timeout.max(LEAST),
            held: call.held.clone(),
        };
        let Ok(running) = lease.invoke(invocation, self.updates.is_some()) else {
            return Ok(None);
        };
        Ok(Some((running, session, own)))
    }
}

/// The result is JSON, and what its schema says.
fn check(session: &Session, name: &str, kind: Kind, result: &Bytes) -> Result<(), CallError> {
    match session.tools.get(name).filter(|_| kind == Kind::Tool) {
        Some(tool) => check_result(tool, result, &session.account),
        None => check_extension(kind, name, result, &session.account),
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
}

/// The check of a result that has come, within the caller's time.
async fn in_time(
    deadline: Option<Instant>,
    checked: impl Future<Output = Result<(), CallError>>,
) -> Result<(), CallError> {
    let Some(deadline) = deadline else { return checked.await };
    tokio::time::timeout_at(deadline.into(), checked).await.unwrap_or_else(|_| {
        let message = "The tool answered, but its result could not be checked within the caller's \
                       deadline: many large results wait for it. Give it more time.";
        Err(CallError::Timeout { message: message.to_owned(), cause: None })
    })
}
