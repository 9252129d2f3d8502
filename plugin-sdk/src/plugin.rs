//! What an author implements.

use std::{collections::BTreeMap, path::PathBuf};

use stockade_proto::limits;
use tokio::sync::mpsc;

use crate::{
    Level, Result, Tools,
    host::{Host, Link},
};

/// A plugin: made once per process by [`Plugin::init`], shared by its tools.
pub trait Plugin: Sized + Send + Sync + 'static {
    /// Loads what the tools need. May take long; report progress through the
    /// context, each report extends the deadline.
    ///
    /// # Errors
    /// The plugin becomes FAILED with `InitError: {kind}: {message}`, or
    /// UNAVAILABLE for [`crate::Error::missing`].
    fn init(context: &InitContext) -> Result<Self>;

    /// Registers the tools.
    fn tools(tools: &mut Tools<Self>);

    /// Checked after `init`, before the first call.
    ///
    /// # Errors
    /// The plugin becomes FAILED with `Plugin validation failed: {message}`.
    fn validate(&self) -> Result<()> {
        Ok(())
    }

    /// Runs once before a requested stop; the process exits after it.
    fn shutdown(&self) {}
}

/// What `init` may know and do.
#[derive(Clone, Debug)]
pub struct InitContext {
    pub(crate) name: String,
    pub(crate) directory: PathBuf,
    pub(crate) data_dir: PathBuf,
    pub(crate) concurrency: usize,
    pub(crate) models: BTreeMap<String, PathBuf>,
    pub(crate) generation: u64,
    pub(crate) link: Option<Link>,
    pub(crate) progress: Option<mpsc::UnboundedSender<(f64, String)>>,
}

impl InitContext {
    /// The name that operators gave the plugin.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The plugin's own directory (where `plugin.toml` is).
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    /// A directory that the plugin may write; it survives restarts.
    pub fn data_dir(&self) -> &std::path::Path {
        &self.data_dir
    }

    /// How many calls may run at once.
    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// The file of `requires.models.{name}`; the supervisor has checked it.
    pub fn model(&self, name: &str) -> Option<&std::path::Path> {
        self.models.get(name).map(PathBuf::as_path)
    }

    /// Every file of `requires.models`, by name.
    pub fn models(&self) -> &BTreeMap<String, PathBuf> {
        &self.models
    }

    /// Counts the processes of this plugin: 1 is the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What the supervisor offers to plugins, outside of any call; it may be kept.
    pub fn host(&self) -> Host {
        Host::of(self.link.clone(), 0, "")
    }

    /// Says how far loading is (`fraction` 0 to 1) and extends its deadline.
    pub fn progress(&self, fraction: f64, message: &str) {
        if let Some(progress) = &self.progress {
            let _ = progress.send((fraction, limits::cut(message, limits::ERROR_TEXT)));
        }
    }

    /// Writes a line to the plugin's log.
    pub fn log(&self, level: Level, text: &str) {
        crate::log::write(level, text);
    }
}
