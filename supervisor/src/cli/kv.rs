//! `stockade kv get|set|delete|list|export`

use std::{io::Write as _, time::Duration};

use clap::{Args, Subcommand};
use stockade::gateway::report::data::value_json;
use stockade_proto::v1::{
    DeleteValueRequest, GetValueRequest, ListValuesRequest, SetValueRequest, Value,
};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// Read and change what plugins have stored
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade kv list quests\n  stockade kv get quests player:1\n  stockade kv set quests player:1 '{\"level\": 3}' --ttl 1h\n  stockade kv export > backup.jsonl"
)]
pub(super) struct Kv {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a value
    Get {
        /// The plugin
        plugin: String,
        /// The key
        key: String,
    },
    /// Set a value
    Set {
        /// The plugin
        plugin: String,
        /// The key
        key: String,
        /// JSON; text that is none is taken as a string. `@FILE` reads a file, `-`
        /// standard input
        value: String,
        /// Keep the bytes as they are instead of JSON
        #[arg(long)]
        binary: bool,
        /// Forget it after this long
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        ttl: Option<Duration>,
    },
    /// Delete a value
    Delete {
        /// The plugin
        plugin: String,
        /// The key
        key: String,
    },
    /// List keys
    List {
        /// The plugin [default: all]
        plugin: Option<String>,
        /// Only keys that begin so
        #[arg(long, default_value = "")]
        prefix: String,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Print every key with its value, one JSON object per line
    Export {
        /// The plugin [default: all]
        plugin: Option<String>,
    },
}

pub(super) async fn run(kv: Kv, client: Client) -> Result<(), Failure> {
    let mut data = client.data();
    match kv.command {
        Command::Get { plugin, key } => {
            let request = GetValueRequest { plugin: plugin.clone(), key: key.clone() };
            let Some(value) = data.get_value(request).await?.into_inner().value else {
                return Err(Failure::unknown(format!(
                    "Plugin {plugin} has no key {key}. `stockade kv list {plugin}` shows all."
                )));
            };
            match value.binary {
                // As it is: the reader wants the bytes.
                true => drop(std::io::stdout().write_all(&value.data)),
                false => output::line(&String::from_utf8_lossy(&value.data)),
            }
        }
        Command::Set { plugin, key, value, binary, ttl } => {
            client.select(std::slice::from_ref(&plugin)).await?;
            let text = super::arguments::text_or_stdin(value)?;
            let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&text).is_ok();
            let bytes = match binary || is_json {
                true => text,
                false => serde_json::to_vec(&String::from_utf8_lossy(&text)).unwrap_or_default(),
            };
            if ttl.is_some_and(|ttl| ttl.as_millis() == 0) {
                let text = "--ttl 0s would be gone at once: leave --ttl out for a value that \
                            stays, or say `stockade kv delete`";
                return Err(Failure::usage(text));
            }
            let ttl_ms = ttl.map_or(0, |ttl| ttl.as_millis() as u64);
            let request = SetValueRequest { plugin, key, data: bytes.into(), binary, ttl_ms };
            data.set_value(request).await?;
        }
        Command::Delete { plugin, key } => {
            let request = DeleteValueRequest { plugin: plugin.clone(), key: key.clone() };
            if !data.delete_value(request).await?.into_inner().deleted {
                return Err(Failure::unknown(format!("Plugin {plugin} has no key {key}.")));
            }
        }
        Command::List { plugin, prefix, output } => list(client, plugin, prefix, output).await?,
        Command::Export { plugin } => {
            let request = ListValuesRequest {
                plugin: plugin.unwrap_or_default(),
                values: true,
                ..Default::default()
            };
            let mut rows = data.list_values(request).await?.into_inner();
            while let Some(row) = rows.message().await? {
                output::line(&value_json(&row, true).to_string());
            }
        }
    }
    Ok(())
}

async fn list(
    client: Client,
    plugin: Option<String>,
    prefix: String,
    format: Format,
) -> Result<(), Failure> {
    let request = ListValuesRequest { plugin: plugin.unwrap_or_default(), prefix, values: false };
    let mut rows = client.data().list_values(request).await?.into_inner();
    let mut all: Vec<Value> = Vec::new();
    while let Some(row) = rows.message().await? {
        match format {
            Format::Jsonl => output::line(&value_json(&row, false).to_string()),
            Format::Name => output::line(&row.key),
            _ => all.push(row),
        }
    }
    match format {
        Format::Json => {
            output::json(&all.iter().map(|row| value_json(row, false)).collect::<Vec<_>>());
        }
        Format::Table | Format::Wide if all.is_empty() => output::line("Nothing is stored."),
        Format::Table | Format::Wide => {
            let rows: Vec<Vec<String>> = all
                .iter()
                .map(|row| {
                    vec![
                        row.plugin.clone(),
                        row.key.clone(),
                        if row.binary { "bytes" } else { "json" }.to_owned(),
                        row.modified_at.clone(),
                        output::or_dash(row.expires_at.clone()),
                    ]
                })
                .collect();
            let head = ["PLUGIN", "KEY", "KIND", "MODIFIED", "EXPIRES"];
            output::line(&output::table(&head, &rows, |_, _, cell| cell));
        }
        Format::Jsonl | Format::Name => {}
    }
    Ok(())
}
