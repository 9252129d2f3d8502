//! The Python plugin as the SDK's guest: loading, calls, pings, the end.

use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use pyo3::{
    exceptions::PyRuntimeError,
    prelude::*,
    types::{PyList, PyTuple},
};
use stockade_plugin_sdk::{
    Error,
    guest::{
        self, Call, CallKind, Condition, Effect, EventBatch, EventHandler, Failure, Guest,
        InitReady, Kind, Parts, Pong, Provider, SimulationConfig, Start, ToolSpec,
    },
    host::Event,
    serde::Deserialize,
    serde_json,
};
use tokio::sync::oneshot;

use crate::{
    arguments,
    context::{Context, Init},
    failure,
    host::event_parts,
    results,
    threads::Threads,
};

/// The signal at which faulthandler prints every thread's stack: one that no
/// plugin uses.
pub(crate) const STACKS_SIGNAL: i32 = 63;

/// Python code gives the lock up every 5 ms when asked.
const LOCK_PATIENCE: Duration = Duration::from_millis(100);

/// A tool as `stockade._load` hands it over.
struct Tool {
    /// Takes the arguments (a dictionary) and the context, gives the result.
    run: Py<PyAny>,
    /// Arguments that it wants as memory views.
    views: Vec<String>,
}

/// The plugin of this process.
struct PythonPlugin {
    threads: Threads,
    tools: OnceLock<HashMap<(CallKind, String), Arc<Tool>>>,
    load: Py<PyAny>,
    unload: Py<PyAny>,
}

/// Marks the inherited channels close-on-exec. False: this is no plugin process.
#[pyfunction]
pub(crate) fn adopt() -> bool {
    guest::close_on_exec()
}

/// In a forked child: lets go of the channels.
#[pyfunction]
pub(crate) fn forked() {
    guest::close_forked();
}

/// Announces fatal signals before they take their course.
#[pyfunction]
pub(crate) fn install_fatal_handler() {
    guest::install_fatal_handler();
}

/// Serves the plugin; never returns. Call it on the main thread.
///
/// `load(init)` gives `(tools, None, extensions)` or `(None, failure, None)`: a tool is
/// `(name, title, description, input schema, output schema, streams, run, views)`, an
/// extension `(kind, name, description, details, run)` with details as JSON, a failure `(kind, class, message, missing, watch, traceback)`. `unload()` runs
/// before a requested stop.
#[pyfunction]
pub(crate) fn serve(py: Python<'_>, load: Py<PyAny>, unload: Py<PyAny>) -> PyResult<()> {
    let threads = Threads::default();
    let plugin = PythonPlugin { threads: threads.clone(), tools: OnceLock::new(), load, unload };
    let reader = thread::Builder::new().name("stockade".into()).spawn(move || {
        let served = guest::serve(Arc::new(plugin));
        if let Err(error) = &served {
            eprintln!("<3>cannot serve the calls channel: {error}");
        }
        // Other threads may be anywhere, in Python's own end too: nothing waits.
        guest::exit_now(i32::from(served.is_err()));
    });
    reader.map_err(|error| PyRuntimeError::new_err(error.to_string()))?;
    threads.work_on_main(py)
}

impl PythonPlugin {
    fn load(&self, py: Python<'_>, start: Start) {
        let Start { context, entry, packages, check_only, .. } = &start;
        let init = Init {
            context: context.clone(),
            entry: entry.clone(),
            packages: packages.clone(),
            check_only: *check_only,
        };
        let raised = |error: &PyErr| Failure {
            kind: Kind::Init,
            error: failure::describe(py, error),
            watch: Vec::new(),
        };
        let loaded = Bound::new(py, init)
            .and_then(|init| self.load.bind(py).call1((init,)))
            .and_then(|loaded| Ok(loaded.cast_into::<PyTuple>()?));
        // Plugin code has run: it may have put handlers of its own in place.
        guest::install_fatal_handler();
        let outcome = loaded.and_then(|loaded| {
            let failed = loaded.get_item(1)?;
            if !failed.is_none() {
                return Ok(Err(read_failure(&failed)?));
            }
            let extensions = loaded.get_item(2)?.cast_into::<PyList>()?;
            let mut loaded = read_tools(&loaded.get_item(0)?.cast_into::<PyList>()?)?;
            read_extensions(&extensions, &mut loaded)?;
            Ok(Ok(loaded))
        });
        match outcome {
            Ok(Ok((ready, tools))) => {
                let _ = self.tools.set(tools);
                start.ready(ready);
            }
            Ok(Err(failure)) => start.failed(failure),
            Err(error) => {
                let failure = raised(&error);
                start.failed(failure);
            }
        }
    }
}

