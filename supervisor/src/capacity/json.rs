//! How much a JSON text becomes in memory, told from the text alone.

use std::{collections::BTreeMap, fmt, mem::size_of};

use memchr::memchr2;
use serde::de::{
    Deserialize, DeserializeOwned, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};
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
/// What an array costs besides: there is room for four values at least.
const ARRAY: usize = 3 * size_of::<Value>();
/// What a value costs: itself, and as an entry its key and its place in the index.
const VALUE: usize = size_of::<Value>() + 48;

/// Weighs a text that need not be valid. One pass, no memory.
pub fn weigh(text: &[u8]) -> Weight {
    let (mut values, mut objects, mut arrays) = (1, 0, 0);
    let (mut open, mut depth) = (0usize, 0);
    let mut index = 0;
    while let Some(byte) = text.get(index) {
        match byte {
            b',' => values += 1,
            b'[' | b'{' => {
                values += 1;
                match byte {
                    b'{' => objects += 1,
                    _ => arrays += 1,
                }
                open += 1;
                depth = depth.max(open);
            }
            b']' | b'}' => open = open.saturating_sub(1),
            b'"' => index = end_of_string(text, index),
            _ => {}
        }
        index += 1;
    }
    let bytes = text.len() + values * VALUE + objects * OBJECT + arrays * ARRAY;
    Weight { values, bytes, depth }
}

/// Values of a text that is read on a thread that others need.
pub const QUICK_VALUES: usize = 2000;

/// A text may be read on a thread that others need.
pub fn is_quick(text: &[u8]) -> bool {
    // No text has more values than bytes.
    text.len() <= QUICK_VALUES || (text.len() <= limits::STEP && weigh(text).values <= QUICK_VALUES)
}

/// Where the string that begins at `start` ends: its closing quote, or the text's end.
fn end_of_string(text: &[u8], start: usize) -> usize {
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

/// A text that can be read as a [`Value`]; it is not kept.
///
/// # Errors
/// What is wrong with it.
pub fn read_through(text: &[u8]) -> Result<(), serde_json::Error> {
    serde_json::from_slice::<Passed>(text).map(drop)
}

/// A text that is to be read, and written again later.
///
/// # Errors
/// What is wrong with it, an integer among it that would not be written as it was.
pub fn read_exactly<T: DeserializeOwned>(text: &[u8]) -> Result<T, serde_json::Error> {
    exact(text).map_err(serde_json::Error::custom)?;
    serde_json::from_slice(text)
}

/// The text can be read and written again, and says the same.
///
/// # Errors
/// Which integer would be another number.
pub fn exact(text: &[u8]) -> Result<(), String> {
    inexact(text).map_or(Ok(()), |number| {
        Err(format!(
            "{} is an integer of more than 64 bits and would not be kept as it is; write it as a \
             string",
            limits::cut(number, limits::NAME)
        ))
    })
}

/// The first integer beyond 64 bits, which becomes the nearest float when it is read.
fn inexact(text: &[u8]) -> Option<&str> {
    let mut index = 0;
    while let Some(byte) = text.get(index) {
        match byte {
            b'"' => index = end_of_string(text, index),
            b'-' | b'0'..=b'9' => {
                let rest = &text[index..];
                let is_part = |byte: &u8| {
                    matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E') || byte.is_ascii_digit()
                };
                let end = rest.iter().position(|byte| !is_part(byte)).unwrap_or(rest.len());
                let number = &rest[..end];
                let digits = number.strip_prefix(b"-").unwrap_or(number);
                // Those of fewer digits fit.
                if end > 18 && digits.iter().all(u8::is_ascii_digit) {
                    let number = str::from_utf8(number).unwrap_or_default();
                    if number.parse::<i64>().is_err() && number.parse::<u64>().is_err() {
                        return Some(number);
                    }
                }
                index += end - 1;
            }
            _ => {}
        }
        index += 1;
    }
    None
}

/// A value that was read with all that is in it, as a [`Value`] is: what is too deep or no
/// number is an error, which [`serde::de::IgnoredAny`] does not find.
struct Passed;

impl<'de> Deserialize<'de> for Passed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Passed)
    }
}

impl<'de> Visitor<'de> for Passed {
    type Value = Passed;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Passed>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        while fields.next_entry::<Passed, Passed>()?.is_some() {}
        Ok(self)
    }
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
    fn what_is_read_through_can_be_read() {
        let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        let texts = [
            r#"{"a":[1,-2,3.5e3,true,null,"x\n\u00e4"],"a":{}}"#.to_owned(),
            deep(127),
            deep(128),
            "1e999".to_owned(),
            "18446744073709551616".to_owned(),
            "\"\\ud800\"".to_owned(),
            "[1,]".to_owned(),
            "{1:2}".to_owned(),
            "1 2".to_owned(),
            String::new(),
        ];
        for text in &texts {
            let whole = serde_json::from_str::<Value>(text).map(drop).map_err(|e| e.to_string());
            let passed = read_through(text.as_bytes()).map_err(|e| e.to_string());
            assert_eq!(passed, whole, "{text:.40}");
        }
        assert!(read_through(&[b'"', 0xff, b'"']).is_err());
    }

    #[test]
    fn what_would_not_be_kept_as_it_is_is_not_read() {
        let kept = r#"{"a":[-9223372036854775808,18446744073709551615,0.12345678901234567890,
            1e300,12345678901234567890123e0,"12345678901234567890123"],"12345678901234567890123":1}"#;
        for text in
            [kept, "1", "[]", "2026-11-23-2026-11-23", "\"never ends 12345678901234567890123"]
        {
            assert_eq!(inexact(text.as_bytes()), None, "{text}");
        }
        for (text, number) in [
            ("18446744073709551616", "18446744073709551616"),
            (r#"{"a\"":[1,-9223372036854775809]}"#, "-9223372036854775809"),
            ("[0,12345678901234567890123]", "12345678901234567890123"),
        ] {
            assert_eq!(inexact(text.as_bytes()), Some(number));
            let why = read_exactly::<Value>(text.as_bytes()).unwrap_err().to_string();
            assert!(why.starts_with(number) && why.contains("64 bits"), "{why}");
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
