//! Capabilities that servers and other plugins provide, each behind a permission,
//! each request and response checked against its schema.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::json;
use stockade_proto::{
    host as wire,
    worker::{self, invoke::Kind},
};
use tokio::sync::{mpsc, oneshot};
use tonic::Status;

use super::{HostServices, names};
use crate::{
    calls::{CallError, ToolCall},
    capacity::{Account, Charge, Held, Lane, limits, weigh},
    plugin::{Allowance, Chain, Provider},
};

/// A request that has no deadline gets this one.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes that a provider takes besides its texts, or the reason why it was refused.
const ENTRY: usize = 1 << 10;
/// Requests that may wait for a server, of all plugins and of one.
const WAITING: usize = limits::PROVIDER_QUEUE;
const OF_ONE: usize = WAITING / 4;

/// A provider as a server registers it.
pub type ServerProvider = worker::Provider;

/// What servers provide now, by name.
#[derive(Debug, Default)]
pub(super) struct Providers(Mutex<BTreeMap<String, Registered>>);

#[derive(Clone, Debug)]
struct Registered {
    provider: Arc<Provider>,
    asks: mpsc::Sender<Ask>,
    line: Line,
    registration: u64,
}

/// How many requests of each plugin wait for a server.
type Line = Arc<Mutex<BTreeMap<Arc<str>, usize>>>;

/// One request's place in it; free when dropped.
#[derive(Debug)]
pub struct Place {
    line: Line,
    plugin: Arc<str>,
}

impl Place {
    /// None: the plugin has its part of the line.
    fn take(line: &Line, plugin: &Arc<str>) -> Option<Self> {
        let mut waiting = line.lock().unwrap_or_else(PoisonError::into_inner);
        let own = waiting.entry(plugin.clone()).or_default();
        if *own == OF_ONE {
            return None;
        }
        *own += 1;
        Some(Place { line: line.clone(), plugin: plugin.clone() })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut waiting = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = waiting.get_mut(&self.plugin) else { return };
        *own -= 1;
        if *own == 0 {
            waiting.remove(&self.plugin);
        }
    }
}

/// A plugin's request to a server.
#[derive(Debug)]
pub struct Ask {
    /// Of this provider.
    pub name: String,
    /// JSON text, as its schema says.
    pub request: Bytes,
    /// Who asks.
    pub plugin: Arc<str>,
    /// Where.
    pub workspace: Arc<str>,
    /// In which call; empty outside of one.
    pub call_id: Arc<str>,
    /// How long the answer is waited for.
    pub timeout: Duration,
    /// JSON text, or the error's class and message.
    pub answer: oneshot::Sender<Result<Bytes, (String, String)>>,
    /// What the request takes of the budget.
    pub held: Held,
    /// Of its plugin, until the server takes it.
    pub place: Place,
}

/// A server's providers; gone when dropped.
#[derive(Debug)]
pub struct Registration {
    services: HostServices,
    id: u64,
    /// What was registered.
    pub names: Vec<String>,
    /// What was not, and why.
    pub refused: Vec<String>,
    /// For what is kept of them.
    _paid: Option<Charge>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.services.inner.providers.lock().retain(|_, one| one.registration != self.id);
    }
}

