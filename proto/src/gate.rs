//! The gate of every message from outside: its encoded form is walked once, and
//! each text, list and number of parts compared with its bound, before anything
//! is decoded. Two bytes of a message can become a hundred in memory; a walk
//! costs nothing but the walk.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstEncoder};

use crate::limits;

/// The bounds of one message type.
#[derive(Debug)]
pub struct Gate {
    /// Its full name.
    pub name: &'static str,
    /// Its fields.
    pub fields: &'static [Field],
}

/// The bounds of one field.
#[derive(Debug)]
pub struct Field {
    /// Its number on the wire.
    pub number: u32,
    /// Its name.
    pub name: &'static str,
    /// How often it may occur.
    pub most: usize,
    /// What it holds.
    pub kind: Kind,
}

/// What a field holds.
#[derive(Debug)]
pub enum Kind {
    /// A number.
    Scalar,
    /// So many bytes of text or data.
    Bytes(usize),
    /// Another message.
    Message(&'static Gate),
}

/// A type that comes over a channel. None: it comes from the daemon itself.
pub trait Gated {
    /// Its bounds.
    const GATE: Option<&'static Gate>;
}

/// What does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub String);

/// A message up to this size is copied out of the buffer in which it came: what is kept
/// of it would keep the buffer, which may be as large as the largest message.
const OWN: usize = 8 << 20;
/// Fields of one message type.
const FIELDS: usize = 32;

/// Walks an encoded message.
///
/// # Errors
/// A field is beyond its bound, or the text is no message.
pub fn check(gate: &Gate, mut bytes: &[u8]) -> Result<(), Refused> {
    let mut counts = [0usize; FIELDS];
    let (mut unknown, mut unknown_bytes) = (0, 0);
    while !bytes.is_empty() {
        let broken = || Refused(format!("{} is not a well-formed message", gate.name));
        let key = varint(&mut bytes).ok_or_else(broken)?;
        let (number, wire) = ((key >> 3) as u32, key & 7);
        let content = match wire {
            0 => varint(&mut bytes).map(|_| &bytes[..0]),
            1 => take(&mut bytes, 8),
            5 => take(&mut bytes, 4),
            2 => {
                let length = varint(&mut bytes).ok_or_else(broken)?;
                take(&mut bytes, usize::try_from(length).unwrap_or(usize::MAX))
            }
            // Groups are gone since a long time.
            _ => None,
        };
        let content = content.ok_or_else(broken)?;
        let known = gate.fields.iter().position(|field| field.number == number);
        let Some((index, field)) = known.map(|index| (index, &gate.fields[index])) else {
            unknown += 1;
            unknown_bytes += content.len();
            if unknown > limits::UNKNOWN || unknown_bytes > limits::UNKNOWN_BYTES {
                return Err(Refused(format!(
                    "{} has {unknown} unknown fields of {unknown_bytes} bytes or more; {} of {} \
                     bytes are allowed (docs/limits.md). Its sender may be made for a newer version",
                    gate.name,
                    limits::UNKNOWN,
                    limits::UNKNOWN_BYTES
                )));
            }
            continue;
        };
        counts[index.min(FIELDS - 1)] += 1;
        if counts[index.min(FIELDS - 1)] > field.most {
            return Err(Refused(format!(
                "{}.{} has more than {} entries (docs/limits.md)",
                gate.name, field.name, field.most
            )));
        }
        match field.kind {
            Kind::Bytes(most) if content.len() > most => {
                return Err(Refused(format!(
                    "{}.{} has {} bytes; {most} are allowed (docs/limits.md)",
                    gate.name,
                    field.name,
                    content.len()
                )));
            }
            // Numbers in one piece: none takes more than ten bytes.
            Kind::Scalar if content.len() > field.most.saturating_mul(10) => {
                return Err(Refused(format!(
                    "{}.{} has more than {} entries (docs/limits.md)",
                    gate.name, field.name, field.most
                )));
            }
            Kind::Message(inner) => check(inner, content)?,
            Kind::Bytes(_) | Kind::Scalar => {}
        }
    }
    Ok(())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (index, byte) in bytes.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            *bytes = &bytes[index + 1..];
            return Some(value);
        }
    }
    None
}

fn take<'b>(bytes: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
    let (content, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(content)
}

/// Protobuf, through the gate.
#[derive(Clone, Debug)]
pub struct GatedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for GatedCodec<T, U> {
    fn default() -> Self {
        GatedCodec(PhantomData)
    }
}

