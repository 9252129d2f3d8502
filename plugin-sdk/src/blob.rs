//! Binary arguments and results, as bytes.

use std::{
    borrow::Cow,
    cell::RefCell,
    fmt,
    hash::{BuildHasher as _, RandomState},
    io,
    ops::Deref,
};

use bytes::Bytes;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::ser::{CharEscape, CompactFormatter, Formatter};

use crate::guest::Parts;

/// Bytes with a content type: an image, a frame, a tensor.
///
/// As a field of an argument type it takes the attachment (multipart part,
/// file of `stockade call --file`) of the field's name. In a result it becomes
/// an attachment named after its field.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Blob {
    data: Bytes,
    content_type: String,
}

impl Blob {
    /// Bytes without a content type.
    pub fn new(data: impl Into<Bytes>) -> Self {
        Blob { data: data.into(), content_type: String::new() }
    }

    /// Bytes with a content type, for instance `image/jpeg`.
    pub fn typed(data: impl Into<Bytes>, content_type: impl Into<String>) -> Self {
        Blob { data: data.into(), content_type: content_type.into() }
    }

    /// The content type, empty when unknown.
    pub fn content_type(&self) -> &str {
        &self.content_type
    }

    /// The bytes; cloning them copies nothing.
    pub fn bytes(&self) -> &Bytes {
        &self.data
    }
}

impl Deref for Blob {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.data
    }
}

impl From<Vec<u8>> for Blob {
    fn from(data: Vec<u8>) -> Self {
        Blob::new(data)
    }
}

impl fmt::Debug for Blob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Blob({} bytes, {:?})", self.data.len(), self.content_type)
    }
}

impl JsonSchema for Blob {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Blob".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "format": "binary" })
    }
}

/// Blobs met while a result is being serialised, and the word that marks them: a text
/// that merely looks like a mark does not know it.
struct Collected {
    mark: String,
    blobs: Vec<Blob>,
}

thread_local! {
    /// The blob that is being handed to `Blob::deserialize` on this thread.
    static HANDED_OVER: RefCell<Option<Blob>> = const { RefCell::new(None) };
    /// Blobs met while a result is being serialised on this thread.
    static COLLECTED: RefCell<Option<Collected>> = const { RefCell::new(None) };
}

/// What a blob is in JSON text: this and its attachment's name.
pub(crate) const PLACEHOLDER: &str = "attachment:";

pub(crate) fn hand_over(blob: Blob) {
    HANDED_OVER.with_borrow_mut(|slot| *slot = Some(blob));
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Blob;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an attachment")
            }
            fn visit_unit<E: de::Error>(self) -> Result<Blob, E> {
                HANDED_OVER
                    .with_borrow_mut(Option::take)
                    .ok_or_else(|| E::custom("expected an attachment, found null"))
            }
            fn visit_str<E: de::Error>(self, _: &str) -> Result<Blob, E> {
                Err(E::custom("expected an attachment, found text"))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mark = COLLECTED.with_borrow_mut(|slot| {
            slot.as_mut().map(|collected| {
                collected.blobs.push(self.clone());
                format!("{PLACEHOLDER}\u{0}{}{}", collected.mark, collected.blobs.len() - 1)
            })
        });
        match mark {
            Some(mark) => serializer.serialize_str(&mark),
            None => Err(serde::ser::Error::custom("a Blob can only be part of a tool's result")),
        }
    }
}

/// Serialises `value`; blobs are taken out and named after where they stood.
pub(crate) fn serialise<T: Serialize>(value: &T) -> Result<Parts, serde_json::Error> {
    let mark = format!("{:016x}:", RandomState::new().hash_one(0));
    let empty = Collected { mark: mark.clone(), blobs: Vec::new() };
    COLLECTED.with_borrow_mut(|slot| *slot = Some(empty));
    let text = serde_json::to_vec(value);
    let collected = COLLECTED.with_borrow_mut(Option::take);
    let blobs = collected.map(|collected| collected.blobs).unwrap_or_default();
    let text = text?;
    if blobs.is_empty() {
        return Ok((text, Vec::new()));
    }
    let mut json: serde_json::Value = serde_json::from_slice(&text)?;
    let mut named = Vec::with_capacity(blobs.len());
    name_blobs(&mut json, "result", (&mark, &blobs), &mut named);
    let mut text = Vec::with_capacity(text.len());
    let writer = References { mark: mark.as_bytes(), state: Written::Other };
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut text, writer))?;
    Ok((text, named))
}

/// Text in a result that begins like a reference to an attachment and is none is written
/// with an escape in it: the same text for whoever reads the JSON, no reference for
/// whoever looks for one.
pub const ESCAPED: &[u8] = b"attachment\\u003a";

/// How much of a text has been written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    /// Nothing.
    Nothing,
    /// `attachment:` is held back: a mark may follow.
    Begun,
    /// So is the zero behind it.
    Zero,
    /// It is neither a mark nor looks like one.
    Other,
}

/// Writes marks as references, and text that looks like one with an escape.
struct References<'m> {
    mark: &'m [u8],
    state: Written,
}