impl Providers {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Registered>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostServices {
    /// A server provides these from now on, and pays for them; the first of a name stays.
    ///
    /// # Errors
    /// The daemon has too much to do to compile their schemas, or no room for them.
    pub async fn provide(
        &self,
        offered: Vec<ServerProvider>,
        payer: Option<&Account>,
    ) -> Result<(Registration, mpsc::Receiver<Ask>), String> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (asks, receiver) = mpsc::channel(WAITING);
        let line = Line::default();
        // Whoever writes a schema chooses what it costs.
        let crew = self.calls().await.crew().clone();
        let lane = Lane::Operator(format!("registration {id}").into());
        let compiled = crew.run(lane, move || compile(offered)).await;
        let (compiled, bytes) = compiled.map_err(|why| why.to_string())?;
        let paid = payer.map(|payer| payer.charge(bytes)).transpose();
        let paid = paid.map_err(|why| why.to_string())?;
        let (mut taken, mut refused) = (Vec::new(), Vec::new());
        let mut list = self.inner.providers.lock();
        for (name, provider) in compiled {
            let is_full = list.len() >= limits::PROVIDERS;
            let entered = provider.and_then(|provider| match list.entry(name.clone()) {
                _ if is_full => {
                    Err(format!("servers may provide {} things together", limits::PROVIDERS))
                }
                Entry::Occupied(_) => Err("there is one of this name; the first stays".to_owned()),
                Entry::Vacant(place) => {
                    let (provider, asks, line) = (Arc::new(provider), asks.clone(), line.clone());
                    place.insert(Registered { provider, asks, line, registration: id });
                    Ok(())
                }
            });
            match entered {
                Ok(()) => taken.push(name),
                Err(why) => refused.push(format!("{name}: {why}")),
            }
        }
        drop(list);
        let (names, services) = (taken, self.clone());
        let registration = Registration { services, id, names, refused, _paid: paid };
        Ok((registration, receiver))
    }

    /// What servers provide now.
    pub fn server_providers(&self) -> Vec<Arc<Provider>> {
        self.inner.providers.lock().values().map(|one| one.provider.clone()).collect()
    }
}

/// A provider by its name, or why there is none.
type Compiled = (String, Result<Provider, String>);

/// Each, and bytes that all of them take.
fn compile(offered: Vec<ServerProvider>) -> (Vec<Compiled>, usize) {
    let mut allowance = Allowance::default();
    let mut bytes = 0;
    let compiled = offered.into_iter().map(|one| {
        let name = one.name.clone();
        let texts = one.description.len() + one.request_schema.len() + one.response_schema.len();
        bytes += ENTRY + texts.min(limits::DESCRIPTION + limits::SCHEMAS);
        let provider = names::of_host(&name).map_err(super::name_text);
        (name, provider.and_then(|()| Provider::new(one, &mut allowance)))
    });
    let compiled = compiled.collect();
    (compiled, bytes + allowance.compiled())
}

/// What a plugin asks.
pub(super) struct Asked {
    pub(super) plugin: Arc<str>,
    pub(super) workspace: Arc<str>,
    pub(super) call_id: Arc<str>,
    pub(super) timeout: Option<Duration>,
    pub(super) chain: Chain,
    pub(super) enabled: Option<Arc<BTreeSet<String>>>,
    pub(super) request: Bytes,
    pub(super) held: Held,
    /// Of who asks.
    pub(super) account: Account,
}

/// Which side of a provider's schemas.
#[derive(Clone, Copy)]
enum Side {
    Request,
    Response,
}

/// Checks a text in the turn of `lane`: by the crew unless that is quick. Who asks has
/// room for what it is read into.
async fn check(
    services: &HostServices,
    (lane, account): (&Arc<str>, &Account),
    provider: &Arc<Provider>,
    side: Side,
    text: &Bytes,
) -> Result<Result<(), String>, Status> {
    let check = move |provider: &Provider, text: &[u8]| match side {
        Side::Request => provider.check_request(text),
        Side::Response => provider.check_response(text),
    };
    if provider.is_quick(text) {
        return Ok(check(provider, text));
    }
    let (provider, text, account) = (provider.clone(), text.clone(), account.clone());
    let calls = services.calls().await;
    let work = move || {
        let room = account.charge(weigh(&text).bytes);
        let _room = room.map_err(|why| format!("there is no room to read it: {why}"))?;
        Ok::<_, String>(check(&provider, &text))
    };
    let done = match side {
        Side::Request => calls.crew().run(lane, work).await,
        Side::Response => calls.crew().conclude(lane, work).await,
    };
    let done = done.map_err(|why| Status::resource_exhausted(why.to_string()))?;
    done.map_err(Status::resource_exhausted)
}

/// `plugin:<id>:<name>` in its parts.
fn parts(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(super::PLUGIN_PREFIX)?.split_once(':')
}

