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

use super::{HostServices, filter};
use crate::{
    calls::{CallError, Calls, ToolCall},
    capacity::limits,
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

impl<T: Default> Answer<T> {
    fn none(kind: &str, text: impl Into<String>) -> Self {
        Answer { result: T::default(), why: Some((kind.to_owned(), text.into())) }
    }

    fn of(error: &CallError) -> Self {
        Self::none(error.error_type(), error.to_string())
    }
}

/// A simulation's configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Built {
    /// What it is.
    pub config: Map<String, Value>,
    /// Whose parts are in it, in the order of their priority.
    pub applied: Vec<String>,
    /// Whose are not, and why.
    pub skipped: Vec<(String, String)>,
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

    /// True only if the condition ran and said so.
    pub async fn evaluate_condition(
        &self,
        id: &str,
        context: Map<String, Value>,
        workspace: &str,
        enabled: Enabled,
        timeout: Option<Duration>,
    ) -> Answer<bool> {
        let shown = limits::cut(id, limits::KEY);
        let unknown =
            || Answer::none("UnknownCondition", format!("there is no condition {shown:?}"));
        let timeout = bounded(timeout);
        let deadline = Instant::now() + timeout;
        let parts = id.strip_prefix(PLUGIN_PREFIX).and_then(|rest| rest.split_once(':'));
        let Some((plugin, name)) = parts else { return unknown() };
        if let Some(why) = self.disabled(plugin, workspace, &enabled) {
            return Answer::none("DisabledInWorkspace", why);
        }
        let calls = self.calls().await;
        let session = match calls.session_of(plugin, timeout).await {
            Ok(session) => session,
            Err(CallError::PluginNotFound(_)) => return unknown(),
            Err(error) => return Answer::of(&error),
        };
        let Some(condition) = session.registered.condition(name) else { return unknown() };
        if let Some(key) = condition.required_context.iter().find(|key| !context.contains_key(*key))
        {
            let text = format!("the condition needs {key:?} in its context");
            return Answer::none("MissingContext", text);
        }
        let context = context_for(&session.manifest, context);
        let args = to_bytes(&json!({ "context": context }));
        let left = deadline.saturating_duration_since(Instant::now());
        let mut call = call((plugin, name), Kind::Condition, args, workspace, left);
        call.enabled_plugins = enabled;
        match calls.run(call).await.result {
            Ok(success) => Answer { result: &success.result[..] == b"true", why: None },
            Err(error) => Answer::of(&error),
        }
    }

    /// What the effect gave; null if it did not run.
    pub async fn apply_effect(
        &self,
        id: &str,
        context: Map<String, Value>,
        params: Map<String, Value>,
        workspace: &str,
        enabled: Enabled,
        timeout: Option<Duration>,
    ) -> Answer<Value> {
        let shown = limits::cut(id, limits::KEY);
        let unknown = || Answer::none("UnknownEffect", format!("there is no effect {shown:?}"));
        let timeout = bounded(timeout);
        let deadline = Instant::now() + timeout;
        let parts = id.strip_prefix(EFFECT_PREFIX).and_then(|rest| rest.split_once(':'));
        let Some((plugin, name)) = parts else { return unknown() };
        if let Some(why) = self.disabled(plugin, workspace, &enabled) {
            return Answer::none("DisabledInWorkspace", why);
        }
        let calls = self.calls().await;
        let session = match calls.session_of(plugin, timeout).await {
            Ok(session) => session,
            Err(CallError::PluginNotFound(_)) => return unknown(),
            Err(error) => return Answer::of(&error),
        };
        let Some(effect) = session.registered.effect(name) else { return unknown() };
        let context = context_for(&session.manifest, context);
        let mut all = effect.default_params.clone();
        all.extend(params);
        let args = to_bytes(&json!({ "context": context, "params": all }));
        let left = deadline.saturating_duration_since(Instant::now());
        let mut call = call((plugin, name), Kind::Effect, args, workspace, left);
        call.enabled_plugins = enabled;
        match calls.run(call).await.result {
            Ok(success) if !success.attachments.is_empty() => {
                Answer::none("InvalidResult", "the effect returned bytes; it must be JSON")
            }
            Ok(success) => Answer {
                result: serde_json::from_slice(&success.result).unwrap_or_default(),
                why: None,
            },
            Err(error) => Answer::of(&error),
        }
    }

    /// The providers' configurations in ascending priority, each over the ones
    /// before it, all of them under `base.simulationConfig`: what the user
    /// configured is never overridden. `base` is a `behavior` object; None = the
    /// workspace's own.
    ///
    /// # Errors
    /// `base` is not such an object.
    pub async fn build_simulation_config(
        &self,
        base: Option<Map<String, Value>>,
        workspace: &str,
        enabled: Enabled,
    ) -> Result<Built, String> {
        let base = base.unwrap_or_else(|| {
            self.data().workspaces.get(workspace).map(|one| one.behavior()).unwrap_or_default()
        });
        let own = enabled_plugins(&base).map_err(|error| error.to_string())?;
        let enabled = enabled.or(own.map(Arc::new));
        let user = match base.get("simulationConfig") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(user)) => user.clone(),
            Some(_) => return Err("base.simulationConfig must be an object".to_owned()),
        };
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
        // Written once, whoever is asked; a few at a time, all within one time.
        let args = to_bytes(&json!({ "base": base }));
        let until = Instant::now() + TIMEOUTS.1;
        let asked: Vec<_> = providers
            .iter()
            .map(|(_, plugin, name)| {
                let place = (workspace, until);
                self.simulation_config(&calls, (plugin, name), args.clone(), place, &enabled)
            })
            .collect();
        let answers: Vec<_> = futures_util::stream::iter(asked).buffered(TOGETHER).collect().await;
        let mut built = Built::default();
        for ((_, plugin, name), answer) in providers.iter().zip(answers) {
            let id = super::names::full(plugin, name);
            match answer {
                Ok(config) => {
                    merge(&mut built.config, config);
                    built.applied.push(id);
                }
                Err(why) => built.skipped.push((id, why)),
            }
        }
        merge(&mut built.config, user);
        Ok(built)
    }

    async fn simulation_config(
        &self,
        calls: &Calls,
        id: (&String, &String),
        args: Bytes,
        (workspace, until): (&str, Instant),
        enabled: &Enabled,
    ) -> Result<Map<String, Value>, String> {
        let kind = Kind::SimulationConfig;
        let timeout = until.saturating_duration_since(Instant::now());
        let mut call = call((id.0, id.1), kind, args, workspace, timeout);
        call.enabled_plugins.clone_from(enabled);
        let success = calls.run(call).await.result;
        let success = success.map_err(|error| format!("{}: {error}", error.error_type()))?;
        if success.result.len() > limits::CONTEXT {
            return Err(format!("it returned more than {} bytes", limits::CONTEXT));
        }
        serde_json::from_slice(&success.result)
            .map_err(|_| "it did not return an object".to_owned())
    }
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
