//! Arguments and results, handed to the code that checks them: for the fuzz
//! targets only (`cfg(fuzzing)`).

use bytes::Bytes;

use super::arguments::{Given, check_result, prepare};
use crate::{
    capacity::Budget,
    plugin::{Attachment, Tool},
};

/// Never panics; what is accepted is JSON again.
pub fn arguments(tool: &Tool, args: &[u8], attachment: &[u8], loose: bool) {
    let attachment = Attachment {
        name: "data".into(),
        content_type: String::new(),
        data: Bytes::copy_from_slice(attachment),
    };
    let account = Budget::new(16 << 20).of_plugin();
    let given = Given { args: Bytes::copy_from_slice(args), attachments: vec![attachment], loose };
    if let Ok((text, _)) = prepare(tool, given, &account) {
        serde_json::from_slice::<serde_json::Value>(&text).expect("JSON");
    }
    let _ = check_result(tool, args, &account);
}
