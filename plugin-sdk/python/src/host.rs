//! The host's services as Python calls them; `stockade._services` gives them their
//! shape. Each request waits without the interpreter's lock.

use std::{collections::BTreeMap, time::Duration};

use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::PyBytes,
};
use stockade_plugin_sdk::{
    Bytes, Error, Level,
    host::{Ask, Event, Host as SdkHost, Subscription},
    serde_json::{Value, value::RawValue},
};

use crate::{arguments, results};

/// The host, on behalf of a call or of the plugin itself.
#[pyclass(module = "stockade", frozen)]
pub(crate) struct Host {
    host: SdkHost,
    /// What a refusal looks like: `raise`, `warn`, `silent`, or as usual.
    on_denied: String,
    /// Empty = the call's.
    workspace: String,
}

/// A result, and bytes by name.
type CallParts<'py> = (Bound<'py, PyAny>, BTreeMap<String, Bound<'py, PyBytes>>);

/// JSON text of a value without bytes in it.
fn json(value: &Bound<'_, PyAny>) -> PyResult<Box<RawValue>> {
    let (text, blobs) = results::write(value)?;
    if let Some((name, _)) = blobs.first() {
        return Err(PyTypeError::new_err(format!("{name} is bytes: only JSON can be sent here")));
    }
    RawValue::from_string(String::from_utf8_lossy(&text).into_owned())
        .map_err(|error| PyTypeError::new_err(error.to_string()))
}

fn python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    arguments::from_json(py, &value.to_string())
}

/// The exception of `stockade._services` that an error is.
fn raised(py: Python<'_>, error: &Error) -> PyErr {
    let made = py
        .import("stockade._services")
        .and_then(|module| module.getattr("error"))
        .and_then(|make| make.call1((error.kind(), error.message())));
    match made {
        Ok(exception) => PyErr::from_value(exception),
        Err(error) => error,
    }
}

impl Host {
    pub(crate) fn new(host: SdkHost) -> Self {
        Host { host, on_denied: String::new(), workspace: String::new() }
    }

    fn send<T: Send + 'static>(&self, py: Python<'_>, ask: Ask<T>) -> PyResult<T> {
        let ask = match self.on_denied.as_str() {
            "raise" => ask.or_raise(),
            "warn" => ask.or_warn(),
            "silent" => ask.or_silent(),
            _ => ask,
        };
        let ask = ask.in_workspace(&self.workspace);
        py.detach(|| ask.wait()).map_err(|error| raised(py, &error))
    }
}

#[pymethods]
impl Host {
    /// The same with another way to refuse, or in another workspace.
    fn with_options(&self, on_denied: &str, workspace: &str) -> PyResult<Self> {
        if !["", "raise", "warn", "silent"].contains(&on_denied) {
            let text = format!("on_denied must be raise, warn or silent, not {on_denied:?}");
            return Err(PyValueError::new_err(text));
        }
        // What is not said stays as it was said before.
        let or = |said: &str, before: &str| match said {
            "" => before.to_owned(),
            said => said.to_owned(),
        };
        Ok(Host {
            host: self.host.clone(),
            on_denied: or(on_denied, &self.on_denied),
            workspace: or(workspace, &self.workspace),
        })
    }

