//! A tool as its plugin registered it, its schemas compiled once.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::OnceLock,
};

use bytes::Bytes;
use serde_json::Value;
use stockade_proto::worker::ToolSpec;

use super::schema::{Allowance, Schema};
use crate::capacity::limits;

/// The tools of one process, in the order of registration.
#[derive(Debug, Default)]
pub struct Tools {
    list: Vec<Tool>,
    by_name: HashMap<String, usize>,
    described: OnceLock<Bytes>,
}

/// One tool.
pub struct Tool {
    /// Name, description, schemas as text.
    pub spec: ToolSpec,
    /// Checks arguments without their binary properties; None = anything goes.
    pub input: Option<Schema>,
    /// Checks results; None = unchecked.
    pub output: Option<Schema>,
    /// Properties that travel as attachments.
    pub binary: Vec<Binary>,
    /// Properties that text stays text for, when arguments are read loosely.
    pub texts: HashSet<String>,
}

/// A binary property of a tool's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// Its name.
    pub name: String,
    /// The call needs it.
    pub required: bool,
    /// Several of the name are allowed.
    pub many: bool,
}

impl fmt::Debug for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tool").field("name", &self.spec.name).finish_non_exhaustive()
    }
}

impl Tools {
    /// Compiles every schema, within what the plugin's schemas may have together.
    ///
    /// # Errors
    /// A name is used twice, or a schema is not one; the text says which.
    pub(super) fn compile(specs: Vec<ToolSpec>, allowance: &mut Allowance) -> Result<Self, String> {
        let mut tools = Tools::default();
        for spec in specs {
            let name = spec.name.clone();
            let tool =
                Tool::compile(spec, allowance).map_err(|why| format!("Tool '{name}': {why}"))?;
            if tools.by_name.insert(name.clone(), tools.list.len()).is_some() {
                return Err(format!("Tool '{name}' is registered twice"));
            }
            tools.list.push(tool);
        }
        Ok(tools)
    }

    /// By name.
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.by_name.get(name).map(|index| &self.list[*index])
    }

    /// In the order of registration.
    pub fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.list.iter()
    }

    /// What they are described as, which is made once.
    pub fn described(&self, make: impl FnOnce(&[Tool]) -> Bytes) -> Bytes {
        self.described.get_or_init(|| make(&self.list)).clone()
    }

    /// Their names, for messages: the first ones.
    pub fn names(&self) -> String {
        const SHOWN: usize = 16;
        let names = self.list.iter().take(SHOWN).map(|tool| tool.spec.name.as_str());
        let names = names.collect::<Vec<_>>().join(", ");
        match self.list.len().saturating_sub(SHOWN) {
            0 => names,
            more => format!("{names} and {more} more"),
        }
    }
}

impl Tool {
    fn compile(mut spec: ToolSpec, allowance: &mut Allowance) -> Result<Self, String> {
        if spec.name.is_empty() || spec.name.len() > limits::NAME {
            return Err("a tool's name has 1 to 128 bytes".to_owned());
        }
        limits::cut_to(&mut spec.title, limits::NAME);
        limits::cut_to(&mut spec.description, limits::DESCRIPTION);
        let failed = |which: &str, why: String| format!("the {which} schema {why}");
        let mut input =
            Schema::read(&spec.input_schema, allowance).map_err(|why| failed("input", why))?;
        let texts = input.as_ref().map(texts).unwrap_or_default();
        let binary = input.as_mut().map(take_binary).unwrap_or_default();
        let output =
            Schema::read(&spec.output_schema, allowance).map_err(|why| failed("output", why))?;
        let mut compile = |which: &str, schema: Value| {
            Schema::compile(schema, allowance).map_err(|why| failed(which, why))
        };
        Ok(Tool {
            input: input.map(|schema| compile("input", schema)).transpose()?,
            output: output
                .filter(|schema| !trivial(schema))
                .map(|schema| compile("output", schema))
                .transpose()?,
            binary,
            texts,
            spec,
        })
    }
}

