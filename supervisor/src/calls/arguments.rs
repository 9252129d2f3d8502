//! Arguments are checked against the tool's schema before the plugin sees
//! them; binary ones leave the JSON here and travel as bytes. What is small is
//! done at once, the rest by the crew.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use serde_json::{Map, Value};
use stockade_proto::worker::invoke::Kind;

use super::CallError;
use crate::{
    capacity::{
        Account, Charge, QUICK_VALUES, Weight, exact, is_quick as is_quick_text, limits,
        read_through, weigh, why_unread,
    },
    plugin::{Attachment, Binary, Schema, Tool, Verdict},
};

/// Problems that are told at once.
const TOLD: usize = 5;

/// Arguments as they came.
#[derive(Clone, Debug, Default)]
pub(super) struct Given {
    pub(super) args: Bytes,
    pub(super) attachments: Vec<Attachment>,
    pub(super) loose: bool,
}

/// Checked arguments: JSON text without binary properties, and those.
pub(super) type Prepared = (Bytes, Vec<Attachment>);

/// The arguments may be read and checked on a thread that others need.
pub(super) fn is_quick_call(schema: Option<&Schema>, args: &[u8], loose: bool) -> bool {
    // The values of loose ones are within strings, where nobody has counted them.
    (!loose || args.len() <= QUICK_VALUES) && is_quick(schema, args)
}

/// The same of any text.
pub(super) fn is_quick(schema: Option<&Schema>, text: &[u8]) -> bool {
    is_quick_text(text) && schema.is_none_or(|schema| schema.is_quick(weigh(text).values))
}

/// What a text becomes when it is read, if the account has room for it.
fn room(text: &[u8], account: &Account) -> Result<(Weight, Option<Charge>), CallError> {
    let weight = weigh(text);
    if weight.values > limits::JSON_VALUES {
        return Err(too_many_values(weight.values));
    }
    if text.len() <= limits::STEP {
        return Ok((weight, None));
    }
    let charge = account.charge(weight.bytes).map_err(|why| {
        CallError::Overloaded(format!(
            "There is no room to read {} bytes of JSON: {why}.",
            text.len()
        ))
    })?;
    Ok((weight, Some(charge)))
}

fn too_many_values(values: usize) -> CallError {
    CallError::PayloadTooLarge(format!(
        "The JSON has {values} values; {} are allowed. Send large data as an attachment.",
        limits::JSON_VALUES
    ))
}

/// Checks a call's arguments. The text is read once and passed on as it came
/// unless it held base64.
pub(super) fn prepare(tool: &Tool, given: Given, account: &Account) -> Result<Prepared, CallError> {
    let Given { args, mut attachments, loose } = given;
    let invalid = |message: String| Err(CallError::InvalidArguments(message));
    let args = if args.is_empty() { Bytes::from_static(b"{}") } else { args };
    let (weight, _held) = room(&args, account)?;
    let mut object = match serde_json::from_slice::<Value>(&args) {
        Ok(Value::Object(object)) => object,
        Ok(other) => {
            return invalid(format!("the arguments must be a JSON object, not {}", kind(&other)));
        }
        Err(error) => {
            return invalid(format!("the arguments are not JSON: {}", why_unread(&error)));
        }
    };
    let mut problems = Vec::new();
    let loosened = match loose {
        true => loosen(tool, &mut object, &mut attachments, account)?,
        false => Loosened::default(),
    };
    let values = weight.values + loosened.values;
    let taken = take_base64(&tool.binary, &mut object, &mut attachments, &mut problems);
    check_attachments(tool, &attachments, &mut problems);
    let value = Value::Object(object);
    match tool.input.as_ref().map_or(Verdict::Fits, |input| input.check(&value, values)) {
        Verdict::Fits => {}
        Verdict::Wrong(why) => problems.extend(why),
        Verdict::TooMuch => problems.push(
            "the arguments take too many steps to check against the tool's schema".to_owned(),
        ),
    }
    let is_rewritten = taken || loose;
    if is_rewritten && let Err(why) = exact(&args) {
        problems.push(why);
    }
    if !problems.is_empty() {
        problems.truncate(TOLD);
        return invalid(limits::cut(&problems.join("; "), limits::ERROR_TEXT));
    }
    let text = match is_rewritten {
        true => serde_json::to_vec(&value).unwrap_or_default().into(),
        false => args,
    };
    Ok((text, attachments))
}

/// What texts have become.
#[derive(Default)]
struct Loosened {
    /// Values in them.
    values: usize,
    _held: Vec<Charge>,
}

