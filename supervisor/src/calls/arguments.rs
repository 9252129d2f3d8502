//! Arguments are checked against the tool's schema before the plugin sees
//! them; binary ones leave the JSON here and travel as bytes.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};
use stockade_proto::worker::invoke::Kind;

use super::CallError;
use crate::plugin::{Attachment, Binary, Tool};

/// Problems that are told at once.
const TOLD: usize = 5;

/// Checked arguments: JSON text without binary properties, and those.
pub(super) type Prepared = (Bytes, Vec<Attachment>);

/// Checks a call's arguments. The text is read once and passed on as it came
/// unless it held base64.
pub(super) fn prepare(
    tool: &Tool,
    args: Bytes,
    mut attachments: Vec<Attachment>,
    loose: bool,
) -> Result<Prepared, CallError> {
    let invalid = |message: String| Err(CallError::InvalidArguments(message));
    let args = if args.is_empty() { Bytes::from_static(b"{}") } else { args };
    let mut object = match serde_json::from_slice::<Value>(&args) {
        Ok(Value::Object(object)) => object,
        Ok(other) => {
            return invalid(format!("the arguments must be a JSON object, not {}", kind(&other)));
        }
        Err(error) => return invalid(format!("the arguments are not JSON: {error}")),
    };
    let mut problems = Vec::new();
    let loosened = loose && loosen(tool, &mut object, &mut attachments);
    let taken = take_base64(&tool.binary, &mut object, &mut attachments, &mut problems);
    check_attachments(tool, &attachments, &mut problems);
    let value = Value::Object(object);
    if let Some(input) = &tool.input
        && (!problems.is_empty() || !input.is_valid(&value))
    {
        problems.extend(input.iter_errors(&value).take(TOLD).map(|error| {
            match error.instance_path().as_str() {
                "" => error.to_string(),
                path => format!("{}: {error}", path.trim_start_matches('/')),
            }
        }));
    }
    if !problems.is_empty() {
        problems.truncate(TOLD);
        return invalid(problems.join("; "));
    }
    let text = match taken || loosened {
        true => serde_json::to_vec(&value).unwrap_or_default().into(),
        false => args,
    };
    Ok((text, attachments))
}

/// Reads text as what the schema wants; names the unnamed attachment.
fn loosen(tool: &Tool, object: &mut Map<String, Value>, attachments: &mut [Attachment]) -> bool {
    if let [only] = tool.binary.as_slice() {
        for blob in attachments.iter_mut().filter(|blob| blob.name.is_empty()) {
            blob.name.clone_from(&only.name);
        }
    }
    let schema: Value = serde_json::from_str(&tool.spec.input_schema).unwrap_or_default();
    for (name, value) in object.iter_mut() {
        let Value::String(text) = &*value else { continue };
        let property = schema.pointer(&format!("/properties/{name}"));
        let wants_text = property.is_some_and(|property| match &property["type"] {
            Value::String(kind) => kind == "string",
            Value::Array(kinds) => kinds.iter().any(|kind| kind == "string"),
            _ => false,
        });
        if !wants_text && let Ok(read) = serde_json::from_str::<Value>(text) {
            *value = read;
        }
    }
    true
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// Base64 properties become attachments; true when there were any.
fn take_base64(
    binary: &[Binary],
    object: &mut Map<String, Value>,
    attachments: &mut Vec<Attachment>,
    problems: &mut Vec<String>,
) -> bool {
    let mut taken = false;
    for property in binary {
        let Some(value) = object.shift_remove(&property.name) else { continue };
        taken = true;
        let texts = match value {
            Value::Null => continue,
            Value::Array(items) if property.many => items,
            single => vec![single],
        };
        for text in texts {
            let decoded = text.as_str().and_then(|text| {
                // "data:image/jpeg;base64,…" names its type.
                let (kind, data) = text
                    .strip_prefix("data:")
                    .and_then(|rest| rest.split_once(";base64,"))
                    .unwrap_or(("", text));
                Some((kind.to_owned(), STANDARD.decode(data.trim()).ok()?))
            });
            match decoded {
                Some((content_type, data)) => attachments.push(Attachment {
                    name: property.name.clone(),
                    content_type,
                    data: data.into(),
                }),
                None => problems
                    .push(format!("{}: must be base64 text or an attachment", property.name)),
            }
        }
    }
    taken
}

fn check_attachments(tool: &Tool, attachments: &[Attachment], problems: &mut Vec<String>) {
    for property in &tool.binary {
        let given = attachments.iter().filter(|blob| blob.name == property.name).count();
        if given == 0 && property.required && !property.many {
            problems.push(format!("\"{}\" is a required property (binary)", property.name));
        }
        if given > 1 && !property.many {
            problems.push(format!("{}: given {given} times, one is allowed", property.name));
        }
    }
    let known = |name: &str| tool.binary.iter().any(|property| property.name == name);
    // A tool without a schema takes what comes.
    for blob in attachments.iter().filter(|blob| tool.input.is_some() && !known(&blob.name)) {
        let names: Vec<_> = tool.binary.iter().map(|property| property.name.as_str()).collect();
        problems.push(match names.as_slice() {
            [] => format!(
                "{}: this tool takes no binary arguments (its schema \
                 declares none as {{\"type\": \"string\", \"format\": \"binary\"}})",
                blob.name
            ),
            names => {
                format!("{}: no binary argument of this tool ({})", blob.name, names.join(", "))
            }
        });
    }
}

/// A condition says true or false, a configuration is an object, and all is JSON.
pub(super) fn check_extension(kind: Kind, name: &str, result: &[u8]) -> Result<(), CallError> {
    let fine = match kind {
        Kind::Condition => matches!(result, b"true" | b"false"),
        Kind::SimulationConfig => result.first() == Some(&b'{'),
        Kind::Tool | Kind::Effect | Kind::Events | Kind::Provider => true,
    };
    if !fine {
        let wanted = if kind == Kind::Condition { "true or false" } else { "an object" };
        return Err(CallError::InvalidResult(format!("{name} did not return {wanted}")));
    }
    check_json(name, result)
}

/// The result of anything is JSON.
fn check_json(name: &str, result: &[u8]) -> Result<(), CallError> {
    serde_json::from_slice::<serde::de::IgnoredAny>(result).map(drop).map_err(|error| {
        CallError::InvalidResult(format!("Tool {name} returned what is not JSON: {error}"))
    })
}

/// Checks a tool's result. Bytes in, the same bytes on.
pub(super) fn check_result(tool: &Tool, result: &[u8]) -> Result<(), CallError> {
    let name = &tool.spec.name;
    let Some(output) = &tool.output else { return check_json(name, result) };
    let value: Value = serde_json::from_slice(result).map_err(|error| {
        CallError::InvalidResult(format!("Tool {name} returned what is not JSON: {error}"))
    })?;
    if output.is_valid(&value) {
        return Ok(());
    }
    let errors: Vec<String> =
        output.iter_errors(&value).take(TOLD).map(|e| e.to_string()).collect();
    let message =
        format!("Tool {name} returned what its output schema forbids: {}", errors.join("; "));
    Err(CallError::InvalidResult(message))
}
