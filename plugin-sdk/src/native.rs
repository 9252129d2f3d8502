//! Runs a Rust [`Plugin`]: typed tools on threads of their own, async ones on
//! the reader's runtime.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, OnceLock},
    task::Poll,
};

use futures_util::FutureExt as _;
use tokio::sync::oneshot;

use crate::{
    Error, InitContext, Plugin, Tools,
    extensions::Extensions,
    fatal::during_call,
    guest::{Call, CallKind, Failure, Guest, InitReady, Kind, Pong, Reply, Start},
    pool::Pool,
    tools::{self, Handler, Outcome},
};

/// One plugin written in Rust.
pub(crate) struct Native<P> {
    plugin: OnceLock<Arc<P>>,
    tools: HashMap<String, Handler<P>>,
    ready: InitReady,
    extensions: Extensions<P>,
    pool: Pool,
}

impl<P: Plugin> Native<P> {
    pub(crate) fn new() -> Arc<Self> {
        let mut tools = Tools::new();
        P::tools(&mut tools);
        Arc::new(Native {
            plugin: OnceLock::new(),
            ready: InitReady {
                tools: tools.list.iter().map(|tool| tool.spec.clone()).collect(),
                conditions: tools.extensions.conditions.clone(),
                effects: tools.extensions.effects.clone(),
                simulation_configs: tools.extensions.simulation_configs.clone(),
                event_handlers: tools.extensions.event_handlers.clone(),
                providers: tools.extensions.providers.clone(),
            },
            extensions: tools.extensions,
            tools: tools.list.into_iter().map(|tool| (tool.spec.name, tool.handler)).collect(),
            pool: Pool::default(),
        })
    }

    /// Runs what is not a tool.
    fn extend(self: &Arc<Self>, call: Call) {
        if let Some(plugin) = self.plugin.get()
            && let Ok(Some(run)) = catch_unwind(AssertUnwindSafe(|| {
                let what = (call.kind, call.tool.as_str());
                self.extensions.start(plugin, what, &call.args, &call.context)
            }))
        {
            let run = AssertUnwindSafe(run).catch_unwind();
            let run =
                async move { run.await.unwrap_or_else(|panic| Err(tools::panicked(&*panic))) };
            return drive(run, call.reply);
        }
        let native = self.clone();
        self.pool.run(move || {
            let Call { kind, events, tool, args, context, reply, .. } = call;
            let Some(plugin) = native.plugin.get() else {
                return reply.send(Err(Error::new("NotRegistered", "the plugin is not loaded")));
            };
            let outcome = during_call(reply.id(), || {
                native.extensions.run(plugin, (kind, &tool), &args, events, &context)
            });
            reply.send(outcome);
        });
    }

    /// `init` and `validate`, a panic in either caught.
    fn load(&self, context: &InitContext) -> Result<(), Box<Failure>> {
        let failed = |kind, error| Box::new(Failure { kind, error, watch: Vec::new() });
        let made = catch_unwind(AssertUnwindSafe(|| P::init(context)))
            .unwrap_or_else(|panic| Err(tools::panicked(&*panic)));
        let plugin = made.map_err(|error| failed(Kind::Init, error))?;
        catch_unwind(AssertUnwindSafe(|| plugin.validate()))
            .unwrap_or_else(|panic| Err(tools::panicked(&*panic)))
            .map_err(|error| failed(Kind::Validate, error))?;
        let _ = self.plugin.set(Arc::new(plugin));
        Ok(())
    }
}

/// Short work is done at once; what waits becomes a task.
fn drive(run: impl Future<Output = Outcome> + Send + 'static, reply: Reply) {
    let (mut run, id) = (Box::pin(run), reply.id());
    let mut poll =
        move |context: &mut std::task::Context<'_>| during_call(id, || run.as_mut().poll(context));
    let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
    if let Poll::Ready(outcome) = poll(&mut nobody) {
        return reply.send(outcome);
    }
    tokio::spawn(async move { reply.send(std::future::poll_fn(poll).await) });
}

impl<P: Plugin> Guest for Native<P> {
    const SDK: &'static str = concat!("rust/", env!("CARGO_PKG_VERSION"));

    fn start(self: &Arc<Self>, start: Start) {
        let native = self.clone();
        self.pool.run(move || match native.load(&start.context) {
            Ok(()) => start.ready(native.ready.clone()),
            Err(failure) => start.failed(*failure),
        });
    }

    fn invoke(self: &Arc<Self>, call: Call) {
        if call.kind != CallKind::Tool {
            return self.extend(call);
        }
        let Call { tool, args, attachments, context, reply, .. } = call;
        let (Some(plugin), Some(handler)) = (self.plugin.get(), self.tools.get(&tool)) else {
            return reply.send(Err(Error::new("ToolNotFound", format!("no tool {tool:?}"))));
        };
        let (plugin, id) = (plugin.clone(), reply.id());
        match handler.clone() {
            Handler::Blocking(handler) => self.pool.run(move || {
                let outcome = during_call(id, || {
                    tools::run_blocking(&*handler, &plugin, &args, attachments, &context)
                });
                reply.send(outcome);
            }),
            Handler::Async(handler) => {
                drive(tools::run_async(handler, plugin, args, attachments, context), reply);
            }
        }
    }

    /// Blocking tools run in the pool; the reader itself is where async ones do.
    fn ping(self: &Arc<Self>, pong: Pong) {
        if self.tools.values().any(|tool| matches!(tool, Handler::Blocking(_))) {
            self.pool.run(move || pong.send());
        } else {
            pong.send();
        }
    }

    fn stop(self: &Arc<Self>, done: oneshot::Sender<()>) {
        let native = self.clone();
        self.pool.run(move || {
            if let Some(plugin) = native.plugin.get() {
                let _ = catch_unwind(AssertUnwindSafe(|| plugin.shutdown()));
            }
            drop(done);
        });
    }
}
