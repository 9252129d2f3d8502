//! Arguments and results, handed to the code that checks them: for the fuzz
//! targets only (`cfg(fuzzing)`).

use bytes::Bytes;

use super::arguments::{check_result, prepare};
use crate::plugin::{Attachment, Tool};

/// Never panics; what is accepted is JSON again.
pub fn arguments(tool: &Tool, args: &[u8], attachment: &[u8], loose: bool) {
    let attachment = Attachment {
        name: "data".into(),
        content_type: String::new(),
        data: Bytes::copy_from_slice(attachment),
    };
    if let Ok((text, _)) = prepare(tool, Bytes::copy_from_slice(args), vec![attachment], loose) {
        serde_json::from_slice::<serde_json::Value>(&text).expect("JSON");
    }
    let _ = check_result(tool, args);
}
