//! Conditions, effects and simulation configuration: asked of plugins by servers.
//! Whatever a plugin does, the answer is false, null, or without its part.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use serde_json::{Map, Value, json};
use stockade_proto::worker::invoke::Kind;
use tokio::sync::Mutex;

use super::{HostServices, filter};
use crate::{
    calls::{CallError, Calls, ToolCall},
    capacity::{Account, Lane, QUICK_VALUES, is_quick, limits, read_exactly, weigh},
    manifest::Manifest,
    store::{check_workspace, enabled_plugins},
};

/// Before the names of conditions, providers and configurations.
pub const PLUGIN_PREFIX: &str = "plugin:";
/// Before the names of effects.
pub const EFFECT_PREFIX: &str = "effect:plugin:";

/// Configurations that are asked for at once.
const TOGETHER: usize = 16;
/// Bounds of a time-out; the greater is also the usual one.
const TIMEOUTS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_millis(500));

/// An answer, and why it is the empty one.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer<T> {
    /// False or null when it did not run.
    pub result: T,
    /// Why not: its class and what there is to say.
    pub why: Option<(String, String)>,
}

impl<T> Answer<T> {
    fn none(empty: T, kind: &str, text: impl Into<String>) -> Self {
        Answer { result: empty, why: Some((kind.to_owned(), text.into())) }
    }
}

/// Why something was not asked, or not answered: its class and what there is to say.
type Why = (String, String);

fn why(kind: &str, text: impl Into<String>) -> Why {
    (kind.to_owned(), text.into())
}

fn failed(error: &CallError) -> Why {
    why(error.error_type(), error.to_string())
}

/// A simulation's configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Built {
    /// What it is: the text of a JSON object.
    pub config: Bytes,
    /// Whose parts are in it, in the order of their priority.
    pub applied: Vec<String>,
    /// Whose parts are not, and why.
    pub skipped: Vec<(String, String)>,
}

/// Why a simulation's configuration was not built.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbuilt {
    /// What was asked for is not as it should be.
    #[error("{0}")]
    Invalid(String),
    /// There is too much to do; later there may not be.
    #[error("{0}")]
    Overloaded(String),
}

impl From<String> for Unbuilt {
    fn from(why: String) -> Self {
        Unbuilt::Invalid(why)
    }
}

/// A list of plugins that may run, instead of the workspace's.
pub(super) type Enabled = Option<Arc<BTreeSet<String>>>;

fn bounded(timeout: Option<Duration>) -> Duration {
    timeout.filter(|timeout| !timeout.is_zero()).unwrap_or(TIMEOUTS.1).clamp(TIMEOUTS.0, TIMEOUTS.1)
}

/// The context as this plugin may see it.
fn context_for(manifest: &Manifest, context: Map<String, Value>) -> Map<String, Value> {
    match manifest.remote() {
        Some(remote) => filter::context(manifest, remote, context),
        None => context,
    }
}

fn call(id: (&str, &str), kind: Kind, args: Bytes, workspace: &str, timeout: Duration) -> ToolCall {
    ToolCall {
        plugin: id.0.to_owned(),
        tool: id.1.to_owned(),
        kind,
        args,
        workspace: workspace.to_owned(),
        timeout: Some(timeout),
        ..ToolCall::default()
    }
}

/// In whose turn a client's texts are read.
#[derive(Clone, Debug)]
pub struct Turn {
    /// The crew's lane.
    pub lane: Lane,
    /// Held while a large one is read: the client has one read at a time.
    pub one: Arc<Mutex<()>>,
    /// Held while a large configuration is built, which keeps its texts meanwhile.
    pub building: Arc<Mutex<()>>,
    /// Pays for what is kept; None: it is not known who does.
    pub account: Option<Account>,
}

impl HostServices {
    /// The plugin may run here; else why not.
    fn disabled(&self, plugin: &str, workspace: &str, enabled: &Enabled) -> Option<String> {
        if !workspace.is_empty()
            && let Err(error) = check_workspace(workspace)
        {
            return Some(error.to_string());
        }
        let fine = match enabled {
            Some(enabled) => enabled.contains(plugin),
            None => self.data().workspaces.allows(workspace, plugin),
        };
        (!fine).then(|| format!("plugin '{plugin}' is not enabled here"))
    }