impl<T, U> Codec for GatedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Gated + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = GatedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        GatedDecoder(PhantomData)
    }
}

/// Decodes what has passed the gate.
#[derive(Clone, Debug)]
pub struct GatedDecoder<U>(PhantomData<U>);

impl<U> Default for GatedDecoder<U> {
    fn default() -> Self {
        GatedDecoder(PhantomData)
    }
}

impl<U: Message + Default + Gated> Decoder for GatedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        if let Some(gate) = U::GATE {
            check(gate, buffer.chunk()).map_err(|refused| Status::invalid_argument(refused.0))?;
        }
        own(buffer).map(Some).map_err(|error| Status::invalid_argument(error.to_string()))
    }
}

/// Decodes a message which keeps nothing but itself, unless it is large.
fn own<U: Message + Default>(buffer: &mut impl Buf) -> Result<U, prost::DecodeError> {
    let length = buffer.remaining();
    if length > OWN || buffer.chunk().len() < length {
        return U::decode(buffer);
    }
    let own = Bytes::copy_from_slice(buffer.chunk());
    buffer.advance(length);
    U::decode(own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{v1, worker};

    fn refused<M: Message + Gated>(message: &M) -> Option<String> {
        let gate = M::GATE.expect("gated");
        check(gate, &message.encode_to_vec()).err().map(|refused| refused.0)
    }

    #[test]
    fn what_is_kept_of_a_message_keeps_no_buffer() {
        #[derive(Clone, PartialEq, Message)]
        struct Kept {
            #[prost(bytes = "bytes", tag = "1")]
            bytes: Bytes,
        }
        let text = Kept { bytes: Bytes::from_static(b"kept") }.encode_to_vec();
        let mut all = bytes::BytesMut::from(&text[..]);
        all.extend_from_slice(&[0; 1 << 20]);
        let whole = all.clone().freeze();
        let kept: Kept = own(&mut whole.slice(..text.len())).unwrap();
        assert_eq!(kept.bytes, "kept");
        assert!(whole.is_unique(), "a slice of it is kept");
    }

    #[test]
    fn unknown_fields_are_few_and_small() {
        let gate = v1::CallRequest::GATE.expect("gated");
        let unknown = |bytes: usize| {
            let mut text = vec![0xfa, 0x3e];
            prost::encoding::encode_varint(bytes as u64, &mut text);
            text.resize(text.len() + bytes, 0);
            check(gate, &text)
        };
        assert_eq!(unknown(limits::UNKNOWN_BYTES), Ok(()));
        assert!(unknown(limits::UNKNOWN_BYTES + 1).is_err());
    }

    #[test]
    fn sizes_pass_at_the_bound_and_not_beyond() {
        let call =
            |bytes: usize| v1::CallRequest { plugin: "p".repeat(bytes), ..Default::default() };
        assert_eq!(refused(&call(limits::NAME)), None);
        let why = refused(&call(limits::NAME + 1)).unwrap();
        assert!(why.contains("CallRequest.plugin has 129 bytes; 128 are allowed"), "{why}");
        let list = |entries: usize| v1::CallRequest {
            attachments: vec![v1::Attachment::default(); entries],
            ..Default::default()
        };
        assert_eq!(refused(&list(limits::ATTACHMENTS)), None);
        let why = refused(&list(limits::ATTACHMENTS + 1)).unwrap();
        assert!(why.contains("attachments has more than 256 entries"), "{why}");
    }

    #[test]
    fn bounds_hold_within_messages_of_messages() {
        let done = worker::Done {
            attachments: vec![worker::Attachment { name: "n".repeat(200), ..Default::default() }],
            ..Default::default()
        };
        let frame = worker::FromPlugin { frame: Some(worker::from_plugin::Frame::Done(done)) };
        assert!(refused(&frame).unwrap().contains("Attachment.name has 200 bytes"));
    }

    #[test]
    fn what_is_no_message_is_refused() {
        let gate = v1::CallRequest::GATE.unwrap();
        for broken in [&b"\x0a\xff"[..], b"\x0b", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"] {
            assert!(check(gate, broken).is_err(), "{broken:?}");
        }
        // A newer client's field is ignored.
        assert_eq!(check(gate, &[0xf8, 0x7f, 0x01]), Ok(()));
    }
}
