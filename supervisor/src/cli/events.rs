//! `stockade events`

use clap::Args;
use stockade_proto::v1::WatchEventsRequest;

use super::{client::Client, failure::Failure, output};

/// Show what happened: states, deaths, reloads, operators' actions
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade events\n  stockade events -f ocr\n  stockade events -o jsonl"
)]
pub(super) struct Events {
    /// Plugins [default: all]
    names: Vec<String>,
    /// Go on: print events as they happen
    #[arg(short, long)]
    follow: bool,
    /// How many of the last events first
    #[arg(short = 'n', long, default_value_t = 50)]
    lines: u32,
    /// Print JSON, one object per line
    #[arg(short, long, value_parser = ["text", "jsonl"], default_value = "text")]
    output: String,
}

pub(super) async fn run(events: Events, client: Client) -> Result<(), Failure> {
    if !events.names.is_empty() {
        client.select(&events.names).await?;
    }
    let request =
        WatchEventsRequest { plugins: events.names, last: events.lines, follow: events.follow };
    let mut stream = client.events().watch_events(request).await?.into_inner();
    while let Some(event) = stream.message().await? {
        if events.output == "jsonl" {
            let json = serde_json::json!({
                "sequence": event.sequence, "time": event.time, "plugin": event.plugin,
                "generation": event.generation, "kind": event.kind, "state": event.state,
                "substate": event.substate, "message": event.message, "cause": event.cause,
            });
            output::line(&json.to_string());
            continue;
        }
        let time = event.time.split('.').next().unwrap_or_default();
        let what = match event.kind.as_str() {
            "state" => format!("{} ({})", event.state, event.substate),
            kind => kind.to_owned(),
        };
        let plugin = if event.plugin.is_empty() { "-" } else { &event.plugin };
        let text = format!("{time}Z {plugin:<16} {what:<28} {}", event.message);
        output::line(text.trim_end());
    }
    Ok(())
}