/// What a plugin must hold to ask this provider; None = there is none. `wakes`: it may start
/// a plugin to find out.
pub(super) async fn permission(
    services: &HostServices,
    name: &str,
    patience: Option<Duration>,
    wakes: bool,
) -> Option<String> {
    if let Some(registered) = services.inner.providers.lock().get(name) {
        return Some(registered.provider.permission.clone());
    }
    let (plugin, name) = parts(name)?;
    let calls = services.calls().await;
    let session = match wakes {
        true => {
            let patience = patience.unwrap_or(PATIENCE).min(PATIENCE);
            calls.session_of(plugin, patience).await.ok()?
        }
        false => calls.registry().plugins.get(plugin)?.snapshot().session.clone()?,
    };
    session.registered.provider(name).map(|provider| provider.permission.clone())
}

/// Everything but one's own, by its full name.
pub(super) async fn list(services: &HostServices, asking: &str) -> Vec<(String, Arc<Provider>)> {
    let of_servers = services.server_providers().into_iter();
    let mut list: Vec<_> = of_servers.map(|one| (one.name.clone(), one)).collect();
    for (plugin, handle) in &services.calls().await.registry().plugins {
        let snapshot = handle.snapshot();
        let Some(session) = snapshot.session.as_ref().filter(|_| **plugin != *asking) else {
            continue;
        };
        let of_plugin = session.registered.providers.iter();
        list.extend(of_plugin.map(|one| (names::full(plugin, &one.name), one.clone())));
    }
    list
}

/// Bytes of descriptions and schemas in one list.
const DESCRIBED: usize = limits::HOST_MESSAGE / 2;

/// What descriptions and schemas take, in the list.
pub(super) fn described(list: &[(String, Arc<Provider>)]) -> usize {
    let each = list.iter().map(|(_, one)| {
        one.description.len() + one.request_schema.len() + one.response_schema.len()
    });
    each.sum::<usize>().min(DESCRIBED)
}

/// The list as it is told. When not all that is described fits, what may be asked comes
/// first.
pub(super) fn to_wire(
    list: Vec<(String, Arc<Provider>)>,
    granted: impl Fn(&str) -> bool,
) -> Vec<wire::Provider> {
    let mut told: Vec<wire::Provider> = list
        .iter()
        .map(|(name, one)| wire::Provider {
            name: name.clone(),
            permission: one.permission.clone(),
            granted: granted(&one.permission),
            ..wire::Provider::default()
        })
        .collect();
    let mut order: Vec<usize> = (0..told.len()).collect();
    order.sort_by_key(|index| !told[*index].granted);
    let mut left = DESCRIBED;
    for index in order {
        let (one, of) = (&mut told[index], &list[index].1);
        let bytes = of.description.len() + of.request_schema.len() + of.response_schema.len();
        let Some(rest) = left.checked_sub(bytes) else { continue };
        left = rest;
        one.description.clone_from(&of.description);
        one.request_schema.clone_from(&of.request_schema);
        one.response_schema.clone_from(&of.response_schema);
    }
    told
}

/// Asks a provider and checks both directions.
pub(super) async fn call(
    services: &HostServices,
    name: &str,
    asked: Asked,
) -> Result<Bytes, Status> {
    let of_server = services.inner.providers.lock().get(name).cloned();
    match of_server {
        Some(registered) => ask_server(services, name, &registered, asked).await,
        None => ask_plugin(services, name, asked).await,
    }
}

fn invalid(name: &str, why: String) -> Status {
    Status::invalid_argument(format!("provider {name}: {why}"))
}

fn bad_response(name: &str, why: &str) -> Status {
    Status::internal(format!("provider {name}: {why}"))
}

