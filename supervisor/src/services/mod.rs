//! What plugins may ask of us over their host channel, and what servers ask of
//! plugins besides tools. The caller is the channel itself; nothing in a message
//! says who it is.
//!
//! | file | what it is for |
//! |---|---|
//! | `channel`, `counted` | `stockade.host.v1.Host` of one process, and what its requests may hold |
//! | `asking` | calls of other plugins and of providers |
//! | `names`, `permits` | whose a name is; who may what, and how often it was tried |
//! | `kv`, `state` | keys and values; documents of entities |
//! | `bus`, `events`, `delivery` | events: queues, by a channel, to registered handlers |
//! | `journal` | log lines and metrics |
//! | `extensions`, `filter` | conditions, effects, simulation configuration |
//! | `providers` | capabilities of servers and of other plugins |

mod asking;
mod bus;
mod channel;
mod counted;
mod delivery;
mod events;
mod extensions;
mod filter;
mod journal;
mod kv;
mod names;
mod permits;
mod providers;
mod state;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use stockade_proto::{host::host_server::HostServer, inherited, socket::Socket};
use tokio::{runtime::Handle as Runtime, sync::SetOnce};

pub use bus::{Batch, Event};
pub use extensions::{Answer, Built, EFFECT_PREFIX, PLUGIN_PREFIX, Turn, Unbuilt};
pub use permits::{PermissionUse, PluginUse};
pub use providers::{Ask, Registration, ServerProvider};

use crate::{
    calls::Calls,
    capacity::{Account, Turns, frames::Frames, limits, read_through, weigh},
    plugin::{Caller, EventKind, HostChannel, HostHandler, Journal, Refused, Session, Stream},
    store::{Data, check_workspace},
};
use bus::{Bus, Subscriber};
use permits::Permits;
use providers::Providers;

/// Largest message of a plugin.
const MAX_MESSAGE: usize = limits::HOST_MESSAGE;

/// Everything that plugins and servers have of each other. Cheap to clone.
#[derive(Clone, Debug)]
pub struct HostServices {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    data: Arc<Data>,
    journal: Arc<Journal>,
    /// Where calls are carried.
    runtime: Runtime,
    /// Known once the registry has been started.
    calls: SetOnce<Calls>,
    permits: Permits,
    bus: Arc<Bus>,
    providers: Providers,
    /// Queues of registered event handlers: they outlive their processes.
    handlers: Mutex<Handlers>,
}

/// By plugin and handler.
type Handlers = HashMap<(Arc<str>, String), Arc<Subscriber>>;

impl HostServices {
    /// On the runtime that carries the calls.
    pub(crate) fn new(data: Arc<Data>, journal: Arc<Journal>, events: Account) -> Self {
        HostServices {
            inner: Arc::new(Inner {
                data,
                journal,
                runtime: Runtime::current(),
                calls: SetOnce::new(),
                permits: Permits::default(),
                bus: Arc::new(Bus::new(events)),
                providers: Providers::default(),
                handlers: Mutex::default(),
            }),
        }
    }

    /// From now on there are plugins to be called.
    pub(crate) fn open(&self, calls: Calls) {
        let _ = self.inner.calls.set(calls);
    }

    async fn calls(&self) -> Calls {
        self.inner.calls.wait().await.clone()
    }

    /// What is stored.
    pub fn data(&self) -> &Arc<Data> {
        &self.inner.data
    }

    /// A key as operators name it, in the plugin's own terms.
    ///
    /// # Errors
    /// It is no key of this plugin.
    pub fn check_key(plugin: &str, key: &str) -> Result<String, String> {
        names::own(plugin, key).map(str::to_owned).map_err(name_text)
    }

    /// `session/ID`, `npc/ID` or `world/ID`.
    ///
    /// # Errors
    /// It is none of them.
    pub fn check_entity(entity: &str) -> Result<(), String> {
        names::entity(entity).map(drop).map_err(name_text)
    }

    /// How a plugin has used its permissions.
    pub fn permission_use(&self, plugin: &str) -> PluginUse {
        self.inner.permits.of(plugin)
    }

    /// An event of the server's own: its number, and how many it was queued for.
    ///
    /// # Errors
    /// The name is in the namespace of plugins, or none; the payload is not JSON.
    pub fn emit(
        &self,
        name: &str,
        payload: bytes::Bytes,
        workspace: &str,
    ) -> Result<(u64, u32), String> {
        self.emit_checked(name, check_json(payload)?, workspace)
    }

    /// The same of a payload that has been [checked](check_json), where nobody waits for it.
    pub(crate) fn emit_checked(
        &self,
        name: &str,
        payload: bytes::Bytes,
        workspace: &str,
    ) -> Result<(u64, u32), String> {
        names::of_host(name).map_err(name_text)?;
        if !workspace.is_empty() {
            check_workspace(workspace).map_err(|error| error.to_string())?;
        }
        let enabled =
            |workspace: &str, plugin: &str| self.data().workspaces.allows(workspace, plugin);
        Ok(self.inner.bus.emit("host".into(), name, payload, workspace.into(), enabled))
    }

