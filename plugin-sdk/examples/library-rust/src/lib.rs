//! A plugin as a shared library in Rust: `count` counts the words of a text.
//! For code that has to be a library; a program with `stockade_plugin_sdk` is
//! the easier way.
#![allow(unsafe_code)]

use std::{
    ffi::{c_char, c_void},
    ptr,
};

use serde_json::{Value, json};
use stockade_library::{ABI, Call, Host, Plugin, Tool};

/// Counts the words of `text`, in the order of how often they come.
fn count(args: &Value) -> Result<Value, &'static str> {
    let text = args["text"].as_str().ok_or("`text` is missing")?;
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for word in text.split_whitespace() {
        match counts.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => counts.push((word, 1)),
        }
    }
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    Ok(json!(counts))
}

/// From C to Rust and back.
unsafe extern "C" fn run(_: *mut c_void, call: *mut Call, host: *const Host) {
    // SAFETY: host and call are valid until this function returns; the arguments
    // are `size` bytes of the host's; what is handed over is copied.
    unsafe {
        let host = &*host;
        let args = (host.args)(call);
        let args = std::slice::from_raw_parts(args.data, args.size);
        match count(&serde_json::from_slice(args).unwrap_or_default()) {
            Ok(result) => {
                let text = result.to_string();
                (host.result)(call, text.as_ptr().cast(), text.len());
            }
            Err(why) => {
                let why = format!("{why}\0");
                (host.fail)(call, c"ValueError".as_ptr(), why.as_ptr().cast());
            }
        }
    }
}

const INPUT: &str = "{\"type\": \"object\", \"required\": [\"text\"], \
                     \"properties\": {\"text\": {\"type\": \"string\"}}}\0";

/// Pointers to statics may be shared.
struct Shared<T>(T);

// SAFETY: nothing is ever written to what these tables point to.
unsafe impl<T> Sync for Shared<T> {}

static TOOLS: Shared<[Tool; 1]> = Shared([Tool {
    name: c"count".as_ptr(),
    description: c"Counts the words of a text".as_ptr(),
    input_schema: INPUT.as_ptr().cast::<c_char>(),
    output_schema: ptr::null(),
    streams: 0,
    run: Some(run),
}]);

static PLUGIN: Shared<Plugin> =
    Shared(Plugin { abi: ABI, init: None, shutdown: None, tool_count: 1, tools: TOOLS.0.as_ptr() });

/// The one symbol that the host looks for.
// SAFETY: no other symbol of this name is linked into a library of one plugin.
#[unsafe(no_mangle)]
pub extern "C" fn stockade_plugin_v1() -> *const Plugin {
    &raw const PLUGIN.0
}