async fn ask_server(
    services: &HostServices,
    name: &str,
    registered: &Registered,
    asked: Asked,
) -> Result<Bytes, Status> {
    let (provider, lane, account) = (&registered.provider, asked.plugin.clone(), asked.account);
    let fits = check(services, (&lane, &account), provider, Side::Request, &asked.request).await?;
    fits.map_err(|why| invalid(name, why))?;
    let place = Place::take(&registered.line, &lane).ok_or_else(|| {
        let text = format!(
            "provider {name}: {OF_ONE} requests of this plugin wait for its server; make the next \
             one when one of them is answered"
        );
        Status::resource_exhausted(text)
    })?;
    let (answer, reply) = oneshot::channel();
    let timeout = asked.timeout.unwrap_or(PATIENCE);
    let ask = Ask {
        name: name.to_owned(),
        request: asked.request,
        plugin: asked.plugin,
        workspace: asked.workspace,
        call_id: asked.call_id,
        timeout,
        answer,
        held: asked.held,
        place,
    };
    registered.asks.try_send(ask).map_err(|_| {
        let text = format!("provider {name}: its server does not keep up, or is gone");
        Status::unavailable(text)
    })?;
    let late = || {
        let text = format!("provider {name} did not answer within {} ms", timeout.as_millis());
        Status::deadline_exceeded(text)
    };
    let reply = tokio::time::timeout(timeout, reply).await.map_err(|_| late())?;
    let gone = || Status::unavailable(format!("provider {name}: its server is gone"));
    let response = reply.map_err(|_| gone())?.map_err(|(kind, message)| {
        Status::unknown(format!("provider {name}: {kind}: {message}"))
    })?;
    let fits = check(services, (&lane, &account), provider, Side::Response, &response).await?;
    fits.map_err(|why| bad_response(name, &why))?;
    Ok(response)
}

async fn ask_plugin(services: &HostServices, name: &str, asked: Asked) -> Result<Bytes, Status> {
    let not_found = || Status::not_found(format!("there is no provider {name:?} now"));
    let (plugin, own) = parts(name).ok_or_else(not_found)?;
    let calls = services.calls().await;
    let session = calls.session_of(plugin, PATIENCE).await.map_err(|_| not_found())?;
    let provider = session.registered.provider(own).ok_or_else(not_found)?;
    let asks = (&asked.plugin, &asked.account);
    let fits = check(services, asks, provider, Side::Request, &asked.request).await?;
    fits.map_err(|why| invalid(name, why))?;
    // What was checked is JSON: it is put into the arguments as it is.
    let caller = json!(&*asked.plugin).to_string();
    let parts: [&[u8]; 5] =
        [b"{\"request\":", &asked.request, b",\"caller\":", caller.as_bytes(), b"}"];
    let args = parts.concat();
    let call = ToolCall {
        plugin: plugin.to_owned(),
        tool: own.to_owned(),
        args: args.into(),
        kind: Kind::Provider,
        timeout: Some(asked.timeout.unwrap_or(PATIENCE)),
        workspace: asked.workspace.to_string(),
        chain: asked.chain,
        enabled_plugins: asked.enabled,
        held: asked.held,
        ..ToolCall::default()
    };
    let success = calls.run(call).await.result.map_err(|error| {
        let text = format!("provider {name}: {}: {error}", error.error_type());
        match error {
            CallError::Timeout { .. } => Status::deadline_exceeded(text),
            CallError::CallCycle(_) => Status::failed_precondition(text),
            CallError::PluginUnavailable { .. } => Status::unavailable(text),
            _ => Status::unknown(text),
        }
    })?;
    if !success.attachments.is_empty() {
        return Err(bad_response(name, "the response has bytes in it; it must be JSON"));
    }
    let lane: Arc<str> = plugin.into();
    let asks = (&lane, &asked.account);
    let fits = check(services, asks, provider, Side::Response, &success.result).await?;
    fits.map_err(|why| bad_response(name, &why))?;
    Ok(success.result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_has_its_part_of_the_line_and_gives_it_back() {
        let line = Line::default();
        let (much, little): (Arc<str>, Arc<str>) = ("much".into(), "little".into());
        let taken: Vec<Place> = (0..WAITING).map_while(|_| Place::take(&line, &much)).collect();
        assert_eq!(taken.len(), OF_ONE);
        assert!(Place::take(&line, &little).is_some());
        drop(taken);
        assert!(Place::take(&line, &much).is_some());
        assert!(line.lock().unwrap().is_empty());
    }
}