/// The properties that may be text.
fn texts(schema: &Value) -> HashSet<String> {
    let is_text = |property: &Value| match &property["type"] {
        Value::String(kind) => kind == "string",
        Value::Array(kinds) => kinds.iter().any(|kind| kind == "string"),
        _ => false,
    };
    let properties = schema.get("properties").and_then(Value::as_object);
    let texts = properties.into_iter().flatten().filter(|(_, property)| is_text(property));
    texts.map(|(name, _)| name.clone()).collect()
}

/// A schema that allows everything.
fn trivial(schema: &Value) -> bool {
    match schema {
        Value::Bool(all) => *all,
        Value::Object(keys) => {
            keys.keys().all(|key| ["title", "description", "$schema"].contains(&key.as_str()))
        }
        _ => false,
    }
}

fn is_binary(schema: &Value) -> bool {
    let word = |key: &str| schema.get(key).and_then(Value::as_str);
    let text = match schema.get("type") {
        Some(Value::String(kind)) => kind == "string",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "string"),
        _ => false,
    };
    text && (word("format") == Some("binary") || word("contentEncoding") == Some("base64"))
}

/// The same, behind `anyOf` with null (an optional field) too.
fn is_binary_or_null(schema: &Value) -> bool {
    is_binary(schema) || alternatives(schema).any(is_binary)
}

/// What an optional field is, when it is there.
fn alternatives(schema: &Value) -> impl Iterator<Item = &Value> {
    let any = ["anyOf", "oneOf"].into_iter().find_map(|key| schema.get(key)?.as_array());
    any.into_iter().flatten()
}

/// Several attachments of one name.
fn is_list(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "array")
        && schema.get("items").is_some_and(is_binary)
}

/// Takes the binary properties out of the schema: they are checked by their
/// presence among the attachments.
fn take_binary(schema: &mut Value) -> Vec<Binary> {
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return Vec::new();
    };
    let mut found: Vec<Binary> = Vec::new();
    for (name, property) in properties.iter() {
        let many = is_list(property) || alternatives(property).any(is_list);
        if many || is_binary_or_null(property) {
            found.push(Binary { name: name.clone(), required: false, many });
        }
    }
    for binary in &found {
        properties.shift_remove(&binary.name);
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        for binary in &mut found {
            binary.required = required.iter().any(|name| name == binary.name.as_str());
        }
        required.retain(|name| !found.iter().any(|binary| name == binary.name.as_str()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::schema::Verdict;

    fn spec(input: &str) -> ToolSpec {
        ToolSpec { name: "t".into(), input_schema: input.into(), ..ToolSpec::default() }
    }

    #[test]
    fn binary_properties_are_taken_out_of_the_schema() {
        let tool = Tool::compile(
            spec(
                r#"{"type":"object","additionalProperties":false,
                "properties":{"width":{"type":"integer"},
                  "image":{"type":"string","format":"binary"},
                  "mask":{"anyOf":[{"type":"string","contentEncoding":"base64"},{"type":"null"}]},
                  "frames":{"type":"array","items":{"type":"string","format":"binary"}}},
                "required":["width","image"]}"#,
            ),
            &mut Allowance::default(),
        )
        .unwrap();
        let binary = |name: &str, required, many| Binary { name: name.into(), required, many };
        assert_eq!(
            tool.binary,
            [
                binary("image", true, false),
                binary("mask", false, false),
                binary("frames", false, true)
            ]
        );
        let input = tool.input.unwrap();
        let fits = |value: serde_json::Value| input.check(&value, 9) == Verdict::Fits;
        assert!(fits(serde_json::json!({"width": 1})));
        assert!(!fits(serde_json::json!({"width": "x"})));
        assert!(!fits(serde_json::json!({"width": 1, "image": "x"})));
    }

    #[test]
    fn a_bad_schema_and_a_doubled_name_are_named() {
        let error = Tools::compile(vec![spec(r#"{"type":"nonsense"}"#)], &mut Allowance::default())
            .unwrap_err();
        assert!(error.starts_with("Tool 't': the input schema is not valid"), "{error}");
        let error =
            Tools::compile(vec![spec(""), spec("")], &mut Allowance::default()).unwrap_err();
        assert_eq!(error, "Tool 't' is registered twice");
    }
}