    /// Done here when it is quick, else by the crew in the turn of a lane.
    async fn aside<T: Send + 'static>(
        &self,
        lane: Lane,
        quick: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Why> {
        if quick {
            return Ok(work());
        }
        let done = self.calls().await.crew().run(lane, work).await;
        done.map_err(|overloaded| why("Overloaded", overloaded.to_string()))
    }

    /// The same, one after the other of a client.
    async fn in_turn<T: Send + 'static>(
        &self,
        turn: Turn,
        bytes: usize,
        quick: bool,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Why> {
        if quick {
            return Ok(work());
        }
        let _one = turn.one.lock().await;
        self.aside(turn.lane.for_bytes(bytes), false, work).await
    }

    /// True only if the condition ran and said so. `context` is the text of a JSON object;
    /// nothing is an empty one.
    pub async fn evaluate_condition(
        &self,
        turn: Turn,
        id: &str,
        context: Bytes,
        workspace: &str,
        enabled: Enabled,
        timeout: Option<Duration>,
    ) -> Answer<bool> {
        match self.evaluate(turn, id, context, workspace, enabled, bounded(timeout)).await {
            Ok(result) => Answer { result, why: None },
            Err((kind, text)) => Answer::none(false, &kind, text),
        }
    }

    async fn evaluate(
        &self,
        turn: Turn,
        id: &str,
        context: Bytes,
        workspace: &str,
        enabled: Enabled,
        timeout: Duration,
    ) -> Result<bool, Why> {
        let shown = limits::cut(id, limits::KEY);
        let unknown = || why("UnknownCondition", format!("there is no condition {shown:?}"));
        let deadline = Instant::now() + timeout;
        let parts = id.strip_prefix(PLUGIN_PREFIX).and_then(|rest| rest.split_once(':'));
        let (plugin, name) = parts.ok_or_else(unknown)?;
        if let Some(disabled) = self.disabled(plugin, workspace, &enabled) {
            return Err(why("DisabledInWorkspace", disabled));
        }
        let calls = self.calls().await;
        let session = calls.session_of(plugin, timeout).await;
        let session = session.map_err(|error| match error {
            CallError::PluginNotFound(_) => unknown(),
            error => failed(&error),
        })?;
        session.registered.condition(name).ok_or_else(unknown)?;
        let (quick, own) = (is_quick(&context), name.to_owned());
        let args = self.in_turn(turn, context.len(), quick, move || {
            let context = object("context", &context)?;
            let condition = session.registered.condition(&own);
            let needed = condition.into_iter().flat_map(|condition| &condition.required_context);
            if let Some(key) = needed.into_iter().find(|key| !context.contains_key(*key)) {
                let text = format!("the condition needs {key:?} in its context");
                return Err(why("MissingContext", text));
            }
            Ok(to_bytes(&json!({ "context": context_for(&session.manifest, context) })))
        });
        let args = args.await??;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut call = call((plugin, name), Kind::Condition, args, workspace, left);
        call.enabled_plugins = enabled;
        let success = calls.run(call).await.result.map_err(|error| failed(&error))?;
        Ok(&success.result[..] == b"true")
    }

    /// What the effect gave, as JSON text; null if it did not run. `context` and `params`
    /// are texts of JSON objects.
    pub async fn apply_effect(
        &self,
        turn: Turn,
        id: &str,
        (context, params): (Bytes, Bytes),
        workspace: &str,
        enabled: Enabled,
        timeout: Option<Duration>,
    ) -> Answer<Bytes> {
        match self.apply(turn, id, (context, params), workspace, enabled, bounded(timeout)).await {
            Ok(result) => Answer { result, why: None },
            Err((kind, text)) => Answer::none(Bytes::from_static(b"null"), &kind, text),
        }
    }

