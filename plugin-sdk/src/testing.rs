//! A plugin in memory: the author's own tests, without a supervisor.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::{Map, Value};
use stockade_proto::worker::{FromPlugin, from_plugin::Frame};
use tokio::sync::mpsc;

use crate::{
    Blob, Context, Error, InitContext, Plugin, Result, Tools,
    context::CallControl,
    tools::{Handler, Tool, run_async, run_blocking},
};

/// A plugin that has been through `init` and `validate`.
pub struct Harness<P> {
    plugin: Arc<P>,
    tools: Vec<Tool<P>>,
}

impl<P: Plugin> Harness<P> {
    /// Starts `P` with a temporary data directory and the current directory as
    /// its own.
    ///
    /// # Errors
    /// What `init` or `validate` returned.
    pub fn start() -> Result<Self> {
        Self::start_in(".")
    }

    /// As [`Harness::start`], with the plugin's directory.
    ///
    /// # Errors
    /// What `init` or `validate` returned.
    pub fn start_in(directory: impl Into<PathBuf>) -> Result<Self> {
        let context = InitContext {
            name: "test".into(),
            directory: directory.into(),
            data_dir: std::env::temp_dir(),
            concurrency: 1,
            models: Default::default(),
            generation: 1,
            progress: None,
            link: None,
        };
        let plugin = P::init(&context)?;
        plugin.validate()?;
        let mut tools = Tools::new();
        P::tools(&mut tools);
        Ok(Harness { plugin: Arc::new(plugin), tools: tools.list })
    }

    /// The plugin itself.
    pub fn plugin(&self) -> &P {
        &self.plugin
    }

    /// Names of the tools, in the order of registration.
    pub fn tools(&self) -> Vec<&str> {
        self.tools.iter().map(|tool| tool.spec.name.as_str()).collect()
    }

    /// The input schema of a tool, as callers see it.
    pub fn input_schema(&self, tool: &str) -> Option<Value> {
        let tool = self.tools.iter().find(|known| known.spec.name == tool)?;
        serde_json::from_str(&tool.spec.input_schema).ok()
    }

    /// A call to be filled with arguments and run.
    pub fn call<'h>(&'h self, tool: &'h str) -> Call<'h, P> {
        Call { harness: self, tool, args: Map::new(), blobs: Vec::new(), cancelled: false }
    }
}

/// A call that has not run yet.
pub struct Call<'h, P> {
    harness: &'h Harness<P>,
    tool: &'h str,
    args: Map<String, Value>,
    blobs: Vec<(String, Blob)>,
    cancelled: bool,
}

/// What a call gave.
#[derive(Debug)]
pub struct Outcome {
    /// The result as JSON; blobs stand as `"attachment:{name}"`.
    pub result: Value,
    /// Blobs of the result by name.
    pub attachments: Vec<(String, Blob)>,
    /// Items that the tool emitted.
    pub items: Vec<Value>,
    /// Progress that the tool reported.
    pub progress: Vec<(f64, String)>,
}

impl<P: Plugin> Call<'_, P> {
    /// Sets one argument; a value that does not serialise becomes null.
    #[must_use]
    pub fn arg(mut self, name: &str, value: impl Serialize) -> Self {
        self.args.insert(name.into(), serde_json::to_value(value).unwrap_or(Value::Null));
        self
    }

    /// Adds a binary argument.
    #[must_use]
    pub fn blob(mut self, name: &str, blob: impl Into<Blob>) -> Self {
        self.blobs.push((name.into(), blob.into()));
        self
    }

    /// The call is cancelled before it starts.
    #[must_use]
    pub fn cancelled(mut self) -> Self {
        self.cancelled = true;
        self
    }

    /// Runs the tool, as the supervisor would, without checking the schema.
    ///
    /// # Errors
    /// What the tool returned; a panic has the type `Panic`.
    pub fn run(self) -> Result<Outcome> {
        let Some(tool) = self.harness.tools.iter().find(|known| known.spec.name == self.tool)
        else {
            return Err(Error::new("ToolNotFound", format!("no tool {:?}", self.tool)));
        };
        let (outbox, mut frames) = mpsc::unbounded_channel();
        let control = CallControl::new(u64::MAX);
        if self.cancelled {
            control.cancel();
        }
        let context = Context {
            id: 1,
            public_id: "test".into(),
            workspace: "".into(),
            deadline: Instant::now() + Duration::from_secs(60),
            control,
            outbox,
            link: None,
        };
        let json = serde_json::to_vec(&self.args)?;
        let plugin = self.harness.plugin.clone();
        let (result, attachments) = match &tool.handler {
            Handler::Blocking(handler) => {
                run_blocking(&**handler, &plugin, &json, self.blobs, &context)?
            }
            Handler::Async(handler) => {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                let run = run_async(handler.clone(), plugin, json.into(), self.blobs, context);
                runtime.block_on(run)?
            }
        };
        let mut outcome = Outcome {
            result: serde_json::from_slice(&result)?,
            attachments,
            items: Vec::new(),
            progress: Vec::new(),
        };
        while let Ok(FromPlugin { frame: Some(frame) }) = frames.try_recv() {
            match frame {
                Frame::Item(item) => outcome.items.push(serde_json::from_slice(&item.value)?),
                Frame::Progress(step) => outcome.progress.push((step.fraction, step.message)),
                Frame::Done(_) | Frame::Failed(_) | Frame::Pong(_) => {}
            }
        }
        Ok(outcome)
    }
}