    fn get_self<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let own = self.send(py, self.host.get_self())?;
        let value = stockade_plugin_sdk::serde_json::json!({
            "plugin": own.plugin, "version": own.version, "generation": own.generation,
            "data_dir": own.data_dir, "permissions": own.permissions,
            "capabilities": own.capabilities,
        });
        python(py, &value)
    }

    fn log(
        &self,
        py: Python<'_>,
        level: &str,
        message: &str,
        fields: BTreeMap<String, String>,
    ) -> PyResult<()> {
        let level = match level {
            "debug" => Level::Debug,
            "warning" | "warn" => Level::Warn,
            "error" => Level::Error,
            _ => Level::Info,
        };
        let fields: Vec<(&str, &str)> =
            fields.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        self.send(py, self.host.log(level, message, &fields))
    }

    fn has_permission(&self, py: Python<'_>, permission: &str) -> PyResult<bool> {
        self.send(py, self.host.has_permission(permission))
    }

    fn kv_get<'py>(&self, py: Python<'py>, key: &str) -> PyResult<Option<Bound<'py, PyAny>>> {
        match self.send(py, self.host.kv().get_raw(key))? {
            None => Ok(None),
            Some((data, true)) => Ok(Some(PyBytes::new(py, &data).into_any())),
            Some((data, false)) => {
                arguments::from_json(py, &String::from_utf8_lossy(&data)).map(Some)
            }
        }
    }

    fn kv_set(
        &self,
        py: Python<'_>,
        key: &str,
        value: &Bound<'_, PyAny>,
        ttl: Option<f64>,
    ) -> PyResult<()> {
        let set = match value.extract::<Vec<u8>>() {
            Ok(data) if is_bytes(value) => self.host.kv().set_bytes(key, Bytes::from(data)),
            _ => self.host.kv().set(key, &json(value)?),
        };
        let set = match ttl {
            Some(seconds) => {
                let ttl = Duration::try_from_secs_f64(seconds).ok().filter(|ttl| !ttl.is_zero());
                set.ttl(ttl.ok_or_else(|| {
                    PyValueError::new_err(format!("ttl={seconds}: a positive number of seconds"))
                })?)
            }
            None => set,
        };
        self.send(py, set.ask())
    }

    fn kv_delete(&self, py: Python<'_>, key: &str) -> PyResult<bool> {
        self.send(py, self.host.kv().delete(key))
    }

    fn kv_list(&self, py: Python<'_>, prefix: &str, after: &str) -> PyResult<(Vec<String>, bool)> {
        let keys = self.send(py, self.host.kv().list(prefix, after))?;
        Ok((keys.keys, keys.more))
    }

    fn kv_compare_and_set(
        &self,
        py: Python<'_>,
        key: &str,
        expected: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let some = |value: &Bound<'_, PyAny>| match value.is_none() {
            true => Ok(None),
            false => json(value).map(Some),
        };
        let (expected, value) = (some(expected)?, some(value)?);
        let ask = self.host.kv().compare_and_set(key, expected.as_ref(), value.as_ref());
        self.send(py, ask)
    }

    fn entity_get<'py>(
        &self,
        py: Python<'py>,
        entity: &str,
        path: &str,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let value: Option<Value> = self.send(py, self.host.entity(entity).get(path))?;
        value.map(|value| python(py, &value)).transpose()
    }

    /// `change`: flag, relationship, set_component, update_component, delete_component.
    fn entity_change<'py>(
        &self,
        py: Python<'py>,
        entity: &str,
        change: &str,
        name: &str,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (entity, value) = (self.host.entity(entity), json(value)?);
        let ask = match change {
            "flag" => entity.set_flag(name, &value),
            "relationship" => entity.update_relationship(name, &value),
            "set_component" => entity.set_component(name, &value),
            "update_component" => entity.update_component(name, &value),
            _ => entity.delete_component(name),
        };
        let changed = self.send(py, ask)?;
        python(py, &changed)
    }

    fn emit(&self, py: Python<'_>, name: &str, payload: &Bound<'_, PyAny>) -> PyResult<u32> {
        let payload = json(payload)?;
        self.send(py, self.host.events().emit(name, &payload))
    }

    fn subscribe(&self, py: Python<'_>, patterns: Vec<String>) -> PyResult<Events> {
        let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
        let subscription = self.send(py, self.host.events().subscribe(&patterns))?;
        Ok(Events { subscription })
    }

    fn record(
        &self,
        py: Python<'_>,
        kind: &str,
        name: &str,
        value: f64,
        labels: BTreeMap<String, String>,
    ) -> PyResult<()> {
        let labels: Vec<(&str, &str)> =
            labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let metrics = self.host.metrics();
        let ask = match kind {
            "counter" => metrics.counter(name, value, &labels),
            "gauge" => metrics.gauge(name, value, &labels),
            _ => metrics.histogram(name, value, &labels),
        };
        self.send(py, ask)
    }

    /// The result, and attachments by name.
    fn call<'py>(
        &self,
        py: Python<'py>,
        plugin: &str,
        tool: &str,
        args: &Bound<'_, PyAny>,
    ) -> PyResult<CallParts<'py>> {
        let (text, blobs) = results::write(args)?;
        let args: Value = stockade_plugin_sdk::serde_json::from_slice(&text)
            .map_err(|error| PyTypeError::new_err(error.to_string()))?;
        // Binary arguments travel beside the others.
        let args = match args {
            Value::Object(mut object) => {
                object.retain(|name, _| !blobs.iter().any(|(blob, _)| blob == name));
                Value::Object(object)
            }
            other => other,
        };
        let called = self.send(py, self.host.plugin(plugin).call_with(tool, &args, blobs))?;
        let blobs = called.attachments.iter();
        let blobs = blobs.map(|(name, blob)| (name.clone(), PyBytes::new(py, blob)));
        Ok((python(py, &called.result)?, blobs.collect()))
    }

    fn provider<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        request: &Bound<'_, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let request = json(request)?;
        let response = self.send(py, self.host.provider(name, &request))?;
        python(py, &response)
    }

    fn providers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let list = self.send(py, self.host.providers())?;
        let list: Vec<Value> = list
            .into_iter()
            .map(|one| {
                stockade_plugin_sdk::serde_json::json!({
                    "name": one.name, "permission": one.permission,
                    "description": one.description, "granted": one.granted,
                })
            })
            .collect();
        python(py, &Value::Array(list))
    }
}

fn is_bytes(value: &Bound<'_, PyAny>) -> bool {
    use pyo3::types::{PyByteArray, PyMemoryView};
    value.is_instance_of::<PyBytes>()
        || value.is_instance_of::<PyByteArray>()
        || value.is_instance_of::<PyMemoryView>()
}

/// What a handler and a subscription see of an event:
/// `(sequence, name, source, workspace, time in ms, payload)`.
pub(crate) type EventParts<'py> = (u64, String, String, String, u64, Bound<'py, PyAny>);

pub(crate) fn event_parts<'py>(py: Python<'py>, event: Event) -> PyResult<EventParts<'py>> {
    let payload = arguments::from_json(py, &String::from_utf8_lossy(&event.payload))?;
    let Event { sequence, name, source, workspace, time_ms, .. } = event;
    Ok((sequence, name, source, workspace, time_ms, payload))
}

/// A subscription that is held.
#[pyclass(module = "stockade")]
pub(crate) struct Events {
    subscription: Subscription,
}

#[pymethods]
impl Events {
    /// The next event, waited for so many seconds.
    fn next_within<'py>(
        &mut self,
        py: Python<'py>,
        seconds: f64,
    ) -> PyResult<Option<EventParts<'py>>> {
        let patience = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        let event = py.detach(|| self.subscription.next_within(patience));
        event.map(|event| event_parts(py, event)).transpose()
    }

    /// Nothing more comes.
    #[getter]
    fn over(&self) -> bool {
        self.subscription.is_over()
    }

    /// Lost because this plugin was behind.
    #[getter]
    fn dropped(&self) -> u64 {
        self.subscription.dropped()
    }
}