fn read_failure(failed: &Bound<'_, PyAny>) -> PyResult<Failure> {
    type Raw = (String, String, String, Vec<String>, Vec<String>, String);
    let (kind, class, message, missing, watch, traceback): Raw = failed.extract()?;
    let kind = match kind.as_str() {
        "import" => Kind::Import,
        "validate" => Kind::Validate,
        "missing" => Kind::Missing,
        _ => Kind::Init,
    };
    let error = match kind {
        Kind::Missing => Error::all_missing(missing, message),
        _ => Error::new(class, message).with_traceback(traceback),
    };
    Ok(Failure { kind, error, watch })
}

type Loaded = (InitReady, HashMap<(CallKind, String), Arc<Tool>>);

fn read_tools(list: &Bound<'_, PyList>) -> PyResult<Loaded> {
    let mut specs = Vec::with_capacity(list.len());
    let mut tools = HashMap::with_capacity(list.len());
    for tool in list.iter() {
        type Raw = (String, String, String, String, String, bool, Py<PyAny>, Vec<String>);
        let (name, title, description, input_schema, output_schema, streams, run, views): Raw =
            tool.extract()?;
        tools.insert((CallKind::Tool, name.clone()), Arc::new(Tool { run, views }));
        specs.push(ToolSpec { name, title, description, input_schema, output_schema, streams });
    }
    Ok((InitReady { tools: specs, ..InitReady::default() }, tools))
}

/// What a decorator was told, beside the name.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Details {
    required: Vec<String>,
    params: serde_json::Map<String, serde_json::Value>,
    priority: i32,
    patterns: Vec<String>,
    permission: String,
    request_schema: String,
    response_schema: String,
}

fn read_extensions(list: &Bound<'_, PyList>, (ready, runs): &mut Loaded) -> PyResult<()> {
    for extension in list.iter() {
        type Raw = (String, String, String, String, Py<PyAny>);
        let (kind, name, description, details, run): Raw = extension.extract()?;
        let details: Details = serde_json::from_str(&details)
            .map_err(|error| PyRuntimeError::new_err(format!("{kind} {name}: {error}")))?;
        let key = match kind.as_str() {
            "condition" => {
                let required_context = details.required;
                let name = name.clone();
                ready.conditions.push(Condition { name, description, required_context });
                CallKind::Condition
            }
            "effect" => {
                let default_params = serde_json::to_vec(&details.params).unwrap_or_default().into();
                ready.effects.push(Effect { name: name.clone(), description, default_params });
                CallKind::Effect
            }
            "simulation_config" => {
                let (name, priority) = (name.clone(), details.priority);
                ready.simulation_configs.push(SimulationConfig { name, description, priority });
                CallKind::SimulationConfig
            }
            "provider" => {
                ready.providers.push(Provider {
                    name: name.clone(),
                    permission: details.permission,
                    description,
                    request_schema: details.request_schema,
                    response_schema: details.response_schema,
                });
                CallKind::Provider
            }
            _ => {
                let patterns = details.patterns;
                ready.event_handlers.push(EventHandler { name: name.clone(), patterns });
                CallKind::Events
            }
        };
        runs.insert((key, name), Arc::new(Tool { run, views: Vec::new() }));
    }
    Ok(())
}

