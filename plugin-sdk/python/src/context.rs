//! What Python code sees of its start and of its call.

use std::collections::BTreeMap;

use pyo3::{prelude::*, types::PyDict};
use stockade_plugin_sdk::{Context as SdkContext, InitContext};

use crate::{Cancelled, InvalidResult, failure, host::Host, results};

/// The package is imported by the first tool that asks for it.
fn services(py: Python<'_>, host: Host) -> PyResult<Bound<'_, PyAny>> {
    py.import("stockade._services")?.getattr("Services")?.call1((host,))
}

/// What a plugin may know while it loads.
#[pyclass(module = "stockade", frozen)]
pub(crate) struct Init {
    pub(crate) context: InitContext,
    /// `module:Class`.
    #[pyo3(get)]
    pub(crate) entry: String,
    /// Must be importable before the plugin's code runs.
    #[pyo3(get)]
    pub(crate) packages: Vec<String>,
    /// Look for the packages and run nothing.
    #[pyo3(get)]
    pub(crate) check_only: bool,
}

#[pymethods]
impl Init {
    /// The name that operators gave the plugin.
    #[getter]
    fn name(&self) -> &str {
        self.context.name()
    }

    /// The plugin's own directory.
    #[getter]
    fn directory(&self) -> String {
        self.context.directory().display().to_string()
    }

    /// A directory that the plugin may write; it survives restarts.
    #[getter]
    fn data_dir(&self) -> String {
        self.context.data_dir().display().to_string()
    }

    /// How many calls may run at once.
    #[getter]
    fn concurrency(&self) -> usize {
        self.context.concurrency()
    }

    /// Counts the processes of this plugin: 1 is the first.
    #[getter]
    fn generation(&self) -> u64 {
        self.context.generation()
    }

    /// The host's services, outside of any call; they may be kept.
    #[getter]
    fn host<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        services(py, Host::new(self.context.host()))
    }

    /// The files of `requires.models` by name; the supervisor has checked them.
    #[getter]
    fn models<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let models = PyDict::new(py);
        for (name, path) in self.context.models() {
            models.set_item(name, path.display().to_string())?;
        }
        Ok(models)
    }

    /// Says how far loading is (0 to 1) and extends its deadline.
    #[pyo3(signature = (fraction, message = ""))]
    fn progress(&self, fraction: f64, message: &str) {
        self.context.progress(fraction, message);
    }
}

/// A call in progress, as the tool sees it.
#[pyclass(module = "stockade", frozen)]
pub(crate) struct Context {
    pub(crate) context: SdkContext,
    pub(crate) content_types: BTreeMap<String, String>,
}

#[pymethods]
impl Context {
    /// The id that clients and logs know.
    #[getter]
    fn call_id(&self) -> &str {
        self.context.call_id()
    }

    /// The workspace of the call, empty when it has none.
    #[getter]
    fn workspace(&self) -> &str {
        self.context.workspace()
    }

    /// Seconds until the deadline, 0 when it is over.
    #[getter]
    fn remaining(&self) -> f64 {
        self.context.time_left().as_secs_f64()
    }

    /// The deadline on the clock of `time.monotonic()`.
    #[getter]
    fn deadline(&self, py: Python<'_>) -> PyResult<f64> {
        let now: f64 = py.import("time")?.call_method0("monotonic")?.extract()?;
        Ok(now + self.remaining())
    }

    /// Nobody waits for the result any more, or the time is up.
    #[getter]
    fn cancelled(&self) -> bool {
        self.context.is_cancelled()
    }

    /// Raises `Cancelled` when the call is cancelled.
    fn check(&self) -> PyResult<()> {
        match self.context.is_cancelled() {
            true => Err(Cancelled::new_err("the call was cancelled")),
            false => Ok(()),
        }
    }

    /// Says how far the call is (0 to 1).
    #[pyo3(signature = (fraction, message = ""))]
    fn progress(&self, fraction: f64, message: &str) {
        self.context.progress(fraction, message);
    }

    /// Sends one item of a streamed result; waits while the client is behind.
    fn emit(&self, py: Python<'_>, item: &Bound<'_, PyAny>) -> PyResult<()> {
        let parts = results::write(item)?;
        py.detach(|| self.context.emit_parts(parts)).map_err(|error| match error.kind() {
            "Cancelled" => Cancelled::new_err(error.message().to_owned()),
            _ => InvalidResult::new_err(error.message().to_owned()),
        })
    }

    /// The same call in another workspace: that of an event.
    fn _in_workspace(&self, workspace: &str) -> Self {
        Context {
            context: self.context.in_workspace(workspace),
            content_types: self.content_types.clone(),
        }
    }

    /// The host's services, as `stockade._services` wraps them.
    #[getter]
    fn _host(&self) -> Host {
        Host::new(self.context.host())
    }

    #[getter]
    fn services<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        services(py, self._host())
    }

    /// This plugin's keys and values.
    #[getter]
    fn kv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.getattr("kv")
    }

    /// Events.
    #[getter]
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.getattr("events")
    }

    /// This plugin's own metrics.
    #[getter]
    fn metrics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.getattr("metrics")
    }

    /// The document of an entity.
    fn entity<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.call_method1("entity", (name,))
    }

    /// Another plugin.
    fn plugin<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.call_method1("plugin", (name,))
    }

    /// Asks a provider of the server or of another plugin.
    #[pyo3(signature = (name, request = None, on_denied = ""))]
    fn provider<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        request: Option<Bound<'py, PyAny>>,
        on_denied: &str,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.call_method1("provider", (name, request, on_denied))
    }

    /// What servers and other plugins provide now.
    fn providers<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.call_method0("providers")
    }

    /// True when the permission was granted.
    fn has_permission<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.call_method1("has_permission", (name,))
    }

    /// Raises `PermissionDenied` when it was not.
    fn require_permission<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.call_method1("require_permission", (name,))
    }

    /// Who this plugin is.
    fn about<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.services(py)?.call_method0("about")
    }

    /// The content type of a binary argument, empty when unknown.
    fn content_type(&self, name: &str) -> &str {
        self.content_types.get(name).map_or("", String::as_str)
    }

    /// Calls `listener` once when the call is cancelled, on a thread of its own.
    fn on_cancel(&self, listener: Py<PyAny>) {
        self.context.on_cancel(move || {
            let called = std::thread::Builder::new().name("cancel".into()).spawn(move || {
                Python::attach(|py| {
                    if let Err(error) = listener.call0(py) {
                        eprintln!("<3>on_cancel: {}", failure::describe(py, &error));
                    }
                });
            });
            drop(called);
        });
    }
}
