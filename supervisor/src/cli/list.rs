//! `stockade list`

use std::io::IsTerminal as _;

use clap::Args;
use stockade::gateway::report::health::PluginHealth;
use stockade_proto::v1::{self, WatchPluginsRequest, plugin_change::Kind};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// List the plugins
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade list\n  stockade list 'video-*' -o wide\n  stockade list -o json | jq '.[] | select(.state == \"FAILED\")'\n  stockade list --watch"
)]
pub(super) struct List {
    /// Names or globs [default: all]
    names: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Go on: print again at every change
    #[arg(short, long)]
    watch: bool,
}

pub(super) async fn run(list: List, client: Client) -> Result<(), Failure> {
    let plugins = client.select(&list.names).await?;
    print(&plugins, list.output);
    if !list.watch {
        return Ok(());
    }
    let names = match list.names.is_empty() {
        true => Vec::new(),
        false => plugins.iter().map(|plugin| plugin.name.clone()).collect(),
    };
    let request = WatchPluginsRequest { names };
    let mut changes = client.plugins().watch_plugins(request).await?.into_inner();
    while let Some(change) = changes.message().await? {
        if change.kind() == Kind::Present {
            continue;
        }
        let Some(health) = change.health else { continue };
        match list.output {
            Format::Json | Format::Jsonl => {
                output::json_line(&PluginHealth::from(health));
            }
            // A terminal shows the list as it is; a pipe gets the changed row.
            Format::Table | Format::Wide | Format::Name if std::io::stdout().is_terminal() => {
                let plugins = client.select(&list.names).await?;
                output::clear();
                print(&plugins, list.output);
            }
            Format::Table | Format::Wide | Format::Name => {
                let text = rows(&[health], list.output);
                output::line(text.lines().last().unwrap_or_default());
            }
        }
    }
    Ok(())
}

fn print(plugins: &[v1::PluginHealth], format: Format) {
    let json = || plugins.iter().cloned().map(PluginHealth::from);
    match format {
        Format::Json => output::json(&json().collect::<Vec<_>>()),
        Format::Jsonl => {
            for plugin in json() {
                output::json_line(&plugin);
            }
        }
        Format::Name => plugins.iter().for_each(|plugin| output::line(&plugin.name)),
        Format::Table | Format::Wide if plugins.is_empty() => {
            output::line(
                "No plugins. Put a plugin directory into a plugin folder, or: stockade new NAME",
            );
        }
        Format::Table | Format::Wide => output::line(&rows(plugins, format)),
    }
}

fn rows(plugins: &[v1::PluginHealth], format: Format) -> String {
    let mut head =
        vec!["NAME", "STATE", "READY", "RESTARTS", "PID", "CPU", "RSS", "UPTIME", "LAST-ERROR"];
    if format == Format::Wide {
        head.splice(
            8..8,
            ["SUBSTATE", "VERSION", "GEN", "CALLS", "QUEUED", "OK", "ERRORS", "AVG-MS"],
        );
    }
    let rows: Vec<Vec<String>> = plugins.iter().map(|plugin| row(plugin, format)).collect();
    output::table(&head, &rows, |column, raw, cell| match column {
        1 => output::state_colour(raw, &cell),
        _ => cell,
    })
}

/// It takes calls.
fn ready(plugin: &v1::PluginHealth) -> bool {
    let up = matches!(plugin.state(), v1::PluginState::Initialized | v1::PluginState::Running);
    up && plugin.substate != "DRAINING"
}

fn row(plugin: &v1::PluginHealth, format: Format) -> Vec<String> {
    let error = plugin.last_error.as_deref().unwrap_or("-");
    let mut row = vec![
        plugin.name.clone(),
        plugin.state().as_str_name().to_owned(),
        if ready(plugin) { "yes" } else { "no" }.to_owned(),
        plugin.restarts.to_string(),
        output::or_dash(plugin.pid),
        output::or_dash(plugin.cpu_percent.map(|cpu| format!("{cpu:.0}%"))),
        output::size(plugin.memory_bytes),
        output::or_dash(plugin.uptime_seconds.map(output::duration)),
    ];
    if format == Format::Wide {
        row.extend([
            plugin.substate.clone(),
            output::or_dash(plugin.version.clone()),
            plugin.generation.to_string(),
            plugin.in_flight.to_string(),
            plugin.queued.to_string(),
            plugin.success_count.to_string(),
            plugin.error_count.to_string(),
            output::or_dash(plugin.avg_execution_time_ms.map(|ms| format!("{ms:.1}"))),
        ]);
        row.push(error.lines().next().unwrap_or("-").to_owned());
    } else {
        let used: usize = row.iter().map(|cell| cell.len() + 2).sum();
        row.push(output::short(error, output::columns().saturating_sub(used).max(20)));
    }
    row
}