/// Runs a tool with the interpreter's lock held; the tool gives it up as it likes.
fn run(py: Python<'_>, tool: &Tool, call: Call) {
    let Call { args, mut attachments, context, reply, events, .. } = call;
    let id = reply.id();
    let outcome = guest::during_call(id, || {
        let content_types = attachments
            .iter()
            .filter(|(_, blob)| !blob.content_type().is_empty())
            .map(|(name, blob)| (name.clone(), blob.content_type().to_owned()))
            .collect();
        let attachments = std::mem::take(&mut attachments);
        let arguments = match events {
            Some(batch) => events_of(py, batch).map_err(|error| failure::describe(py, &error))?,
            None => arguments::read(py, &args, attachments, &tool.views)?.into_any(),
        };
        let context = Context { context, content_types };
        tool.run
            .call1(py, (arguments, context))
            .and_then(|result| results::write(result.bind(py)))
            .map_err(|error| failure::describe(py, &error))
    });
    leave_if_forked();
    reply.send(outcome as Result<Parts, Error>);
}

/// The events of a batch, as the handler takes them.
fn events_of(py: Python<'_>, batch: EventBatch) -> PyResult<Bound<'_, PyAny>> {
    let events = batch.events.into_iter().map(|event| event_parts(py, Event::from(event)));
    let events = events.collect::<PyResult<Vec<_>>>()?;
    Ok(PyList::new(py, events)?.into_any())
}

/// A tool that forks and lets the child return: the child is no plugin.
fn leave_if_forked() {
    static OWNER: OnceLock<u32> = OnceLock::new();
    let own = std::process::id();
    if *OWNER.get_or_init(|| own) != own {
        guest::exit_now(0);
    }
}

impl Guest for PythonPlugin {
    const SDK: &'static str = concat!("python/", env!("CARGO_PKG_VERSION"));

    fn start(self: &Arc<Self>, start: Start) {
        leave_if_forked();
        self.threads.set_concurrency(start.context.concurrency());
        let plugin = self.clone();
        self.threads.run_on_main(Box::new(move |py| plugin.load(py, start)));
    }

    fn invoke(self: &Arc<Self>, call: Call) {
        let key = (call.kind, call.tool.clone());
        let tool = self.tools.get().and_then(|tools| tools.get(&key)).cloned();
        match tool {
            Some(tool) => self.threads.run(Box::new(move |py| run(py, &tool, call))),
            None => {
                let error = Error::new("ToolNotFound", format!("no tool {:?}", call.tool));
                call.reply.send(Err(error));
            }
        }
    }

    fn ping(self: &Arc<Self>, pong: Pong) {
        self.threads.run(Box::new(move |_| pong.send()));
    }

    fn stop(self: &Arc<Self>, done: oneshot::Sender<()>) {
        let plugin = self.clone();
        self.threads.run_on_main(Box::new(move |py| {
            if let Err(error) = plugin.unload.call0(py) {
                eprintln!("<3>on_unload raised {}", failure::describe(py, &error));
            }
            drop(done);
        }));
    }

    /// With the interpreter's lock, if it can be had: then nothing moves while
    /// the stacks are printed. If it cannot, its holder sits in C, and the stacks
    /// stand still too: the signal's handler prints them without the lock.
    fn last_words(&self) {
        let printed = Arc::new(AtomicBool::new(false));
        let by_lock = printed.clone();
        let print = move || {
            Python::attach(|py| {
                if !by_lock.swap(true, Ordering::AcqRel) {
                    let stacks =
                        py.import("stockade._boot").and_then(|boot| boot.getattr("stacks"));
                    let _ = stacks.and_then(|stacks| stacks.call0());
                }
            });
        };
        let wait = move || {
            thread::sleep(LOCK_PATIENCE);
            if !printed.swap(true, Ordering::AcqRel) {
                guest::raise_if_handled(STACKS_SIGNAL);
            }
        };
        let _ = thread::Builder::new().name("stacks".into()).spawn(print);
        let _ = thread::Builder::new().name("stacks".into()).spawn(wait);
    }
}
