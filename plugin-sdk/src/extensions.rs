//! What a plugin adds to the host besides tools: conditions, effects, simulation
//! configuration, event handlers, providers.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use stockade_proto::worker::{
    Condition, Effect, EventBatch, EventHandler, Provider, SimulationConfig, invoke::Kind,
};

use crate::{
    Context, Error, Result, Tools,
    host::Event,
    tools::{AsyncOutcome, Outcome, panicked, schema},
};

type Run<P> = Arc<dyn Fn(&P, &[u8], &Context) -> Result<Vec<u8>> + Send + Sync>;
type AsyncRun<P> = Arc<dyn Fn(Arc<P>, &[u8], Context) -> AsyncOutcome + Send + Sync>;
type OnEvent<P> = Arc<dyn Fn(&P, &Event, &Context) -> Result<()> + Send + Sync>;

/// Who asks a provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asking {
    /// The plugin.
    pub plugin: String,
}

/// How something that was registered runs.
enum Runs<P> {
    /// On a thread of its own.
    Blocking(Run<P>),
    /// On the reader's runtime.
    Async(AsyncRun<P>),
}

/// What was registered.
pub(crate) struct Extensions<P> {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) effects: Vec<Effect>,
    pub(crate) simulation_configs: Vec<SimulationConfig>,
    pub(crate) event_handlers: Vec<EventHandler>,
    pub(crate) providers: Vec<Provider>,
    runs: HashMap<(Kind, String), Runs<P>>,
    handlers: HashMap<String, OnEvent<P>>,
}

impl<P> Default for Extensions<P> {
    fn default() -> Self {
        Extensions {
            conditions: Vec::new(),
            effects: Vec::new(),
            simulation_configs: Vec::new(),
            event_handlers: Vec::new(),
            providers: Vec::new(),
            runs: HashMap::new(),
            handlers: HashMap::new(),
        }
    }
}

#[derive(Deserialize)]
struct ConditionArgs<C> {
    context: C,
}

#[derive(Deserialize)]
struct EffectArgs<C, A> {
    context: C,
    params: A,
}

#[derive(Deserialize)]
struct ConfigArgs {
    base: Value,
}

#[derive(Deserialize)]
struct ProviderArgs<Q> {
    request: Q,
    caller: String,
}

fn bytes<R: Serialize>(value: &R) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec(value)?)
}

/// Each returns false when there is one of the name: the first stays. A name has
/// letters, digits, `_`, `-` and `.`; what needs a permission that is not granted is
/// left out, and the operator told.
impl<P: Send + Sync + 'static> Tools<P> {
    /// A condition, known as `plugin:<id>:<name>` (`behavior:extend_conditions`).
    /// Without a key of `required` in its context it is false, and not asked.
    pub fn condition<C, F>(
        &mut self,
        name: &str,
        description: &str,
        required: &[&str],
        run: F,
    ) -> bool
    where
        C: DeserializeOwned,
        F: Fn(&P, C, &Context) -> Result<bool> + Send + Sync + 'static,
    {
        let run: Run<P> = Arc::new(move |plugin, args, ctx| {
            let ConditionArgs { context } = serde_json::from_slice(args)?;
            bytes(&run(plugin, context, ctx)?)
        });
        self.extensions.condition(name, description, required, Runs::Blocking(run))
    }

    /// As [`Tools::condition`], async: it runs on the plugin's one runtime and must not
    /// block. The fastest kind.
    pub fn condition_async<C, F, O>(
        &mut self,
        name: &str,
        description: &str,
        required: &[&str],
        run: F,
    ) -> bool
    where
        C: DeserializeOwned,
        F: Fn(Arc<P>, C, Context) -> O + Send + Sync + 'static,
        O: Future<Output = Result<bool>> + Send + 'static,
    {
        let run: AsyncRun<P> = Arc::new(move |plugin, args, ctx| {
            let started = serde_json::from_slice(args)
                .map(|ConditionArgs { context }| run(plugin, context, ctx));
            Box::pin(async move { Ok((bytes(&started?.await?)?, Vec::new())) })
        });
        self.extensions.condition(name, description, required, Runs::Async(run))
    }

    /// An effect, known as `effect:plugin:<id>:<name>` (`behavior:extend_effects`).
    /// The default parameters lie under those of each application.
    pub fn effect<C, A, R, F>(
        &mut self,
        name: &str,
        description: &str,
        default_params: &Value,
        run: F,
    ) -> bool
    where
        C: DeserializeOwned,
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(&P, C, A, &Context) -> Result<R> + Send + Sync + 'static,
    {
        let run: Run<P> = Arc::new(move |plugin, args, ctx| {
            let EffectArgs { context, params } = serde_json::from_slice(args)?;
            bytes(&run(plugin, context, params, ctx)?)
        });
        self.extensions.effect(name, description, default_params, Runs::Blocking(run))
    }

    /// As [`Tools::effect`], async.
    pub fn effect_async<C, A, R, F, O>(
        &mut self,
        name: &str,
        description: &str,
        default_params: &Value,
        run: F,
    ) -> bool
    where
        C: DeserializeOwned,
        A: DeserializeOwned,
        R: Serialize,
        F: Fn(Arc<P>, C, A, Context) -> O + Send + Sync + 'static,
        O: Future<Output = Result<R>> + Send + 'static,
    {
        let run: AsyncRun<P> = Arc::new(move |plugin, args, ctx| {
            let started = serde_json::from_slice(args)
                .map(|EffectArgs { context, params }| run(plugin, context, params, ctx));
            Box::pin(async move { Ok((bytes(&started?.await?)?, Vec::new())) })
        });
        self.extensions.effect(name, description, default_params, Runs::Async(run))
    }

    /// A part of simulations' configuration (`behavior:configure_simulation`): an
    /// object. Those of a greater priority override the others, and what the user
    /// configured overrides all.
    pub fn simulation_config<R, F>(
        &mut self,
        name: &str,
        description: &str,
        priority: i32,
        run: F,
    ) -> bool
    where
        R: Serialize,
        F: Fn(&P, Value, &Context) -> Result<R> + Send + Sync + 'static,
    {
        let run: Run<P> = Arc::new(move |plugin, args, ctx| {
            let ConfigArgs { base } = serde_json::from_slice(args)?;
            bytes(&run(plugin, base, ctx)?)
        });
        if !self.extensions.add(Kind::SimulationConfig, name, Runs::Blocking(run)) {
            return false;
        }
        let (name, description) = (name.to_owned(), description.to_owned());
        self.extensions.simulation_configs.push(SimulationConfig { name, description, priority });
        true
    }

    /// Hears of events (`event:subscribe`): exact names, `plugin:other:*`, or `*`.
    /// What it returns as an error counts against the plugin and stops nobody.
    pub fn on_event<F>(&mut self, name: &str, patterns: &[&str], run: F) -> bool
    where
        F: Fn(&P, &Event, &Context) -> Result<()> + Send + Sync + 'static,
    {
        if self.extensions.handlers.contains_key(name) {
            return false;
        }
        self.extensions.handlers.insert(name.to_owned(), Arc::new(run));
        self.extensions.event_handlers.push(EventHandler {
            name: name.to_owned(),
            patterns: patterns.iter().map(|pattern| (*pattern).to_owned()).collect(),
        });
        true
    }

    /// Answers other plugins that hold `permission`, as `plugin:<id>:<name>`. The
    /// schemas of requests and responses are derived and checked by the host.
    pub fn provider<Q, R, F>(
        &mut self,
        name: &str,
        permission: &str,
        description: &str,
        run: F,
    ) -> bool
    where
        Q: DeserializeOwned + JsonSchema,
        R: Serialize + JsonSchema,
        F: Fn(&P, Q, &Asking, &Context) -> Result<R> + Send + Sync + 'static,
    {
        let run: Run<P> = Arc::new(move |plugin, args, ctx| {
            let ProviderArgs { request, caller } = serde_json::from_slice(args)?;
            bytes(&run(plugin, request, &Asking { plugin: caller }, ctx)?)
        });
        if !self.extensions.add(Kind::Provider, name, Runs::Blocking(run)) {
            return false;
        }
        self.extensions.providers.push(Provider {
            name: name.to_owned(),
            permission: permission.to_owned(),
            description: description.to_owned(),
            request_schema: schema::<Q>(true),
            response_schema: schema::<R>(false),
        });
        true
    }
}