    async fn apply(
        &self,
        turn: Turn,
        id: &str,
        (context, params): (Bytes, Bytes),
        workspace: &str,
        enabled: Enabled,
        timeout: Duration,
    ) -> Result<Bytes, Why> {
        let shown = limits::cut(id, limits::KEY);
        let unknown = || why("UnknownEffect", format!("there is no effect {shown:?}"));
        let deadline = Instant::now() + timeout;
        let parts = id.strip_prefix(EFFECT_PREFIX).and_then(|rest| rest.split_once(':'));
        let (plugin, name) = parts.ok_or_else(unknown)?;
        if let Some(disabled) = self.disabled(plugin, workspace, &enabled) {
            return Err(why("DisabledInWorkspace", disabled));
        }
        let calls = self.calls().await;
        let session = calls.session_of(plugin, timeout).await;
        let session = session.map_err(|error| match error {
            CallError::PluginNotFound(_) => unknown(),
            error => failed(&error),
        })?;
        session.registered.effect(name).ok_or_else(unknown)?;
        let quick = is_quick(&context) && is_quick(&params);
        let own = name.to_owned();
        let args = self.in_turn(turn, context.len() + params.len(), quick, move || {
            let context = context_for(&session.manifest, object("context", &context)?);
            let effect = session.registered.effect(&own);
            let mut all = effect.map(|effect| effect.default_params.clone()).unwrap_or_default();
            all.extend(object("params", &params)?);
            Ok::<_, Why>(to_bytes(&json!({ "context": context, "params": all })))
        });
        let args = args.await??;
        let left = deadline.saturating_duration_since(Instant::now());
        let mut call = call((plugin, name), Kind::Effect, args, workspace, left);
        call.enabled_plugins = enabled;
        let success = calls.run(call).await.result.map_err(|error| failed(&error))?;
        match success.attachments.is_empty() {
            true => Ok(success.result),
            false => Err(why("InvalidResult", "the effect returned bytes; it must be JSON")),
        }
    }

    /// The providers' configurations in ascending priority, each over the ones
    /// before it, all of them under `base.simulationConfig`: what the user
    /// configured is never overridden. `base` is the text of a `behavior` object; None =
    /// the workspace's own. What takes long is done in the client's turn, one large
    /// configuration after the other.
    ///
    /// # Errors
    /// `base` is not such an object, or there is too much to do.
    pub async fn build_simulation_config(
        &self,
        turn: Turn,
        base: Option<Bytes>,
        workspace: &str,
        enabled: Enabled,
    ) -> Result<Built, Unbuilt> {
        if !workspace.is_empty() {
            check_workspace(workspace).map_err(|error| error.to_string())?;
        }
        let known = self.data().workspaces.get(workspace);
        let quick = base.as_ref().is_some_and(|base| is_quick(base));
        // Written once, whoever is asked.
        let own = known.as_ref().map_or(0, |known| known.size());
        let bytes = base.as_ref().map_or(own, Bytes::len);
        let _building = match bytes > limits::STEP {
            true => Some(turn.building.clone().lock_owned().await),
            false => None,
        };
        let read = self.in_turn(turn.clone(), bytes, quick, move || {
            let base = match base {
                Some(text) => object("base", &text).map_err(|(_, text)| text)?,
                None => known.map(|one| one.behavior()).unwrap_or_default(),
            };
            let own = enabled_plugins(&base).map_err(|error| error.to_string())?;
            // Read again when all have answered: what is read takes many times its text.
            let user = match base.get("simulationConfig") {
                None | Some(Value::Null) => Bytes::from_static(b"{}"),
                Some(user @ Value::Object(_)) => to_bytes(user),
                Some(_) => return Err("base.simulationConfig must be an object".to_owned()),
            };
            Ok((to_bytes(&json!({ "base": base })), own, user))
        });
        let overloaded = |(_, text): Why| Unbuilt::Overloaded(text);
        let (args, own, user) = read.await.map_err(overloaded)??;
        let paid = turn.account.as_ref().map(|account| account.charge(args.len() + user.len()));
        let _paid = paid.transpose().map_err(|why| Unbuilt::Overloaded(why.to_string()))?;
        let enabled = enabled.or(own.map(Arc::new));
        let calls = self.calls().await;
        let mut providers = Vec::new();
        for (plugin, handle) in &calls.registry().plugins {
            let snapshot = handle.snapshot();
            let Some(session) = &snapshot.session else { continue };
            if self.disabled(plugin, workspace, &enabled).is_some() {
                continue;
            }
            for one in &session.registered.simulation_configs {
                providers.push((one.priority, plugin.to_string(), one.name.clone()));
            }
        }
        providers.sort();
        // A few at a time, all within one time.
        let until = Instant::now() + TIMEOUTS.1;
        let asked: Vec<_> = providers
            .iter()
            .map(|(_, plugin, name)| {
                let place = (workspace, until);
                self.simulation_config(&calls, (plugin, name), args.clone(), place, &enabled)
            })
            .collect();
        let mut bytes = 0;
        let answers = futures_util::stream::iter(asked).buffered(TOGETHER).map(|answer| {
            let text: Bytes = answer?;
            let with = bytes + text.len();
            if with > limits::CONFIGURATION_BYTES {
                return Err(too_much(limits::CONFIGURATION_BYTES, "bytes"));
            }
            bytes = with;
            Ok(text)
        });
        let answers: Vec<Result<Bytes, String>> = answers.collect().await;
        let quick = {
            let all = answers.iter().flatten().chain([&args, &user]);
            all.clone().map(Bytes::len).sum::<usize>() <= limits::STEP
                && all.map(|text| weigh(text).values).sum::<usize>() <= QUICK_VALUES
        };
        let names =
            providers.into_iter().map(|(_, plugin, name)| super::names::full(&plugin, &name));
        let names: Vec<String> = names.collect();
        let bytes = bytes.max(answers.iter().flatten().map(Bytes::len).sum());
        let built = self.in_turn(turn, bytes, quick, move || {
            let mut config = Map::new();
            let mut built = Built::default();
            let mut values = 0;
            for (id, answer) in names.into_iter().zip(answers) {
                let read = answer.and_then(|text| {
                    let with = values + weigh(&text).values;
                    if with > limits::CONFIGURATION_VALUES {
                        return Err(too_much(limits::CONFIGURATION_VALUES, "values"));
                    }
                    values = with;
                    read_exactly::<Map<String, Value>>(&text)
                        .map_err(|error| format!("it did not return an object: {error}"))
                });
                match read {
                    Ok(one) => {
                        merge(&mut config, one);
                        built.applied.push(id);
                    }
                    Err(why) => built.skipped.push((id, why)),
                }
            }
            merge(&mut config, serde_json::from_slice(&user).unwrap_or_default());
            built.config = to_bytes(&Value::Object(config));
            built
        });
        built.await.map_err(overloaded)
    }

