//! Binary arguments and results, and their form on the wire.

use bytes::Bytes;
use stockade_proto::worker as wire;

use crate::capacity::swept;

/// A binary argument or result.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// Name of the property.
    pub name: String,
    /// Empty when unknown.
    pub content_type: String,
    /// The bytes.
    pub data: Bytes,
}

impl From<wire::Attachment> for Attachment {
    fn from(wire: wire::Attachment) -> Self {
        let data = swept(wire.data);
        Attachment { name: wire.name, content_type: wire.content_type, data }
    }
}

impl From<Attachment> for wire::Attachment {
    fn from(attachment: Attachment) -> Self {
        wire::Attachment {
            name: attachment.name,
            content_type: attachment.content_type,
            data: attachment.data,
        }
    }
}

pub(super) fn convert(attachments: Vec<wire::Attachment>) -> Vec<Attachment> {
    attachments.into_iter().map(Attachment::from).collect()
}