impl References<'_> {
    /// What was held back was only text.
    fn give_up<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        let state = std::mem::replace(&mut self.state, Written::Other);
        if matches!(state, Written::Begun | Written::Zero) {
            writer.write_all(ESCAPED)?;
        }
        if state == Written::Zero {
            writer.write_all(b"\\u0000")?;
        }
        Ok(())
    }
}

impl Formatter for References<'_> {
    fn begin_string<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.state = Written::Nothing;
        writer.write_all(b"\"")
    }

    fn end_string<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.give_up(writer)?;
        writer.write_all(b"\"")
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        match self.state {
            Written::Nothing if fragment == PLACEHOLDER => {
                self.state = Written::Begun;
                return Ok(());
            }
            Written::Nothing => {
                self.state = Written::Other;
                if let Some(rest) = fragment.strip_prefix(PLACEHOLDER) {
                    writer.write_all(ESCAPED)?;
                    return writer.write_all(rest.as_bytes());
                }
            }
            Written::Zero => {
                if let Some(name) = fragment.as_bytes().strip_prefix(self.mark) {
                    self.state = Written::Other;
                    writer.write_all(PLACEHOLDER.as_bytes())?;
                    return writer.write_all(name);
                }
                self.give_up(writer)?;
            }
            Written::Begun => self.give_up(writer)?,
            Written::Other => {}
        }
        writer.write_all(fragment.as_bytes())
    }

    fn write_char_escape<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        if self.state == Written::Begun && matches!(escape, CharEscape::AsciiControl(0)) {
            self.state = Written::Zero;
            return Ok(());
        }
        self.give_up(writer)?;
        CompactFormatter.write_char_escape(writer, escape)
    }
}

/// Adds `blob` to the attachments of a result, named after where it stands;
/// returns the text that stands for it in the JSON.
pub fn attach(named: &mut Vec<(String, Blob)>, name: &str, blob: Blob) -> String {
    let mut unique = name.to_owned();
    let mut n = 1;
    while named.iter().any(|(taken, _)| *taken == unique) {
        n += 1;
        unique = format!("{name}-{n}");
    }
    let text = format!("{PLACEHOLDER}{unique}");
    named.push((unique, blob));
    text
}

fn name_blobs(
    json: &mut serde_json::Value,
    name: &str,
    (mark, blobs): (&str, &[Blob]),
    named: &mut Vec<(String, Blob)>,
) {
    use serde_json::Value;
    match json {
        Value::String(text) => {
            let index = text
                .strip_prefix(PLACEHOLDER)
                .and_then(|rest| rest.strip_prefix('\u{0}')?.strip_prefix(mark))
                .and_then(|index| index.parse::<usize>().ok());
            let Some(blob) = index.and_then(|index| blobs.get(index)) else { return };
            let reference = attach(named, name, blob.clone());
            let name = reference.strip_prefix(PLACEHOLDER).unwrap_or_default();
            // Still marked: the writer takes it off.
            *text = format!("{PLACEHOLDER}\u{0}{mark}{name}");
        }
        Value::Array(items) => {
            for item in items {
                name_blobs(item, name, (mark, blobs), named);
            }
        }
        Value::Object(fields) => {
            for (key, value) in fields {
                name_blobs(value, key, (mark, blobs), named);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_of_a_result_are_named_after_their_fields() {
        #[derive(Serialize)]
        struct Output {
            width: u32,
            thumb: Blob,
            tiles: Vec<Blob>,
        }
        let output = Output {
            width: 3,
            thumb: Blob::typed(vec![1], "image/jpeg"),
            tiles: vec![Blob::new(vec![2]), Blob::new(vec![3])],
        };
        let (text, blobs) = serialise(&output).unwrap();
        assert_eq!(
            String::from_utf8(text).unwrap(),
            r#"{"width":3,"thumb":"attachment:thumb","tiles":["attachment:tiles","attachment:tiles-2"]}"#
        );
        let names: Vec<_> = blobs.iter().map(|(name, blob)| (name.as_str(), blob[0])).collect();
        assert_eq!(names, [("thumb", 1), ("tiles", 2), ("tiles-2", 3)]);
    }

    #[test]
    fn text_that_looks_like_a_reference_is_none() {
        #[derive(Serialize)]
        struct Output {
            text: &'static str,
            more: Vec<&'static str>,
            blob: Blob,
        }
        let more = vec!["attachment:", "attachment:\u{0}0", "attachment:\"x", "attachment", "x"];
        let output = Output { text: "attachment:blob", more, blob: Blob::new(vec![1]) };
        let (text, _) = serialise(&output).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(
            text,
            r#"{"text":"attachment\u003ablob","more":["attachment\u003a","attachment\u003a\u00000","attachment\u003a\"x","attachment","x"],"blob":"attachment:blob"}"#
        );
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["text"], "attachment:blob");
        assert_eq!(read["more"][1], "attachment:\u{0}0");
    }

    #[test]
    fn a_blob_outside_a_result_is_refused() {
        assert!(serde_json::to_string(&Blob::new(vec![1])).is_err());
    }
}
