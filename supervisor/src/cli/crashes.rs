//! `stockade crashes`

use clap::Args;
use serde_json::{Value, json};
use stockade_proto::v1::{CrashRecord, ListCrashesRequest};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// Show why plugins died: the crash records, newest first
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade crashes\n  stockade crashes ocr -n 1 -o wide\n  stockade crashes -o json"
)]
pub(super) struct Crashes {
    /// The plugin [default: all]
    name: Option<String>,
    /// How many
    #[arg(short = 'n', long, default_value_t = 20)]
    lines: u32,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(crashes: Crashes, client: Client) -> Result<(), Failure> {
    let plugin = crashes.name.unwrap_or_default();
    if !plugin.is_empty() {
        client.select(std::slice::from_ref(&plugin)).await?;
    }
    let request = ListCrashesRequest { plugin, limit: crashes.lines };
    let records = client.events().list_crashes(request).await?.into_inner().crashes;
    match crashes.output {
        Format::Json => output::json(&records.iter().map(to_json).collect::<Vec<_>>()),
        Format::Jsonl => {
            records.iter().for_each(|record| output::line(&to_json(record).to_string()))
        }
        Format::Name => records.iter().for_each(|record| output::line(&record.plugin)),
        Format::Wide => records.iter().for_each(card),
        Format::Table if records.is_empty() => output::line("No plugin has died."),
        Format::Table => {
            let rows: Vec<Vec<String>> = records.iter().map(row).collect();
            let head = ["TIME", "PLUGIN", "GEN", "CAUSE", "UP", "TOOL", "REASON"];
            output::line(&output::table(&head, &rows, |_, _, cell| cell));
        }
    }
    Ok(())
}

fn row(record: &CrashRecord) -> Vec<String> {
    let time = record.time.split('.').next().unwrap_or_default();
    vec![
        format!("{time}Z"),
        record.plugin.clone(),
        record.generation.to_string(),
        record.cause.clone(),
        output::duration(record.uptime_seconds),
        output::or_dash(record.calls.first().map(|call| call.tool.clone())),
        output::short(&record.reason, output::columns().saturating_sub(80).max(40)),
    ]
}

fn card(record: &CrashRecord) {
    let CrashRecord { plugin, generation, time, cause, reason, .. } = record;
    output::line(&format!("{plugin} generation {generation}, {time}: {cause}\n  {reason}"));
    let exit = match (&record.signal, record.exit_code) {
        (Some(signal), _) => signal.clone(),
        (None, Some(code)) => format!("exit {code}"),
        (None, None) => "unknown".to_owned(),
    };
    output::line(&format!(
        "  {exit}, pid {}, up {:.3} s, peak {}, cpu {:.3} s{}",
        record.pid,
        record.uptime_seconds,
        output::size(Some(record.peak_memory_bytes)),
        record.cpu_seconds,
        if record.core_dumped { ", core written" } else { "" }
    ));
    for call in &record.calls {
        output::line(&format!(
            "  call {} tool {} input {} after {:.1} ms",
            call.call_id, call.tool, call.input_digest, call.running_ms
        ));
    }
    if !record.last_progress.is_empty() {
        output::line(&format!("  last progress: {}", record.last_progress));
    }
    if !record.backtrace.is_empty() {
        output::line(&format!("  at {}", record.backtrace.join(" ")));
    }
    for line in record.traceback.lines() {
        output::line(&format!("  : {line}"));
    }
    for line in record.stderr_tail.lines() {
        output::line(&format!("  | {line}"));
    }
}

fn to_json(record: &CrashRecord) -> Value {
    let calls: Vec<Value> = record
        .calls
        .iter()
        .map(|call| {
            json!({
                "call_id": call.call_id, "tool": call.tool,
                "input_digest": call.input_digest, "running_ms": call.running_ms,
            })
        })
        .collect();
    json!({
        "id": record.id, "plugin": record.plugin, "version": record.version,
        "generation": record.generation, "pid": record.pid, "time": record.time,
        "cause": record.cause, "reason": record.reason, "exit_code": record.exit_code,
        "signal": record.signal, "core_dumped": record.core_dumped,
        "uptime_seconds": record.uptime_seconds, "peak_memory_bytes": record.peak_memory_bytes,
        "cpu_seconds": record.cpu_seconds, "calls": calls, "last_progress": record.last_progress,
        "stderr_tail": record.stderr_tail, "backtrace": record.backtrace,
        "traceback": record.traceback,
    })
}
