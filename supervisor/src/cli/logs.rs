//! `stockade logs`

use clap::Args;
use stockade_proto::v1::ReadLogsRequest;

use super::{client::Client, failure::Failure, output};

/// Show a plugin's output and log lines
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade logs ocr\n  stockade logs -f -n 20 ocr\n  stockade logs ocr -o jsonl"
)]
pub(super) struct Logs {
    /// The plugin
    name: String,
    /// Go on: print new lines as they come
    #[arg(short, long)]
    follow: bool,
    /// How many of the last lines first; 0 = all that are kept
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: u32,
    /// Print JSON, one object per line
    #[arg(short, long, value_parser = ["text", "jsonl"], default_value = "text")]
    output: String,
}

pub(super) async fn run(logs: Logs, client: Client) -> Result<(), Failure> {
    let request = ReadLogsRequest { plugin: logs.name, last: logs.lines, follow: logs.follow };
    let mut lines = client.events().read_logs(request).await?.into_inner();
    while let Some(line) = lines.message().await? {
        if logs.output == "jsonl" {
            let json = serde_json::json!({
                "time": line.time, "plugin": line.plugin, "generation": line.generation,
                "stream": line.stream, "level": line.level, "text": line.text,
                "dropped": line.dropped,
            });
            output::line(&json.to_string());
            continue;
        }
        if line.dropped > 0 {
            output::line(&format!("… {} lines lost …", line.dropped));
        }
        let level = if line.level.is_empty() { &line.stream } else { &line.level };
        let time = line.time.split('.').next().unwrap_or_default();
        output::line(&format!("{time}Z [{}] {level:<6} {}", line.generation, line.text));
    }
    Ok(())
}
