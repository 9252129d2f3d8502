//! A result in whose text attachments stand as base64. Each is found, and its base64 made,
//! while the text is sent: nothing is kept of how often one is named.

use std::collections::HashMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::{Buf as _, Bytes};
use memchr::{memchr, memchr2};

use crate::{capacity::limits, plugin::Attachment};

/// Bytes that become one piece of base64 of at most [`limits::STEP`].
const TRIPLES: usize = limits::STEP / 4 * 3;
/// What an attachment stands as in a result, and then its name.
const REFERENCE: &[u8] = b"\"attachment:";
/// So small a part is sent together with what follows it.
const SMALL: usize = 4 << 10;

/// What has not been sent of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Inlined {
    text: Bytes,
    /// The text begins within a string that is no reference.
    within: bool,
    /// Of the attachment that stands before the text.
    data: Bytes,
    attachments: HashMap<Bytes, Bytes>,
}

/// What comes next.
enum Part {
    Text(Bytes),
    Data(Bytes),
}

impl Inlined {
    pub(super) fn new(text: Bytes, attachments: Vec<Attachment>) -> Self {
        let mut named = HashMap::new();
        for Attachment { name, data, .. } in attachments {
            named.entry(Bytes::from(name)).or_insert(data);
        }
        Inlined { text, within: false, data: Bytes::new(), attachments: named }
    }

    /// Bytes that are to be sent. Goes through all of the text.
    pub(super) fn len(&self) -> usize {
        if self.attachments.is_empty() {
            return self.text.len();
        }
        let mut rest = self.clone();
        let mut all = 0;
        while !rest.is_over() {
            all += match rest.part() {
                Part::Text(text) => text.len(),
                Part::Data(data) => {
                    (data.len() + std::mem::take(&mut rest.data).len()).div_ceil(3) * 4
                }
            };
        }
        all
    }

    /// What is sent next; true when that was the last.
    pub(super) fn next(&mut self) -> (Bytes, bool) {
        let mut first = self.encoded();
        if first.len() < SMALL && !self.is_over() {
            let mut several = Vec::from(first);
            let begun = self.text.len();
            // What is looked through counts as well: a reference may stand for nothing.
            while several.len() < limits::STEP
                && begun - self.text.len() < limits::STEP
                && !self.is_over()
            {
                several.extend_from_slice(&self.encoded());
            }
            first = several.into();
        }
        (first, self.is_over())
    }

    fn is_over(&self) -> bool {
        self.data.is_empty() && self.text.is_empty()
    }

    fn encoded(&mut self) -> Bytes {
        match self.part() {
            Part::Text(text) => text,
            Part::Data(data) => STANDARD.encode(data).into(),
        }
    }

    /// At most [`limits::STEP`] bytes of the text, or what becomes as many.
    fn part(&mut self) -> Part {
        if !self.data.is_empty() {
            return Part::Data(self.data.split_to(self.data.len().min(TRIPLES)));
        }
        let end = self.text.len().min(limits::STEP);
        if self.attachments.is_empty() {
            return Part::Text(self.text.split_to(end));
        }
        let mut at = 0;
        while at < end {
            let rest = &self.text[at..end];
            if self.within {
                let Some(found) = memchr2(b'"', b'\\', rest) else {
                    at = end;
                    break;
                };
                self.within = rest[found] == b'\\';
                // What it escapes is no end.
                at += if self.within { found + 2 } else { found + 1 };
            } else {
                let Some(found) = memchr(b'"', rest) else {
                    at = end;
                    break;
                };
                let start = at + found;
                if let Some((length, data)) = self.reference(start) {
                    self.data = data;
                    // Its quotes stay.
                    let part = self.text.split_to(start + 1);
                    self.text.advance(length - 2);
                    self.within = true;
                    return Part::Text(part);
                }
                (at, self.within) = (start + 1, true);
            }
        }
        Part::Text(self.text.split_to(at.min(self.text.len())))
    }

    /// What the string that begins here refers to, with its length: texts (never keys) that
    /// are written exactly as `"attachment:NAME"`. The SDKs write a text that merely says so
    /// with an escape in it.
    fn reference(&self, start: usize) -> Option<(usize, Bytes)> {
        let written = self.text[start..].strip_prefix(REFERENCE)?;
        let most = written.len().min(limits::NAME + 1);
        let name = memchr(b'"', &written[..most])?;
        let data = self.attachments.get(&written[..name])?;
        // One that is further from its colon is no key of anybody.
        let mut after = written[name + 1..].iter().take(limits::STEP);
        let is_key = after.find(|byte| !byte.is_ascii_whitespace()) == Some(&b':');
        (!is_key).then(|| (REFERENCE.len() + name + 1, data.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str, names: &[(&str, &str)]) -> String {
        let attachments = names.iter().map(|(name, data)| Attachment {
            name: (*name).into(),
            content_type: String::new(),
            data: Bytes::copy_from_slice(data.as_bytes()),
        });
        let mut inlined =
            Inlined::new(Bytes::copy_from_slice(text.as_bytes()), attachments.collect());
        let (said, mut sent) = (inlined.len(), Vec::new());
        while !inlined.is_over() {
            let (part, last) = inlined.next();
            assert!(!part.is_empty() && part.len() <= 2 * limits::STEP + 2, "{}", part.len());
            assert_eq!(last, inlined.is_over());
            sent.extend_from_slice(&part);
        }
        assert_eq!(sent.len(), said, "the length is known before");
        String::from_utf8(sent).unwrap()
    }

    #[test]
    fn references_become_base64_wherever_they_stand() {
        let (a, long) = ("attachment:a", "x".repeat(limits::STEP + 7));
        let base64 = STANDARD.encode(&long);
        for before in [0, 1, limits::STEP - 20, limits::STEP - 13, limits::STEP, 3 * limits::STEP] {
            for filler in ["x", "\\\"", "\\\\"] {
                let filler = filler.repeat(before.div_ceil(filler.len()));
                let text =
                    format!("[\"{filler}\",\"{a}\",\"{a}\" , {{\"{a}\" : \"{a}\"}},\"{a}a\"]");
                let sent = all(&text, &[("a", "1"), ("a", "2"), ("b", &long)]);
                let wanted =
                    format!("[\"{filler}\",\"MQ==\",\"MQ==\" , {{\"{a}\" : \"MQ==\"}},\"{a}a\"]");
                assert!(sent == wanted, "{before}: {:.200}", &sent[before..]);
            }
        }
        assert_eq!(all("\"attachment:b\"", &[("b", &long)]), format!("\"{base64}\""));
        assert_eq!(all("[\"attachment:e\",1]", &[("e", "")]), "[\"\",1]");
        // What is no JSON ends all the same.
        for text in ["\"", "\"attachment:a", "\"\\", "", "x"] {
            assert_eq!(all(text, &[("a", "1")]), text);
        }
    }

    #[test]
    fn many_references_are_sent_in_large_parts() {
        let text = format!("[{}0]", "\"attachment:a\",".repeat(100_000));
        let sent = all(&text, &[("a", "1")]);
        assert_eq!(sent, format!("[{}0]", "\"MQ==\",".repeat(100_000)));
    }
}
