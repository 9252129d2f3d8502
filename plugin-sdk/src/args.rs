//! Arguments: a JSON object and the attachments, read as one struct.

use std::fmt;

use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};

use crate::{
    Error,
    blob::{Blob, hand_over},
};

/// An attachment as it came: its name and what it holds.
pub(crate) type Attachment = (String, Blob);

/// Reads `T` from the object `json` and the attachments; several attachments
/// of one name are a list.
pub(crate) fn read<T: DeserializeOwned>(
    json: &[u8],
    attachments: Vec<Attachment>,
) -> Result<T, Error> {
    let json = if json.is_empty() { b"{}" } else { json };
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let joined = Joined { json: &mut deserializer, groups: group(attachments) };
    T::deserialize(joined).map_err(|error| Error::new("InvalidArguments", error.to_string()))
}

fn group(attachments: Vec<Attachment>) -> Vec<(String, Vec<Blob>)> {
    let mut groups: Vec<(String, Vec<Blob>)> = Vec::new();
    for (name, blob) in attachments {
        match groups.iter_mut().find(|(known, _)| *known == name) {
            Some((_, blobs)) => blobs.push(blob),
            None => groups.push((name, vec![blob])),
        }
    }
    groups
}

/// A JSON object with further fields from the attachments.
struct Joined<'a, 'de> {
    json: &'a mut serde_json::Deserializer<serde_json::de::SliceRead<'de>>,
    groups: Vec<(String, Vec<Blob>)>,
}

impl<'de> Deserializer<'de> for Joined<'_, 'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.json.deserialize_map(JoinedVisitor { inner: visitor, groups: self.groups })
    }

    // No arguments at all: `()` takes any object.
    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        self.json.deserialize_ignored_any(de::IgnoredAny)?;
        visitor.visit_unit()
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        option unit_struct newtype_struct seq tuple tuple_struct map struct enum identifier
        ignored_any
    }
}

struct JoinedVisitor<V> {
    inner: V,
    groups: Vec<(String, Vec<Blob>)>,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for JoinedVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        let groups = self.groups.into_iter();
        self.inner.visit_map(JoinedMap { json: Some(map), groups, next: None })
    }
}

struct JoinedMap<A> {
    json: Option<A>,
    groups: std::vec::IntoIter<(String, Vec<Blob>)>,
    next: Option<Vec<Blob>>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for JoinedMap<A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        struct Once<K>(Option<K>);
        if let Some(json) = &mut self.json {
            // A seed can be used once: ask first whether there is a key.
            let mut once = Once(Some(seed));
            struct Borrowed<'s, K>(&'s mut Once<K>);
            impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for Borrowed<'_, K> {
                type Value = K::Value;
                fn deserialize<D: Deserializer<'de>>(
                    self,
                    deserializer: D,
                ) -> Result<K::Value, D::Error> {
                    match self.0.0.take() {
                        Some(seed) => seed.deserialize(deserializer),
                        None => Err(de::Error::custom("a key was read twice")),
                    }
                }
            }
            if let Some(key) = json.next_key_seed(Borrowed(&mut once))? {
                return Ok(Some(key));
            }
            self.json = None;
            let Some(seed) = once.0 else { return Ok(None) };
            return self.next_attachment(seed);
        }
        self.next_attachment(seed)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        match (self.next.take(), &mut self.json) {
            (Some(blobs), _) => seed.deserialize(BlobsDeserializer::new(blobs)),
            (None, Some(json)) => json.next_value_seed(seed),
            (None, None) => Err(de::Error::custom("a value without a key")),
        }
    }
}

impl<A> JoinedMap<A> {
    fn next_attachment<'de, K, E>(&mut self, seed: K) -> Result<Option<K::Value>, E>
    where
        K: DeserializeSeed<'de>,
        E: de::Error,
    {
        let Some((name, blobs)) = self.groups.next() else { return Ok(None) };
        self.next = Some(blobs);
        seed.deserialize(name.into_deserializer()).map(Some)
    }
}

/// The attachments of one name: one value, or a list.
struct BlobsDeserializer<E> {
    blobs: Vec<Blob>,
    error: std::marker::PhantomData<E>,
}

impl<E> BlobsDeserializer<E> {
    fn new(blobs: Vec<Blob>) -> Self {
        BlobsDeserializer { blobs, error: std::marker::PhantomData }
    }
}

impl<'de, E: de::Error> Deserializer<'de> for BlobsDeserializer<E> {
    type Error = E;

    fn deserialize_any<V: Visitor<'de>>(mut self, visitor: V) -> Result<V::Value, E> {
        match (self.blobs.pop(), self.blobs.is_empty()) {
            (Some(blob), true) => {
                hand_over(blob);
                visitor.visit_unit()
            }
            _ => Err(E::custom("one attachment expected, several given")),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, E> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, E> {
        struct Blobs<E>(std::vec::IntoIter<Blob>, std::marker::PhantomData<E>);
        impl<'de, E: de::Error> SeqAccess<'de> for Blobs<E> {
            type Error = E;
            fn next_element_seed<S: DeserializeSeed<'de>>(
                &mut self,
                seed: S,
            ) -> Result<Option<S::Value>, E> {
                let Some(blob) = self.0.next() else { return Ok(None) };
                seed.deserialize(BlobsDeserializer::<E>::new(vec![blob])).map(Some)
            }
        }
        visitor.visit_seq(Blobs(self.blobs.into_iter(), std::marker::PhantomData))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize, Debug)]
    struct Args {
        width: u32,
        image: Blob,
        mask: Option<Blob>,
        #[serde(default)]
        frames: Vec<Blob>,
    }

    fn blob(name: &str, byte: u8) -> Attachment {
        (name.to_owned(), Blob::new(vec![byte]))
    }

    #[test]
    fn fields_come_from_json_and_from_attachments() {
        let attachments = vec![blob("image", 1), blob("frames", 2), blob("frames", 3)];
        let args: Args = read(br#"{"width": 7}"#, attachments).unwrap();
        assert_eq!((args.width, args.image[0]), (7, 1));
        assert!(args.mask.is_none());
        assert_eq!(args.frames.iter().map(|frame| frame[0]).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn a_missing_or_doubled_attachment_is_an_error_of_the_arguments() {
        let missing = read::<Args>(br#"{"width": 7}"#, vec![]).unwrap_err();
        assert_eq!(missing.kind(), "InvalidArguments");
        assert!(missing.message().contains("missing field `image`"), "{missing}");
        let doubled = read::<Args>(br#"{"width": 7}"#, vec![blob("image", 1), blob("image", 2)]);
        assert!(doubled.unwrap_err().message().contains("several given"));
    }

    #[test]
    fn no_arguments_is_the_unit_type() {
        read::<()>(b"", vec![]).unwrap();
        read::<()>(br#"{"x": 1}"#, vec![]).unwrap();
    }
}
