//! The foreign side: loads the library and calls it, and serves its calls to the
//! host. All unsafe code of this crate; what it rests on is the contract of
//! `stockade.h`. A library that breaks it takes this process down, and nothing
//! else.
#![allow(unsafe_code)]

use std::{
    collections::HashMap,
    ffi::{CStr, c_char, c_void},
    path::Path,
    sync::atomic::{AtomicPtr, Ordering},
};

use stockade_library::{ABI, Bytes, Call, Host, Plugin, SYMBOL, Tool};
use stockade_plugin_sdk::{
    Blob, Error, Level,
    guest::{self, ToolSpec},
};

use crate::open_call::{OpenCall, Progress};

/// A loaded library.
pub(crate) struct Library {
    plugin: &'static Plugin,
    tools: HashMap<String, &'static Tool>,
    specs: Vec<ToolSpec>,
    /// What its `init` made.
    state: AtomicPtr<c_void>,
}

// SAFETY: the header demands that tools may be run from any thread, and from
// several when the manifest allows it; the tables are static and never written.
unsafe impl Send for Library {}
// SAFETY: as above.
unsafe impl Sync for Library {}

impl Library {
    /// Loads the library and reads its table.
    pub(crate) fn open(path: &Path) -> Result<Self, Error> {
        let shown = path.display();
        // SAFETY: the library's initialisers run; that is what the operator asked
        // for, in a process that exists for nothing else.
        let library = unsafe { libloading::Library::new(path) }
            .map_err(|error| Error::new("LibraryError", format!("cannot load {shown}: {error}")))?;
        // SAFETY: the header gives this symbol this type.
        let entry = unsafe { library.get::<unsafe extern "C" fn() -> *const Plugin>(SYMBOL) }
            .map_err(|_| {
                let text = format!("{shown} does not export stockade_plugin_v1 (see stockade.h)");
                Error::new("LibraryError", text)
            })?;
        // SAFETY: as above; the table is null or static.
        let plugin = unsafe { entry().as_ref() };
        // Never unloaded: the table and threads of its own lie in it.
        std::mem::forget(library);
        let plugin = plugin
            .ok_or_else(|| Error::new("LibraryError", format!("{shown} returned no plugin")))?;
        if plugin.abi != ABI {
            let text = format!(
                "{shown} speaks version {} of stockade.h; this host speaks {ABI}. Build it with \
                 the header of this release.",
                plugin.abi
            );
            return Err(Error::new("LibraryError", text));
        }
        let tools: &'static [Tool] = match plugin.tool_count {
            0 => &[],
            // SAFETY: the header says that there are so many of them, static.
            count => unsafe { std::slice::from_raw_parts(plugin.tools, count) },
        };
        let mut specs = Vec::new();
        let mut by_name = HashMap::new();
        for tool in tools {
            let name = text(tool.name);
            specs.push(ToolSpec {
                name: name.clone(),
                title: String::new(),
                description: text(tool.description),
                input_schema: text(tool.input_schema),
                output_schema: text(tool.output_schema),
                streams: tool.streams != 0,
            });
            by_name.insert(name, tool);
        }
        Ok(Library { plugin, tools: by_name, specs, state: AtomicPtr::default() })
    }

    pub(crate) fn specs(&self) -> &[ToolSpec] {
        &self.specs
    }

    pub(crate) fn has(&self, tool: &str) -> bool {
        self.tools.contains_key(tool)
    }

    /// Runs its `init`.
    pub(crate) fn init(&self, start: &OpenCall) -> Result<(), Error> {
        let Some(init) = self.plugin.init else { return Ok(()) };
        let mut state = std::ptr::null_mut();
        // SAFETY: `start` outlives the call, the table is static, `state` is
        // written by the library.
        let code = unsafe { init(handle(start), &raw const HOST, &raw mut state) };
        self.state.store(state, Ordering::Release);
        start.outcome()?;
        match code {
            0 => Ok(()),
            code => Err(Error::new("InitError", format!("init returned {code}"))),
        }
    }

    /// Runs one tool; its outcome gathers in `call`.
    pub(crate) fn run(&self, tool: &str, call: &OpenCall) {
        let run = self.tools.get(tool).and_then(|tool| tool.run);
        let Some(run) = run else {
            return call.fail(Error::new("ToolNotFound", format!("{tool} has no function")));
        };
        // SAFETY: `call` outlives the call; the state is what init made.
        unsafe { run(self.state.load(Ordering::Acquire), handle(call), &raw const HOST) };
    }

    pub(crate) fn shutdown(&self) {
        if let Some(shutdown) = self.plugin.shutdown {
            // SAFETY: the state is what init made, and this is its last use.
            unsafe { shutdown(self.state.load(Ordering::Acquire)) };
        }
    }
}

