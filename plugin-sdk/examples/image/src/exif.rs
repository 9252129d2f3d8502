//! What the camera wrote.

use std::{collections::BTreeMap, io::Cursor};

/// Field names and values as text; empty when there is no EXIF.
pub(crate) fn fields(bytes: &[u8]) -> BTreeMap<String, String> {
    let read = exif::Reader::new().read_from_container(&mut Cursor::new(bytes));
    let Ok(read) = read else { return BTreeMap::new() };
    read.fields()
        .filter(|field| field.ifd_num == exif::In::PRIMARY)
        .map(|field| {
            let value = field.display_value().with_unit(&read).to_string();
            (field.tag.to_string(), value.trim_matches('"').to_owned())
        })
        .collect()
}
