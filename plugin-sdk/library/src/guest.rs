//! The library as the SDK's guest: loading, calls, pings, the end.

use std::{
    path::Path,
    sync::{Arc, OnceLock},
};

use stockade_plugin_sdk::{
    Error,
    guest::{Call, Failure, Guest, InitReady, Kind, Pong, Pool, Start, install_fatal_handler},
};
use tokio::sync::oneshot;

use crate::{
    library::Library,
    open_call::{OpenCall, Progress},
};

/// The plugin of this process.
#[derive(Default)]
pub(crate) struct LibraryPlugin {
    library: OnceLock<Library>,
    pool: Pool,
}

impl LibraryPlugin {
    fn load(&self, start: Start) {
        let failed = |kind, error| Failure { kind, error, watch: Vec::new() };
        let library = match Library::open(Path::new(&start.entry)) {
            Ok(library) => library,
            Err(error) => return start.failed(failed(Kind::Import, error)),
        };
        let context = &start.context;
        let config = serde_json::json!({
            "plugin": context.name(),
            "directory": context.directory(),
            "data_dir": context.data_dir(),
            "concurrency": context.concurrency(),
            "models": context.models(),
        });
        let progress = Progress::Start(context.clone());
        let open = OpenCall::new(config.to_string().into_bytes(), Vec::new(), progress);
        let made = library.init(&open);
        // The library's code has run: it may have put handlers of its own in place.
        install_fatal_handler();
        if let Err(error) = made {
            return start.failed(failed(Kind::Init, error));
        }
        let specs = library.specs().to_vec();
        let _ = self.library.set(library);
        start.ready(InitReady { tools: specs, ..InitReady::default() });
    }
}

impl Guest for LibraryPlugin {
    const SDK: &'static str = concat!("library/", env!("CARGO_PKG_VERSION"));

    fn start(self: &Arc<Self>, start: Start) {
        let plugin = self.clone();
        self.pool.run(move || plugin.load(start));
    }

    fn invoke(self: &Arc<Self>, call: Call) {
        let plugin = self.clone();
        self.pool.run(move || {
            let Call { tool, args, attachments, context, reply, .. } = call;
            let args = if args.is_empty() { b"{}".to_vec() } else { args.to_vec() };
            let open = OpenCall::new(args, attachments, Progress::Call(context));
            let outcome = match plugin.library.get() {
                Some(library) if library.has(&tool) => {
                    open.run(reply.id(), || library.run(&tool, &open))
                }
                _ => Err(Error::new("ToolNotFound", format!("no tool {tool:?}"))),
            };
            reply.send(outcome);
        });
    }

    fn ping(self: &Arc<Self>, pong: Pong) {
        self.pool.run(move || pong.send());
    }

    fn stop(self: &Arc<Self>, done: oneshot::Sender<()>) {
        let plugin = self.clone();
        self.pool.run(move || {
            if let Some(library) = plugin.library.get() {
                library.shutdown();
            }
            drop(done);
        });
    }
}
