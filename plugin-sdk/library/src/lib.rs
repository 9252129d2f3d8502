//! The C interface of shared-library plugins, version 1, for libraries written
//! in Rust. `include/stockade.h` is the same for everybody else, and explains
//! each part; `plugin-sdk/examples/library-rust` is a whole plugin.
//!
//! A plugin that can be a program of its own should rather implement
//! `stockade_plugin_sdk::Plugin`: it is safe and typed.

use std::ffi::{c_char, c_void};

/// The version of this interface.
pub const ABI: u32 = 1;

/// The symbol that a library exports: `extern "C" fn() -> *const Plugin`.
pub const SYMBOL: &[u8] = b"stockade_plugin_v1\0";

/// One call of a tool, or the start of the plugin; opaque to the library.
#[repr(C)]
#[derive(Debug)]
pub struct Call {
    _opaque: [u8; 0],
}

/// Bytes of the host's; `data` is null when there are none.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    /// Valid until the function that got it returns.
    pub data: *const u8,
    /// How many.
    pub size: usize,
}

/// What the host can do. Texts are NUL-terminated UTF-8.
#[repr(C)]
#[derive(Debug)]
pub struct Host {
    /// [`ABI`].
    pub abi: u32,
    /// The arguments: the text of a JSON object.
    pub args: unsafe extern "C" fn(call: *const Call) -> Bytes,
    /// A binary argument by its name.
    pub attachment: unsafe extern "C" fn(call: *const Call, name: *const c_char) -> Bytes,
    /// The outcome: JSON text.
    pub result: unsafe extern "C" fn(call: *mut Call, json: *const c_char, size: usize),
    /// Bytes of the result, which names them as `attachment:NAME`.
    pub attach: unsafe extern "C" fn(
        call: *mut Call,
        name: *const c_char,
        content_type: *const c_char,
        data: *const c_void,
        size: usize,
    ),
    /// The call (or the start) failed: a type and why.
    pub fail: unsafe extern "C" fn(call: *mut Call, kind: *const c_char, message: *const c_char),
    /// How far it is, 0 to 1.
    pub progress: unsafe extern "C" fn(call: *mut Call, fraction: f64, message: *const c_char),
    /// One item of a streaming tool; 0 when nobody wants more.
    pub emit: unsafe extern "C" fn(call: *mut Call, json: *const c_char, size: usize) -> i32,
    /// Not 0 once nobody wants the result.
    pub cancelled: unsafe extern "C" fn(call: *const Call) -> i32,
    /// A line of the plugin's log, with a level of syslog.
    pub log: unsafe extern "C" fn(level: i32, text: *const c_char),
}

/// One tool.
#[repr(C)]
#[derive(Debug)]
pub struct Tool {
    /// Its name.
    pub name: *const c_char,
    /// Null = none.
    pub description: *const c_char,
    /// JSON Schema of the arguments; null = any.
    pub input_schema: *const c_char,
    /// JSON Schema of the result; null = any.
    pub output_schema: *const c_char,
    /// Not 0: it calls `emit`.
    pub streams: i32,
    /// Runs one call.
    pub run: Option<unsafe extern "C" fn(plugin: *mut c_void, call: *mut Call, host: *const Host)>,
}

/// Makes the plugin; 0 = it worked.
pub type Init =
    unsafe extern "C" fn(start: *mut Call, host: *const Host, plugin: *mut *mut c_void) -> i32;

/// What a library is. Static: it is never freed.
#[repr(C)]
#[derive(Debug)]
pub struct Plugin {
    /// [`ABI`].
    pub abi: u32,
    /// None = nothing to do.
    pub init: Option<Init>,
    /// Before a requested stop; None = nothing to do.
    pub shutdown: Option<unsafe extern "C" fn(plugin: *mut c_void)>,
    /// How many tools.
    pub tool_count: usize,
    /// That many.
    pub tools: *const Tool,
}
