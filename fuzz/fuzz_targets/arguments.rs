//! Arguments against schemas, both of any content: `READY \0 ARGS`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use stockade::{calls::fuzzing::arguments, plugin::fuzzing::tools};
use stockade_proto::worker::{InitReady, ToolSpec};

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(3, |byte| *byte == 0);
    let (schema, args) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let attachment = parts.next().unwrap_or_default();
    let Ok(schema) = std::str::from_utf8(schema) else { return };
    let spec = ToolSpec { name: "t".into(), input_schema: schema.into(), ..ToolSpec::default() };
    let ready = InitReady { tools: vec![spec], ..InitReady::default() }.encode_to_vec();
    let Some(tools) = tools(&ready) else { return };
    for tool in tools.iter() {
        arguments(tool, args, attachment, false);
        arguments(tool, args, attachment, true);
    }
});
