//! How much a JSON text becomes in memory, told from the text alone.

use std::{collections::BTreeMap, mem::size_of};

use memchr::memchr2;
use serde_json::Value;
use stockade_proto::limits;

/// What a text becomes when it is read into a [`Value`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Values in it; never fewer than there are.
    pub values: usize,
    /// Bytes of memory, about.
    pub bytes: usize,
    /// Objects and arrays within each other.
    pub depth: usize,
}

/// What an object costs besides its entries.
const OBJECT: usize = 160 + size_of::<BTreeMap<String, Value>>();
/// What a value costs: itself, and as an entry its key and its place in the index.
const VALUE: usize = size_of::<Value>() + 48;

/// Weighs a text that need not be valid. One pass, no memory.
pub fn weigh(text: &[u8]) -> Weight {
    let (mut values, mut objects) = (1, 0);
    let (mut open, mut depth) = (0usize, 0);
    let mut index = 0;
    while let Some(byte) = text.get(index) {
        match byte {
            b',' => values += 1,
            b'[' | b'{' => {
                values += 1;
                objects += usize::from(*byte == b'{');
                open += 1;
                depth = depth.max(open);
            }
            b']' | b'}' => open = open.saturating_sub(1),
            b'"' => index = end_of_string(text, index),
            _ => {}
        }
        index += 1;
    }
    Weight { values, bytes: text.len() + values * VALUE + objects * OBJECT, depth }
}

/// Values of a text that is read on a thread that others need.
pub const QUICK_VALUES: usize = 2000;

/// A text may be read on a thread that others need.
pub fn is_quick(text: &[u8]) -> bool {
    // No text has more values than bytes.
    text.len() <= QUICK_VALUES || (text.len() <= limits::STEP && weigh(text).values <= QUICK_VALUES)
}

/// Where the string that begins at `start` ends: its closing quote, or the text's end.
pub(crate) fn end_of_string(text: &[u8], start: usize) -> usize {
    let mut index = start + 1;
    while let Some(next) = text.get(index..).and_then(|rest| memchr2(b'"', b'\\', rest)) {
        index += next;
        if text[index] == b'"' {
            return index;
        }
        // What it escapes is no end.
        index += 2;
    }
    text.len()
}

/// What is wrong with a text that could not be read, for "… is not JSON: …".
pub fn why_unread(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.contains("recursion limit") {
        // It is JSON, but for others.
        true => {
            format!("more than {} objects and arrays are within each other", limits::JSON_DEPTH)
        }
        false => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(value: &Value) -> usize {
        1 + match value {
            Value::Array(items) => items.iter().map(count).sum(),
            Value::Object(fields) => fields.values().map(count).sum(),
            _ => 0,
        }
    }

    #[test]
    fn no_text_has_more_values_than_it_weighs() {
        for text in
            ["1", "[]", r#"{"a":[1,2,{"b":"x,[{\"y"}],"c\\":null}"#, r#"[[[]],{},{"":""},"{[,"]"#]
        {
            let value: Value = serde_json::from_str(text).unwrap();
            let weight = weigh(text.as_bytes());
            assert!(weight.values >= count(&value), "{text}: {weight:?}");
            assert!(weight.values <= 2 * count(&value), "{text}: {weight:?}");
        }
        assert_eq!(weigh(b"\"never ends \\").values, 1);
        assert_eq!(weigh(br#"[{"a":[1],"b":"[["},[[0]]]"#).depth, 3);
        assert!(is_quick(&b"0,".repeat(900)) && !is_quick(&b"0,".repeat(2000)));
        assert_eq!(end_of_string(br#""a\"b\\",1"#, 0), 7);
        assert_eq!(end_of_string(br#""\"#, 0), 2);
    }
}
