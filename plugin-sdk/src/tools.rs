//! The tools of a plugin: typed functions, their schemas derived.

use std::{any::Any, panic::AssertUnwindSafe, pin::Pin, sync::Arc};

use futures_util::FutureExt as _;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::{Serialize, de::DeserializeOwned};
use stockade_proto::worker::ToolSpec;

use crate::{
    Context, Error, Result, args, args::Attachment, blob, extensions::Extensions, guest::Parts,
};

/// What the caller gets: JSON text with attachments, or the error.
pub(crate) type Outcome = Result<Parts>;

pub(crate) type AsyncOutcome = Pin<Box<dyn Future<Output = Outcome> + Send>>;

type Blocking<P> = dyn Fn(&P, &[u8], Vec<Attachment>, &Context) -> Outcome + Send + Sync;
type Asynchronous<P> =
    dyn Fn(Arc<P>, &[u8], Vec<Attachment>, Context) -> AsyncOutcome + Send + Sync;

/// How a tool runs.
pub(crate) enum Handler<P> {
    /// On a thread of its own.
    Blocking(Arc<Blocking<P>>),
    /// On the reader's runtime.
    Async(Arc<Asynchronous<P>>),
}

impl<P> Clone for Handler<P> {
    fn clone(&self) -> Self {
        match self {
            Handler::Blocking(handler) => Handler::Blocking(handler.clone()),
            Handler::Async(handler) => Handler::Async(handler.clone()),
        }
    }
}

pub(crate) struct Tool<P> {
    pub(crate) spec: ToolSpec,
    pub(crate) handler: Handler<P>,
}

/// Takes the registrations of [`crate::Plugin::tools`].
pub struct Tools<P> {
    pub(crate) list: Vec<Tool<P>>,
    pub(crate) extensions: Extensions<P>,
}

impl<P: Send + Sync + 'static> Tools<P> {
    pub(crate) fn new() -> Self {
        Tools { list: Vec::new(), extensions: Extensions::default() }
    }

    /// A tool that may block: it runs on a thread of its own.
    pub fn add<A, R, F>(&mut self, name: &str, description: &str, run: F) -> &mut Self
    where
        A: DeserializeOwned + JsonSchema,
        R: Serialize + JsonSchema,
        F: Fn(&P, A, &Context) -> Result<R> + Send + Sync + 'static,
    {
        let handler = blocking(run);
        self.push::<A, R>(name, description, false, handler)
    }

    /// A blocking tool that sends items ([`Context::emit`]) before its result.
    pub fn stream<A, R, F>(&mut self, name: &str, description: &str, run: F) -> &mut Self
    where
        A: DeserializeOwned + JsonSchema,
        R: Serialize + JsonSchema,
        F: Fn(&P, A, &Context) -> Result<R> + Send + Sync + 'static,
    {
        let handler = blocking(run);
        self.push::<A, R>(name, description, true, handler)
    }

    /// An async tool: it runs on the plugin's one runtime and must not block.
    /// The fastest kind for short work.
    pub fn add_async<A, R, F, O>(&mut self, name: &str, description: &str, run: F) -> &mut Self
    where
        A: DeserializeOwned + JsonSchema,
        R: Serialize + JsonSchema,
        F: Fn(Arc<P>, A, Context) -> O + Send + Sync + 'static,
        O: Future<Output = Result<R>> + Send + 'static,
    {
        let handler: Handler<P> = Handler::Async(Arc::new(move |plugin, json, blobs, context| {
            let started = match args::read::<A>(json, blobs) {
                Ok(args) => Ok(run(plugin, args, context)),
                Err(error) => Err(error),
            };
            Box::pin(async move { Ok(blob::serialise(&started?.await?)?) })
        }));
        self.push::<A, R>(name, description, false, handler)
    }

    fn push<A: JsonSchema, R: JsonSchema>(
        &mut self,
        name: &str,
        description: &str,
        streams: bool,
        handler: Handler<P>,
    ) -> &mut Self {
        let spec = ToolSpec {
            name: name.to_owned(),
            title: String::new(),
            description: description.to_owned(),
            input_schema: schema::<A>(true),
            output_schema: schema::<R>(false),
            streams,
        };
        self.list.push(Tool { spec, handler });
        self
    }
}

fn blocking<P, A, R, F>(run: F) -> Handler<P>
where
    A: DeserializeOwned,
    R: Serialize,
    F: Fn(&P, A, &Context) -> Result<R> + Send + Sync + 'static,
{
    Handler::Blocking(Arc::new(move |plugin, json, blobs, context| {
        let args = args::read::<A>(json, blobs)?;
        Ok(blob::serialise(&run(plugin, args, context)?)?)
    }))
}

/// The JSON Schema of `T`: of what it reads, or of what it writes.
pub(crate) fn schema<T: JsonSchema>(reads: bool) -> String {
    let settings = SchemaSettings::draft2020_12();
    let settings = if reads { settings } else { settings.for_serialize() };
    let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>();
    schema.remove("$schema");
    // No arguments: `()` derives `null`, callers send an empty object.
    if reads && schema.get("type").is_some_and(|kind| kind == "null") {
        return r#"{"type":"object"}"#.to_owned();
    }
    serde_json::to_string(&schema).unwrap_or_default()
}

/// Runs a blocking tool; a panic is an error of this call.
pub(crate) fn run_blocking<P>(
    handler: &Blocking<P>,
    plugin: &P,
    json: &[u8],
    attachments: Vec<Attachment>,
    context: &Context,
) -> Outcome {
    std::panic::catch_unwind(AssertUnwindSafe(|| handler(plugin, json, attachments, context)))
        .unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// Runs an async tool; a panic is an error of this call.
pub(crate) async fn run_async<P: Send + Sync + 'static>(
    handler: Arc<Asynchronous<P>>,
    plugin: Arc<P>,
    json: bytes::Bytes,
    attachments: Vec<Attachment>,
    context: Context,
) -> Outcome {
    let run = async move { handler(plugin, &json, attachments, context).await };
    AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// What a panic payload says.
pub(crate) fn panicked(panic: &(dyn Any + Send)) -> Error {
    let message = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "the tool panicked".to_owned());
    Error::new("Panic", message)
}