fn handle(call: &OpenCall) -> *mut Call {
    std::ptr::from_ref(call).cast_mut().cast()
}

/// What the host can do, for every library.
static HOST: Host =
    Host { abi: ABI, args, attachment, result, attach, fail, progress, emit, cancelled, log };

/// The call behind a handle.
///
/// # Safety
/// It is one that [`handle`] made, and its call has not returned.
unsafe fn open<'a>(call: *const Call) -> &'a OpenCall {
    // SAFETY: the caller's.
    unsafe { &*call.cast::<OpenCall>() }
}

/// A NUL-terminated text; empty for null.
fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: the header demands NUL-terminated text.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Bytes of the library's, copied; none for null.
fn copied(data: *const c_void, size: usize) -> Vec<u8> {
    if data.is_null() || size == 0 {
        return Vec::new();
    }
    // SAFETY: the header demands `size` readable bytes.
    unsafe { std::slice::from_raw_parts(data.cast::<u8>(), size) }.to_vec()
}

fn lent(bytes: &[u8]) -> Bytes {
    Bytes { data: bytes.as_ptr(), size: bytes.len() }
}

unsafe extern "C" fn args(call: *const Call) -> Bytes {
    // SAFETY: the library passes the handle that it was given.
    lent(unsafe { &open(call).args })
}

unsafe extern "C" fn attachment(call: *const Call, name: *const c_char) -> Bytes {
    let name = text(name);
    // SAFETY: as above.
    let attachments = unsafe { &open(call).attachments };
    let found = attachments.iter().find(|(known, _)| *known == name);
    found.map_or(Bytes { data: std::ptr::null(), size: 0 }, |(_, blob)| lent(blob.bytes()))
}

unsafe extern "C" fn result(call: *mut Call, json: *const c_char, size: usize) {
    // SAFETY: as above.
    unsafe { open(call) }.result(copied(json.cast(), size));
}

unsafe extern "C" fn attach(
    call: *mut Call,
    name: *const c_char,
    content_type: *const c_char,
    data: *const c_void,
    size: usize,
) {
    let blob = Blob::typed(copied(data, size), text(content_type));
    // SAFETY: as above.
    unsafe { open(call) }.attach(text(name), blob);
}

unsafe extern "C" fn fail(call: *mut Call, kind: *const c_char, message: *const c_char) {
    // SAFETY: as above.
    unsafe { open(call) }.fail(Error::new(text(kind), text(message)));
}

unsafe extern "C" fn progress(call: *mut Call, fraction: f64, message: *const c_char) {
    let message = text(message);
    // SAFETY: as above.
    match &unsafe { open(call) }.progress {
        Progress::Call(context) => context.progress(fraction, &message),
        Progress::Start(context) => context.progress(fraction, &message),
    }
}

unsafe extern "C" fn emit(call: *mut Call, json: *const c_char, size: usize) -> i32 {
    // SAFETY: as above.
    match &unsafe { open(call) }.progress {
        Progress::Call(context) => {
            i32::from(context.emit_parts((copied(json.cast(), size), Vec::new())).is_ok())
        }
        Progress::Start(_) => 0,
    }
}

unsafe extern "C" fn cancelled(call: *const Call) -> i32 {
    // SAFETY: as above.
    match &unsafe { open(call) }.progress {
        Progress::Call(context) => i32::from(context.is_cancelled()),
        Progress::Start(_) => 0,
    }
}

unsafe extern "C" fn log(level: i32, line: *const c_char) {
    let level = match level {
        ..=3 => Level::Error,
        4 => Level::Warn,
        5 | 6 => Level::Info,
        _ => Level::Debug,
    };
    guest::log(level, &text(line));
}
