//! Writes the gates of all messages that come from outside: which bound of
//! `src/limits.rs` holds for which field.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use protox::prost_reflect::prost_types::{
    DescriptorProto, FieldDescriptorProto, FileDescriptorSet,
    field_descriptor_proto::{Label, Type},
};

/// The generated code.
pub(crate) fn generate(set: &FileDescriptorSet) -> String {
    let mut messages = BTreeMap::new();
    for file in &set.file {
        for message in &file.message_type {
            collect(&format!(".{}", file.package()), message, &mut messages);
        }
    }
    let mut gated: BTreeMap<&str, bool> = BTreeMap::new();
    for method in set.file.iter().flat_map(|file| &file.service).flat_map(|one| &one.method) {
        // The daemon asks plugins, and is asked by everybody else.
        let asks = method.input_type().starts_with(".stockade.worker.");
        gated.insert(method.input_type(), !asks);
        gated.insert(method.output_type(), asks);
    }
    let mut code = String::new();
    let mut wanted: Vec<&str> =
        gated.iter().filter(|(_, gated)| **gated).map(|(name, _)| *name).collect();
    let mut written = BTreeSet::new();
    while let Some(name) = wanted.pop() {
        if written.insert(name) {
            gate(&mut code, name, messages[name], &messages);
            let fields = &messages[name].field;
            let inner = fields.iter().filter(|field| field.r#type() == Type::Message);
            wanted.extend(inner.map(FieldDescriptorProto::type_name));
        }
    }
    for (name, is_gated) in gated {
        let gate = match is_gated {
            true => format!("Some(&{})", identifier(name)),
            false => "None".to_owned(),
        };
        let path = rust_path(name);
        let _ = writeln!(
            code,
            "impl Gated for {path} {{ const GATE: Option<&'static Gate> = {gate}; }}"
        );
    }
    code
}

fn collect<'m>(
    scope: &str,
    message: &'m DescriptorProto,
    messages: &mut BTreeMap<String, &'m DescriptorProto>,
) {
    let name = format!("{scope}.{}", message.name());
    for nested in &message.nested_type {
        collect(&name, nested, messages);
    }
    messages.insert(name, message);
}

/// `.stockade.v1.CallRequest` → `V1_CALLREQUEST`
fn identifier(name: &str) -> String {
    name.trim_start_matches(".stockade.").replace('.', "_").to_uppercase()
}

/// `.stockade.worker.v1.FromPlugin` → `crate::worker::FromPlugin`
fn rust_path(name: &str) -> String {
    let parts: Vec<&str> = name.trim_start_matches(".stockade.").split('.').collect();
    match parts.as_slice() {
        ["v1", message] => format!("crate::v1::{message}"),
        [package, "v1", message] => format!("crate::{package}::{message}"),
        other => panic!("a nested message is no request: {other:?}"),
    }
}

fn gate(
    code: &mut String,
    name: &str,
    message: &DescriptorProto,
    messages: &BTreeMap<String, &DescriptorProto>,
) {
    assert!(message.field.len() <= 32, "{name} has more fields than a gate counts");
    let short = name.trim_start_matches('.');
    let _ =
        writeln!(code, "static {}: Gate = Gate {{ name: \"{short}\", fields: &[", identifier(name));
    for field in &message.field {
        let kind = match field.r#type() {
            Type::String => format!("Kind::Bytes({})", text(message.name(), field)),
            Type::Bytes => format!("Kind::Bytes({})", data(field)),
            Type::Message => {
                assert!(messages.contains_key(field.type_name()), "{}", field.type_name());
                format!("Kind::Message(&{})", identifier(field.type_name()))
            }
            _ => "Kind::Scalar".to_owned(),
        };
        let most = match field.label() {
            Label::Repeated => entries(field),
            // Messages that occur twice would be merged, lists and all.
            _ => "1",
        };
        let _ = writeln!(
            code,
            "    Field {{ number: {}, name: \"{}\", most: {most}, kind: {kind} }},",
            field.number(),
            field.name()
        );
    }
    code.push_str("] };\n");
}

fn text(message: &str, field: &FieldDescriptorProto) -> &'static str {
    match (message, field.name()) {
        ("FieldsEntry", "value") => "limits::ERROR_TEXT",
        (
            _,
            "message" | "error" | "traceback" | "error_type" | "missing" | "refused" | "reason",
        ) => "limits::CONTROL_TEXT",
        (_, "description" | "title") => "limits::CONTROL_TEXT",
        (_, "input_schema" | "output_schema" | "request_schema" | "response_schema") => {
            "limits::SCHEMAS"
        }
        (
            _,
            "key" | "prefix" | "after" | "entity" | "with" | "patterns" | "condition_id"
            | "effect_id" | "required_context",
        ) => "limits::KEY",
        (
            "EmitRequest" | "EmitEventRequest" | "ChangeComponentRequest" | "CallProviderRequest",
            "name",
        ) => "limits::KEY",
        (_, "path") => "limits::PATH",
        (_, "watch") => "limits::ERROR_TEXT",
        (_, "content_type") => "limits::CONTENT_TYPE",
        _ => "limits::NAME",
    }
}

fn data(field: &FieldDescriptorProto) -> &'static str {
    match field.name() {
        "context" | "params" | "base" | "default_params" => "limits::CONTEXT",
        // Bounded with their message, and by quotas.
        _ => "usize::MAX",
    }
}

fn entries(field: &FieldDescriptorProto) -> &'static str {
    match field.name() {
        "attachments" => "limits::ATTACHMENTS",
        "names" | "plugins" => "limits::PLUGIN_NAMES",
        "fields" => "limits::LOG_FIELDS",
        "tools" | "conditions" | "effects" | "simulation_configs" | "providers" => "limits::TOOLS",
        _ => "limits::LIST",
    }
}
