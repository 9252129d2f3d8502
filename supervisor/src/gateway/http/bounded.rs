//! Parts of bodies that have the bounds of docs/limits.md: checked while they are read,
//! so that nothing behind this place sees a larger one.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bytes::Bytes;
use serde::{
    Deserialize, Deserializer,
    de::{Error, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::capacity::limits;

/// A text of at most so many bytes.
#[derive(Debug, Default)]
pub(super) struct Short<const MOST: usize>(pub(super) String);

impl<'de, const MOST: usize> Deserialize<'de> for Short<MOST> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.len() > MOST {
            true => Err(D::Error::custom(format!(
                "a name or an id has {} bytes; {MOST} are allowed",
                text.len()
            ))),
            false => Ok(Short(text)),
        }
    }
}

/// The name of a workspace.
pub(super) type Name = Short<{ limits::NAME }>;
/// The id of a condition or an effect.
pub(super) type Id = Short<{ limits::KEY }>;

/// Names of plugins.
#[derive(Debug)]
pub(super) struct PluginNames(pub(super) Arc<BTreeSet<String>>);

impl<'de> Deserialize<'de> for PluginNames {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = BTreeSet<String>;
            fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(to, "a list of at most {} names of plugins", limits::PLUGIN_NAMES)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let (mut names, mut read) = (BTreeSet::new(), 0);
                while let Some(Short(name)) = list.next_element::<Name>()? {
                    read += 1;
                    if read > limits::PLUGIN_NAMES {
                        return Err(A::Error::custom(format!(
                            "enabled_plugins has more than {} names",
                            limits::PLUGIN_NAMES
                        )));
                    }
                    names.insert(name);
                }
                Ok(names)
            }
        }
        from.deserialize_seq(Names).map(|names| PluginNames(Arc::new(names)))
    }
}

/// JSON text that is handed on as it is: a context, parameters, a base.
#[derive(Debug, Default)]
pub(super) struct Part(pub(super) Bytes);

impl<'de> Deserialize<'de> for Part {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(from)?;
        let size = raw.get().len();
        match size > limits::CONTEXT {
            true => Err(D::Error::custom(format!(
                "a context, parameters or a base has {size} bytes; {} are allowed",
                limits::CONTEXT
            ))),
            false => Ok(Part(Bytes::from(String::from(Box::<str>::from(raw))))),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_str, json};

    use super::*;

    #[test]
    fn each_bound_is_the_one_of_the_table() {
        let names = |count: usize| {
            let names: Vec<String> = (0..count).map(|n| format!("p{n}")).collect();
            from_str::<PluginNames>(&json!(names).to_string()).map(|names| names.0.len())
        };
        assert_eq!(names(limits::PLUGIN_NAMES).unwrap(), limits::PLUGIN_NAMES);
        assert!(names(limits::PLUGIN_NAMES + 1).unwrap_err().to_string().contains("1024"));
        let twice = json!(vec!["p"; limits::PLUGIN_NAMES + 1]).to_string();
        assert!(from_str::<PluginNames>(&twice).is_err(), "the same name counts each time");
        let quoted = |size: usize| format!("\"{}\"", "x".repeat(size));
        assert!(from_str::<Name>(&quoted(limits::NAME)).is_ok());
        assert!(from_str::<Name>(&quoted(limits::NAME + 1)).is_err());
        assert!(from_str::<Part>(&quoted(limits::CONTEXT - 2)).is_ok());
        assert!(from_str::<Part>(&quoted(limits::CONTEXT - 1)).is_err());
    }
}