/// Reads text as what the schema wants; names the unnamed attachment.
fn loosen(
    tool: &Tool,
    object: &mut Map<String, Value>,
    attachments: &mut [Attachment],
    account: &Account,
) -> Result<Loosened, CallError> {
    let mut loosened = Loosened::default();
    if let [only] = tool.binary.as_slice() {
        for blob in attachments.iter_mut().filter(|blob| blob.name.is_empty()) {
            blob.name.clone_from(&only.name);
        }
    }
    for (name, value) in object.iter_mut() {
        let Value::String(text) = &*value else { continue };
        if tool.texts.contains(name) || read_through(text.as_bytes()).is_err() {
            continue;
        }
        let (weight, held) = room(text.as_bytes(), account)?;
        loosened.values += weight.values;
        if loosened.values > limits::JSON_VALUES {
            return Err(too_many_values(loosened.values));
        }
        loosened._held.extend(held);
        exact(text.as_bytes())
            .map_err(|why| CallError::InvalidArguments(format!("{name}: {why}")))?;
        if let Ok(read) = serde_json::from_str::<Value>(text) {
            *value = read;
        }
    }
    Ok(loosened)
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
        if texts.len() > limits::ATTACHMENTS {
            problems.push(format!(
                "{}: {} entries; {} are allowed",
                property.name,
                texts.len(),
                limits::ATTACHMENTS
            ));
            continue;
        }
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
                    content_type: limits::cut(&content_type, limits::CONTENT_TYPE),
                    data: data.into(),
                }),
                None if problems.len() < TOLD => problems
                    .push(format!("{}: must be base64 text or an attachment", property.name)),
                None => {}
            }
        }
    }
    taken
}

fn check_attachments(tool: &Tool, attachments: &[Attachment], problems: &mut Vec<String>) {
    if attachments.len() > limits::ATTACHMENTS {
        problems.push(format!(
            "{} attachments; {} are allowed",
            attachments.len(),
            limits::ATTACHMENTS
        ));
        return;
    }
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
    let foreign = attachments.iter().filter(|blob| tool.input.is_some() && !known(&blob.name));
    for blob in foreign.take(TOLD) {
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
pub(super) fn check_extension(
    kind: Kind,
    name: &str,
    result: &[u8],
    account: &Account,
) -> Result<(), CallError> {
    let fine = match kind {
        Kind::Condition => matches!(result, b"true" | b"false"),
        Kind::SimulationConfig => result.first() == Some(&b'{'),
        Kind::Tool | Kind::Effect | Kind::Events | Kind::Provider => true,
    };
    if !fine {
        let wanted = if kind == Kind::Condition { "true or false" } else { "an object" };
        return Err(CallError::InvalidResult(format!("{name} did not return {wanted}")));
    }
    check_json(name, result, account)
}

/// The result of anything is JSON that others can read.
fn check_json(name: &str, result: &[u8], account: &Account) -> Result<(), CallError> {
    room_for_result(name, result, account)?;
    let wrong = |why: String| {
        CallError::InvalidResult(format!("Tool {name} returned what is not JSON: {why}"))
    };
    read_through(result).map_err(|error| wrong(why_unread(&error)))
}

fn room_for_result(
    name: &str,
    result: &[u8],
    account: &Account,
) -> Result<(Weight, Option<Charge>), CallError> {
    room(result, account).map_err(|error| match error {
        CallError::PayloadTooLarge(why) => {
            CallError::InvalidResult(format!("Tool {name} returned too much: {why}"))
        }
        other => other,
    })
}

/// Checks a tool's result. Bytes in, the same bytes on.
pub(super) fn check_result(tool: &Tool, result: &[u8], account: &Account) -> Result<(), CallError> {
    let name = &tool.spec.name;
    let Some(output) = &tool.output else { return check_json(name, result, account) };
    let (weight, _held) = room_for_result(name, result, account)?;
    let value: Value = serde_json::from_slice(result).map_err(|error| {
        CallError::InvalidResult(format!(
            "Tool {name} returned what is not JSON: {}",
            why_unread(&error)
        ))
    })?;
    let why = match output.check(&value, weight.values) {
        Verdict::Fits => return Ok(()),
        Verdict::Wrong(why) => why.join("; "),
        Verdict::TooMuch => "it takes too many steps to check".to_owned(),
    };
    let message = format!("Tool {name} returned what its output schema forbids: {why}");
    Err(CallError::InvalidResult(limits::cut(&message, limits::ERROR_TEXT)))
}