    /// Events from now on, for a server.
    ///
    /// # Errors
    /// A pattern is none.
    pub fn watch(&self, patterns: Vec<String>) -> Result<Watch, String> {
        for pattern in &patterns {
            names::pattern(pattern).map_err(name_text)?;
        }
        let patterns = if patterns.is_empty() { vec!["*".to_owned()] } else { patterns };
        Ok(Watch {
            subscriber: self.inner.bus.subscribe("".into(), patterns),
            bus: self.inner.bus.clone(),
        })
    }

    /// Queued and lost events of a registered handler.
    pub fn handler_counts(&self, plugin: &str, handler: &str) -> (u64, u64) {
        let handlers = self.inner.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (Arc::from(plugin), handler.to_owned());
        handlers.get(&key).map_or((0, 0), |subscriber| subscriber.counts())
    }

    /// The queues of a new process's handlers; those that it does not have any
    /// more are gone.
    fn attach_handlers(&self, plugin: &Arc<str>, session: &Session) {
        let mut handlers = self.inner.handlers.lock().unwrap_or_else(PoisonError::into_inner);
        handlers.retain(|(owner, name), subscriber| {
            let stays = owner != plugin
                || session.registered.event_handlers.iter().any(|one| one.name == *name);
            if !stays {
                self.inner.bus.unsubscribe(subscriber);
            }
            stays
        });
        for handler in &session.registered.event_handlers {
            let mut patterns = Vec::new();
            for pattern in &handler.patterns {
                match names::pattern(pattern) {
                    Ok(()) => patterns.push(pattern.clone()),
                    Err(why) => {
                        let text = format!("event handler {:?}: {}", handler.name, name_text(why));
                        self.inner.journal.say(plugin, EventKind::Warning, text);
                    }
                }
            }
            let key = (plugin.clone(), handler.name.clone());
            if let Some(known) = handlers.get(&key) {
                known.set_patterns(patterns);
                continue;
            }
            let source = format!("plugin:{plugin}").into();
            let subscriber = self.inner.bus.subscribe(source, patterns);
            handlers.insert(key.clone(), subscriber.clone());
            let (services, bus) = (self.clone(), self.inner.bus.clone());
            let ((plugin, name), own) = (key.clone(), subscriber.clone());
            self.inner.runtime.spawn(async move {
                let calls = services.calls().await;
                delivery::run(calls, bus, plugin, name, subscriber).await;
                let mut handlers =
                    services.inner.handlers.lock().unwrap_or_else(PoisonError::into_inner);
                // A new process may have a new one.
                if handlers.get(&key).is_some_and(|known| Arc::ptr_eq(known, &own)) {
                    handlers.remove(&key);
                }
            });
        }
    }
}

/// Events for a server; ends when dropped.
#[derive(Debug)]
pub struct Watch {
    subscriber: Arc<Subscriber>,
    bus: Arc<Bus>,
}

impl Watch {
    /// The next events. Cancel-safe.
    pub async fn next(&self) -> Batch {
        self.subscriber.filled().await;
        self.subscriber.take()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.bus.unsubscribe(&self.subscriber);
    }
}

fn name_text(error: names::NameError) -> String {
    match error {
        names::NameError::Invalid(text) | names::NameError::Foreign(text) => text,
    }
}

/// JSON text; nothing is `null`.
pub(crate) fn check_json(text: bytes::Bytes) -> Result<bytes::Bytes, String> {
    if text.is_empty() {
        return Ok(bytes::Bytes::from_static(b"null"));
    }
    let values = weigh(&text).values;
    if values > limits::JSON_VALUES {
        return Err(format!("the value has {values} parts; {} are allowed", limits::JSON_VALUES));
    }
    // What nobody could read again is refused here.
    match read_through(&text) {
        Ok(()) => Ok(text),
        Err(error) => Err(format!("the value is not JSON: {error}")),
    }
}

impl HostHandler for HostServices {
    fn serve(&self, channel: Socket, caller: Caller) -> HostChannel {
        let account = caller.account.clone();
        let service = HostServer::new(channel::Channel::new(self.clone(), caller))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let service = counted::Counted { service, account };
        let channel = Turns::of_frames(channel, Frames::of_client());
        Box::pin(async move {
            let _ = inherited::serve_some(channel, service, limits::HOST_STREAMS as u32).await;
        })
    }

    fn opened(&self, caller: &Caller, session: &Arc<Session>, refused: Vec<Refused>) {
        let plugin: Arc<str> = caller.manifest.name.as_str().into();
        for Refused { permission, text } in refused {
            caller.logs.push(caller.generation, Stream::Supervisor, Some("warning"), &text);
            match permission {
                Some(permission) => {
                    self.inner.permits.refused(&self.inner.journal, &plugin, permission, &text);
                }
                None => self.inner.journal.say(&plugin, EventKind::Warning, text),
            }
        }
        self.attach_handlers(&plugin, session);
    }
}
