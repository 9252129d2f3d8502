//! What a plugin may send, handed to the code that reads it: for the fuzz
//! targets only (`cfg(fuzzing)`).

use std::sync::{Arc, LazyLock};

use prost::Message as _;
use stockade_proto::worker::{FromPlugin, InitReady};
use tokio::{runtime::Runtime, sync::mpsc};

use super::{
    feed::Feed as _,
    guard::Guard,
    logs::{Lines, Logs, Stream},
    look::Tree,
    mailbox::Sink,
    notice::Incoming,
    schema::Allowance,
    session::{Parts, Session},
    tool::Tools,
};
use crate::{
    capacity::Budget,
    manifest::{self, Limits},
};

/// Bytes of the notice pipe, cut anywhere.
pub fn notice(pieces: &[&[u8]]) {
    let mut incoming = Incoming::default();
    for piece in pieces {
        let _ = incoming.take(piece);
    }
}

/// Bytes of standard output, cut anywhere.
pub fn output(pieces: &[&[u8]]) {
    let logs = Logs::new(10);
    let mut lines = Lines::new(Stream::Stderr, 1, logs.clone(), "fuzz".into());
    for piece in pieces {
        lines.take(piece);
    }
    lines.finish();
    for line in logs.since(0, usize::MAX).0 {
        assert!(!line.text.chars().any(|c| c.is_control() && c != '\t'), "{:?}", line.text);
    }
}

/// The tools that a plugin announces; None when they are refused.
pub fn tools(ready: &[u8]) -> Option<Tools> {
    Tools::compile(InitReady::decode(ready).ok()?.tools, &mut Allowance::default()).ok()
}

static RUNTIME: LazyLock<(Runtime, Guard)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    (runtime.expect("runtime"), Guard::start().expect("guard"))
});

/// Frames of the calls channel, one after the other.
pub fn frames(frames: &[&[u8]]) {
    let (runtime, guard) = &*RUNTIME;
    let (sink, _inbox) = Sink::new();
    let (outbox, _frames) = mpsc::channel(64);
    let text = "name = \"fuzz\"\n[run]\nbinary = \"b\"\n";
    let manifest = manifest::parse("/fuzz".as_ref(), "plugin.toml", text).expect("manifest");
    let tree = Tree {
        plugin: "fuzz".into(),
        generation: 1,
        launcher: std::process::id(),
        limits: Limits::default(),
        leaf: None,
    };
    let watching = guard.watch(tree, Arc::default(), sink.clone());
    let session = Session::new(Parts {
        registered: Default::default(),
        plugin: "fuzz".into(),
        generation: 1,
        tools: Tools::compile(Vec::new(), &mut Allowance::default()).expect("no tools"),
        manifest: Arc::new(manifest),
        max_result: 1 << 20,
        account: Budget::new(16 << 20).of_plugin(),
        outbox,
        events: sink,
        activity: watching.activity.clone(),
        runtime: runtime.handle().clone(),
    });
    for frame in frames {
        if let Ok(FromPlugin { frame: Some(frame) }) = FromPlugin::decode(*frame) {
            let _ = session.take(frame);
        }
    }
}
