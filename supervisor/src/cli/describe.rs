//! `stockade describe`

use clap::Args;
use serde_json::{Value, json};
use stockade::gateway::report::{health::PluginHealth, sandbox::SandboxReport};
use stockade_proto::v1::{GetPluginRequest, GetPluginResponse};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
    status::card,
};

/// Show everything about plugins: state, tools and their arguments, limits
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade describe image\n  stockade describe image -o json | jq .tools"
)]
pub(super) struct Describe {
    /// Names or globs
    #[arg(required = true)]
    names: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(describe: Describe, client: Client) -> Result<(), Failure> {
    for plugin in client.select(&describe.names).await? {
        let request = GetPluginRequest { name: plugin.name };
        let reply = client.plugins().get_plugin(request).await?.into_inner();
        match describe.output {
            Format::Json => output::json(&to_json(reply)),
            Format::Jsonl => output::line(&to_json(reply).to_string()),
            Format::Name => output::line(&reply.health.unwrap_or_default().name),
            Format::Table | Format::Wide => print(reply),
        }
    }
    Ok(())
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or(Value::Null)
}

fn to_json(reply: GetPluginResponse) -> Value {
    let setup = reply.setup.unwrap_or_default();
    let tools: Vec<Value> = reply
        .tools
        .iter()
        .map(|tool| {
            json!({
                "name": tool.name,
                "title": tool.title,
                "description": tool.description,
                "input_schema": parse(&tool.input_schema),
                "output_schema": parse(&tool.output_schema),
                "streams": tool.streams,
            })
        })
        .collect();
    json!({
        "health": PluginHealth::from(reply.health.unwrap_or_default()),
        "tools": tools,
        "manifest": parse(&setup.manifest_json),
        "command": setup.command,
        "gpus": setup.gpus,
        "warnings": setup.warnings,
        "data_dir": setup.data_dir,
        "sandbox": setup.sandbox.map(SandboxReport::from),
    })
}

fn print(reply: GetPluginResponse) {
    card(&reply.health.unwrap_or_default());
    for tool in &reply.tools {
        let streams = if tool.streams { " (streams)" } else { "" };
        output::line(&format!("\n  tool {}{streams}\n    {}", tool.name, tool.description));
        arguments(&parse(&tool.input_schema));
    }
    let setup = reply.setup.unwrap_or_default();
    let manifest = parse(&setup.manifest_json);
    output::line(&format!("\n  manifest: {}", setup.manifest_path));
    for part in ["limits", "timeouts", "restart", "requires"] {
        if let Some(values) = manifest[part].as_object() {
            let values: Vec<String> = values
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| format!("{key}={}", plain(key, value)))
                .collect();
            output::line(&format!("    {part:<9} {}", values.join(" ")));
        }
    }
    let (concurrency, queue) = (&manifest["concurrency"], &manifest["queue"]);
    let patience = plain("timeout", &queue["timeout"]);
    let queue = format!("queue={} timeout={patience}", queue["size"]);
    output::line(&format!("    {:<9} concurrency={concurrency} {queue}", "calls"));
    if let Some(sandbox) = setup.sandbox {
        confinement(&sandbox.into());
    }
    if !setup.command.is_empty() {
        output::line(&format!("  command: {}", setup.command.join(" ")));
    }
    if !setup.gpus.is_empty() {
        output::line(&format!("  gpus: {}", setup.gpus.join(", ")));
    }
    for warning in &setup.warnings {
        output::line(&format!("  warning: {warning}"));
    }
}

fn confinement(sandbox: &SandboxReport) {
    let user = sandbox.uid.map(|uid| format!(", user {uid}")).unwrap_or_default();
    output::line(&format!("  sandbox: {}{user}", sandbox.profile));
    for layer in &sandbox.layers {
        let holds = if layer.holds { "holds" } else { "MISSING" };
        output::line(&format!("    {:<10} {holds}: {}", layer.name, layer.detail));
    }
    for (what, list) in [("granted", &sandbox.granted), ("denied", &sandbox.denied)] {
        if !list.is_empty() {
            output::line(&format!("    {what:<10} {}", list.join(", ")));
        }
    }
}

/// Durations come as seconds and nanoseconds.
fn plain(key: &str, value: &Value) -> String {
    if let Some(seconds) = value["secs"].as_u64() {
        let nanos = value["nanos"].as_u64().unwrap_or(0) as u32;
        let duration = std::time::Duration::new(seconds, nanos);
        return humantime::format_duration(duration).to_string();
    }
    let sizes = ["memory", "data", "address_space", "file_size", "core"];
    match value.as_u64() {
        Some(bytes) if sizes.contains(&key) => output::size(Some(bytes)),
        _ => value.to_string().replace('"', ""),
    }
}

/// `width  integer, required`
fn arguments(schema: &Value) {
    let required = schema["required"].as_array().cloned().unwrap_or_default();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let kind = match (&property["type"], property["format"].as_str()) {
            (_, Some("binary")) => "binary".to_owned(),
            (Value::String(kind), _) => kind.clone(),
            (Value::Array(kinds), _) => {
                kinds.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" or ")
            }
            _ => "any".to_owned(),
        };
        let needed = if required.iter().any(|known| known == name) { ", required" } else { "" };
        let text = property["description"].as_str().map(|text| format!("  {text}"));
        output::line(&format!("      {name:<14} {kind}{needed}{}", text.unwrap_or_default()));
    }
}