impl<P> Extensions<P> {
    fn condition(
        &mut self,
        name: &str,
        description: &str,
        required: &[&str],
        run: Runs<P>,
    ) -> bool {
        let added = self.add(Kind::Condition, name, run);
        if added {
            self.conditions.push(Condition {
                name: name.to_owned(),
                description: description.to_owned(),
                required_context: required.iter().map(|key| (*key).to_owned()).collect(),
            });
        }
        added
    }

    fn effect(
        &mut self,
        name: &str,
        description: &str,
        default_params: &Value,
        run: Runs<P>,
    ) -> bool {
        let added = self.add(Kind::Effect, name, run);
        if added {
            self.effects.push(Effect {
                name: name.to_owned(),
                description: description.to_owned(),
                default_params: default_params.to_string().into(),
            });
        }
        added
    }

    /// What is to run on the reader's runtime; None = a thread's work.
    pub(crate) fn start(
        &self,
        plugin: &Arc<P>,
        (kind, name): (Kind, &str),
        args: &[u8],
        context: &Context,
    ) -> Option<AsyncOutcome> {
        match self.runs.get(&(kind, name.to_owned()))? {
            Runs::Async(run) => Some(run(plugin.clone(), args, context.clone())),
            Runs::Blocking(_) => None,
        }
    }

    fn add(&mut self, kind: Kind, name: &str, run: Runs<P>) -> bool {
        let key = (kind, name.to_owned());
        if self.runs.contains_key(&key) {
            return false;
        }
        self.runs.insert(key, run);
        true
    }

    /// Runs what was asked for; a panic is an error of it alone.
    pub(crate) fn run(
        &self,
        plugin: &P,
        (kind, name): (Kind, &str),
        args: &[u8],
        events: Option<EventBatch>,
        context: &Context,
    ) -> Outcome {
        if kind == Kind::Events {
            return self.hear(plugin, name, events.unwrap_or_default(), context);
        }
        let Some(Runs::Blocking(run)) = self.runs.get(&(kind, name.to_owned())) else {
            return Err(Error::new("NotRegistered", format!("nothing is registered as {name:?}")));
        };
        let ran = catch_unwind(AssertUnwindSafe(|| run(plugin, args, context)))
            .unwrap_or_else(|panic| Err(panicked(&*panic)));
        Ok((ran?, Vec::new()))
    }

    fn hear(&self, plugin: &P, name: &str, batch: EventBatch, context: &Context) -> Outcome {
        let Some(handler) = self.handlers.get(name) else {
            return Err(Error::new("NotRegistered", format!("no event handler {name:?}")));
        };
        let (mut failed, mut last) = (0, None);
        for event in batch.events {
            let event = Event::from(event);
            let context = context.in_workspace(&event.workspace);
            let heard = catch_unwind(AssertUnwindSafe(|| handler(plugin, &event, &context)))
                .unwrap_or_else(|panic| Err(panicked(&*panic)));
            if let Err(error) = heard {
                failed += 1;
                last = Some(error);
            }
        }
        Ok((crate::host::event_answer(failed, last), Vec::new()))
    }
}