    async fn simulation_config(
        &self,
        calls: &Calls,
        id: (&String, &String),
        args: Bytes,
        (workspace, until): (&str, Instant),
        enabled: &Enabled,
    ) -> Result<Bytes, String> {
        let kind = Kind::SimulationConfig;
        let timeout = until.saturating_duration_since(Instant::now());
        let mut call = call((id.0, id.1), kind, args, workspace, timeout);
        call.enabled_plugins.clone_from(enabled);
        let success = calls.run(call).await.result;
        let success = success.map_err(|error| format!("{}: {error}", error.error_type()))?;
        match success.result.len() > limits::CONTEXT {
            true => Err(format!("it returned more than {} bytes", limits::CONTEXT)),
            false => Ok(success.result),
        }
    }
}

/// Why a plugin's part of a configuration is not in it.
fn too_much(most: usize, what: &str) -> String {
    format!("with it the answers of all plugins would have more than {most} {what}")
}

/// A JSON object from its text; nothing is an empty one.
fn object(what: &str, text: &Bytes) -> Result<Map<String, Value>, Why> {
    if text.is_empty() {
        return Ok(Map::new());
    }
    read_exactly(text)
        .map_err(|error| why("InvalidArguments", format!("{what} is no JSON object: {error}")))
}

fn to_bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).unwrap_or_default().into()
}

/// Objects within objects are merged, everything else is replaced.
fn merge(config: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (config.get_mut(&key), value) {
            (Some(Value::Object(inner)), Value::Object(over)) => merge(inner, over),
            (_, value) => {
                config.insert(key, value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_overrides_earlier_within_objects_too() {
        let object = |value: Value| value.as_object().cloned().unwrap();
        let mut config = object(json!({"a": 1, "b": {"x": 1, "y": 2}, "c": {"z": 1}}));
        merge(&mut config, object(json!({"a": 2, "b": {"y": 3}, "c": 4})));
        assert_eq!(Value::Object(config), json!({"a": 2, "b": {"x": 1, "y": 3}, "c": 4}));
        assert_eq!(bounded(None), Duration::from_millis(500));
        assert_eq!(bounded(Some(Duration::from_millis(1))), Duration::from_millis(100));
        assert_eq!(bounded(Some(Duration::from_secs(9))), Duration::from_millis(500));
    }
}
