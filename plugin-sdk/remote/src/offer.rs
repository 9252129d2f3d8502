//! What a service offers, and what it answers: read and checked.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};
use stockade_plugin_sdk::{
    Blob, Error,
    guest::{Condition, Effect, EventHandler, InitReady, Parts, SimulationConfig, ToolSpec},
};

use crate::config::Names;

/// The name of the one handler of a service's events.
pub(crate) const HANDLER: &str = "events";

/// What a service says of itself (`describe`).
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Offer {
    tools: Vec<Tool>,
    conditions: Vec<OfferedCondition>,
    effects: Vec<OfferedEffect>,
    simulation_configs: Vec<OfferedConfig>,
    events: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Tool {
    name: String,
    title: String,
    description: String,
    input_schema: Option<Value>,
    output_schema: Option<Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OfferedCondition {
    name: String,
    description: String,
    required_context: Vec<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OfferedEffect {
    name: String,
    description: String,
    default_params: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct OfferedConfig {
    name: String,
    description: String,
    priority: i32,
}

/// What the service says, and what the manifest names besides.
pub(crate) fn ready(offer: Offer, names: &Names) -> InitReady {
    let schema = |schema: Option<Value>| schema.map(|value| value.to_string()).unwrap_or_default();
    let mut ready = InitReady::default();
    for one in offer.tools {
        ready.tools.push(ToolSpec {
            name: one.name,
            title: one.title,
            description: one.description,
            input_schema: schema(one.input_schema),
            output_schema: schema(one.output_schema),
            streams: false,
        });
    }
    ready.conditions.extend(offer.conditions.into_iter().map(|one| Condition {
        name: one.name,
        description: one.description,
        required_context: one.required_context,
    }));
    ready.effects.extend(offer.effects.into_iter().map(|one| Effect {
        name: one.name,
        description: one.description,
        default_params: Value::Object(one.default_params).to_string().into(),
    }));
    ready.simulation_configs.extend(offer.simulation_configs.into_iter().map(|one| {
        SimulationConfig { name: one.name, description: one.description, priority: one.priority }
    }));
    let mut patterns = offer.events;
    patterns.extend(names.events.iter().cloned());
    add_named(&mut ready, names);
    if !patterns.is_empty() {
        ready.event_handlers.push(EventHandler { name: HANDLER.to_owned(), patterns });
    }
    ready
}

/// Those of the manifest that the service has not described itself.
fn add_named(ready: &mut InitReady, names: &Names) {
    let missing = |names: &[String], known: Vec<&String>| -> Vec<String> {
        names.iter().filter(|name| !known.contains(name)).cloned().collect()
    };
    for name in missing(&names.tools, ready.tools.iter().map(|one| &one.name).collect()) {
        ready.tools.push(ToolSpec { name, ..ToolSpec::default() });
    }
    for name in missing(&names.conditions, ready.conditions.iter().map(|one| &one.name).collect()) {
        ready.conditions.push(Condition { name, ..Condition::default() });
    }
    for name in missing(&names.effects, ready.effects.iter().map(|one| &one.name).collect()) {
        ready.effects.push(Effect { name, ..Effect::default() });
    }
    let known = ready.simulation_configs.iter().map(|one| &one.name).collect();
    for name in missing(&names.simulation_configs, known) {
        ready.simulation_configs.push(SimulationConfig { name, ..SimulationConfig::default() });
    }
}

/// A binary argument or result.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct WireBlob {
    pub(crate) content_type: String,
    /// Base64.
    pub(crate) data: String,
}

/// An answer over HTTP or WebSocket.
#[derive(Debug, Deserialize)]
struct Answer {
    #[serde(default, deserialize_with = "there")]
    result: Option<Value>,
    #[serde(default)]
    attachments: BTreeMap<String, WireBlob>,
    #[serde(default)]
    error: Option<Value>,
    #[serde(default)]
    error_type: Option<String>,
}

/// What is there, null too.
pub(crate) fn there<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// The result of an answer, or the error that it tells.
pub(crate) fn read_answer(text: &[u8]) -> Result<Parts, Error> {
    // An array would be taken for the fields of an object, in their order.
    if text.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("it is no JSON object"));
    }
    let answer: Answer = serde_json::from_slice(text)
        .map_err(|error| invalid(format!("it is not a JSON object with \"result\": {error}")))?;
    if let Some(error) = answer.error.filter(|error| !error.is_null()) {
        return Err(told(&error, answer.error_type));
    }
    let Some(result) = answer.result else { return Err(invalid("it has no \"result\"")) };
    let mut blobs = Vec::new();
    for (name, blob) in answer.attachments {
        let data = STANDARD
            .decode(blob.data.trim())
            .map_err(|error| invalid(format!("attachment {name} is not base64: {error}")))?;
        blobs.push((name, Blob::typed(data, blob.content_type)));
    }
    Ok((result.to_string().into_bytes(), blobs))
}

/// An error as `"text"` or `{"type", "message"}`.
pub(crate) fn told(error: &Value, kind: Option<String>) -> Error {
    let text = |key: &str| error.get(key).and_then(Value::as_str).map(str::to_owned);
    let kind = kind.or_else(|| text("type")).unwrap_or_else(|| "RemoteError".to_owned());
    let message = error.as_str().map(str::to_owned).or_else(|| text("message"));
    Error::new(kind, message.unwrap_or_else(|| error.to_string()))
}

fn invalid(what: impl std::fmt::Display) -> Error {
    Error::new("InvalidResponse", format!("the remote plugin's answer is invalid: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_checked() {
        let (result, blobs) = read_answer(
            br#"{"result": {"x": 1}, "metadata": {}, "attachments": {"a": {"data": "AQI="}}}"#,
        )
        .unwrap();
        assert_eq!((&result[..], &blobs[0].1[..]), (&b"{\"x\":1}"[..], &[1u8, 2][..]));
        assert_eq!(read_answer(b"{\"result\": false}").unwrap().0, b"false");
        assert_eq!(read_answer(b"{\"result\": null}").unwrap().0, b"null");
        let error = read_answer(br#"{"error": "no", "error_type": "ValueError"}"#).unwrap_err();
        assert_eq!((error.kind(), error.message()), ("ValueError", "no"));
        let error = read_answer(br#"{"error": {"type": "KeyError", "message": "x"}}"#).unwrap_err();
        assert_eq!((error.kind(), error.message()), ("KeyError", "x"));
        for wrong in [
            "",
            "[]",
            "true",
            "{}",
            "{\"result\": 1",
            "{\"result\": 1, \"attachments\": {\"a\": {\"data\": \"!\"}}}",
        ] {
            assert_eq!(
                read_answer(wrong.as_bytes()).unwrap_err().kind(),
                "InvalidResponse",
                "{wrong}"
            );
        }
    }

    #[test]
    fn what_the_manifest_names_is_added_once() {
        let offer: Offer = serde_json::from_str(
            r#"{"tools": [{"name": "a", "input_schema": {"type": "object"}}], "events": ["x"]}"#,
        )
        .unwrap();
        let names = Names {
            tools: vec!["a".into(), "b".into()],
            conditions: vec!["c".into()],
            ..Names::default()
        };
        let ready = ready(offer, &names);
        let tools: Vec<_> = ready.tools.iter().map(|tool| tool.name.as_str()).collect();
        assert_eq!(tools, ["a", "b"]);
        assert_eq!(ready.tools[0].input_schema, "{\"type\":\"object\"}");
        assert_eq!(ready.conditions[0].name, "c");
        assert_eq!(ready.event_handlers[0].patterns, ["x"]);
    }
}
