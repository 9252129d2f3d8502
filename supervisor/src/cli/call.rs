//! `stockade call`

use std::{
    fs,
    io::{IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::{Value, value::RawValue};
use stockade::capacity::read_exactly;
use stockade_proto::v1::{Attachment, CallItem, CallOutcome, CallRequest, call_update::Update};

use super::{arguments::Given, client::Client, failure::Failure, output};

/// Call a tool
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade call image thumbnail --arg width=128 --file image=photo.jpg -o thumb.jpg\n  stockade call image colors --file image=photo.jpg | jq .\n  stockade call demo greet --args '{\"name\": \"Ada\"}'"
)]
pub(super) struct Call {
    /// The plugin
    plugin: String,
    /// Its tool
    tool: String,
    #[command(flatten)]
    given: Given,
    /// Write the result's attachment here (a directory takes several)
    #[arg(short, long, value_name = "PATH")]
    output: Option<PathBuf>,
    /// Give up after this long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// The workspace of the call
    #[arg(long, value_name = "NAME", default_value = "")]
    workspace: String,
    /// Print the whole outcome instead of the result
    #[arg(long)]
    outcome: bool,
}

pub(super) async fn run(call: Call, client: Client) -> Result<(), Failure> {
    let request = CallRequest {
        plugin: call.plugin.clone(),
        tool: call.tool.clone(),
        args: call.given.text()?.into(),
        attachments: call.given.files()?,
        timeout_ms: call.timeout.map_or(0, |timeout| timeout.as_millis() as u64),
        workspace: call.workspace.clone(),
        loose: call.given.loose(),
        enabled_plugins: None,
    };
    let mut updates = client.tools().call_stream(request).await?.into_inner();
    let bar = bar(&call);
    let mut items = 0;
    while let Some(update) = updates.message().await? {
        match update.update {
            Some(Update::Progress(progress)) => {
                bar.set_position((progress.fraction.clamp(0.0, 1.0) * 1000.0) as u64);
                bar.set_message(progress.message);
            }
            Some(Update::Item(item)) => {
                bar.suspend(|| print_item(&item));
                items += 1;
                save(&item.attachments, call.output.as_deref(), items)?;
            }
            Some(Update::Outcome(outcome)) => {
                bar.finish_and_clear();
                return finish(&call, outcome);
            }
            None => {}
        }
    }
    bar.finish_and_clear();
    Err(Failure::failed("the daemon ended the call without an outcome"))
}

/// Progress on the terminal; nothing where nobody looks.
fn bar(call: &Call) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(1000).with_prefix(format!("{} {}", call.plugin, call.tool));
    if let Ok(style) =
        ProgressStyle::with_template("{spinner} {prefix} {bar:30} {percent}% {msg} {elapsed}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn print_item(item: &CallItem) {
    output::line(&String::from_utf8_lossy(&item.value));
}

/// What `--outcome` prints.
#[derive(Serialize)]
struct Whole<'a> {
    ok: bool,
    result: Option<Shown>,
    error: Option<&'a str>,
    error_type: Option<&'a str>,
    plugin: &'a str,
    tool: &'a str,
    duration_ms: f64,
    call_id: &'a str,
    generation: u64,
    delivered: bool,
    cause: Option<&'a str>,
}

impl<'a> Whole<'a> {
    fn of(outcome: &'a CallOutcome) -> Self {
        let given = |text: &'a str| (!text.is_empty()).then_some(text);
        Whole {
            ok: outcome.ok,
            result: Shown::of(&outcome.result),
            error: given(&outcome.error),
            error_type: given(&outcome.error_type),
            plugin: &outcome.plugin,
            tool: &outcome.tool,
            duration_ms: outcome.duration_ms,
            call_id: &outcome.call_id,
            generation: outcome.generation,
            delivered: outcome.delivered,
            cause: given(&outcome.cause),
        }
    }
}

/// A result that is printed as people read it, if that changes no number of it.
#[derive(Serialize)]
#[serde(untagged)]
enum Shown {
    Read(Value),
    AsItIs(Box<RawValue>),
}

impl Shown {
    fn of(text: &[u8]) -> Option<Self> {
        match read_exactly(text) {
            Ok(value) => Some(Shown::Read(value)),
            Err(_) => serde_json::from_slice(text).ok().map(Shown::AsItIs),
        }
    }
}

fn finish(call: &Call, outcome: CallOutcome) -> Result<(), Failure> {
    if call.outcome {
        output::json(&Whole::of(&outcome));
    }
    if !outcome.ok {
        return Err(failure(&outcome));
    }
    save(&outcome.attachments, call.output.as_deref(), 0)?;
    if !call.outcome {
        match Shown::of(&outcome.result) {
            Some(result) => output::json(&result),
            None => output::line(&String::from_utf8_lossy(&outcome.result)),
        }
    }
    if call.output.is_none() {
        for blob in &outcome.attachments {
            let size = output::size(Some(blob.data.len() as u64));
            eprintln!(
                "attachment {} ({}, {size}): write it with -o FILE",
                output::harmless(&blob.name),
                output::harmless(&blob.content_type)
            );
        }
    }
    Ok(())
}

fn failure(outcome: &CallOutcome) -> Failure {
    let text = format!("{}: {}", outcome.error_type, outcome.error);
    match outcome.error_type.as_str() {
        "PluginNotFound" | "ToolNotFound" => Failure::unknown(text),
        "PluginUnavailable" => Failure::not_running(text),
        "InvalidArguments" => Failure::usage(text),
        _ => Failure::failed(text),
    }
}

/// One attachment goes to the path itself; several, and those of items, into
/// it as a directory.
fn save(blobs: &[Attachment], path: Option<&Path>, item: usize) -> Result<(), Failure> {
    let (Some(path), false) = (path, blobs.is_empty()) else { return Ok(()) };
    let failed = |path: &Path, error: std::io::Error| {
        Failure::failed(format!("cannot write {}: {error}", path.display()))
    };
    if item == 0
        && !path.is_dir()
        && let [only] = blobs
    {
        if path == Path::new("-") {
            return std::io::stdout().write_all(&only.data).map_err(|error| failed(path, error));
        }
        return fs::write(path, &only.data).map_err(|error| failed(path, error));
    }
    fs::create_dir_all(path).map_err(|error| failed(path, error))?;
    for blob in blobs {
        let extension = match blob.content_type.as_str() {
            "image/jpeg" => ".jpg",
            "image/png" => ".png",
            "application/json" => ".json",
            _ => "",
        };
        // The name is the plugin's: it stays inside the directory.
        let name: String = blob
            .name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || "-_".contains(c) { c } else { '_' })
            .collect();
        let number = if item == 0 { String::new() } else { format!("-{item}") };
        let file = path.join(format!("{name}{number}{extension}"));
        fs::write(&file, &blob.data).map_err(|error| failed(&file, error))?;
    }
    Ok(())
}
