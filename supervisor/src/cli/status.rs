//! `stockade status`

use clap::Args;
use stockade::gateway::report::health::PluginHealth;
use stockade_proto::v1;

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// Show how one or more plugins are
#[derive(Args)]
#[command(
    after_help = "Exits 3 when one of them is not serving.\n\nExamples:\n  stockade status ocr\n  stockade status ocr -o json"
)]
pub(super) struct Status {
    /// Names or globs [default: all]
    names: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(status: Status, client: Client) -> Result<(), Failure> {
    let plugins = client.select(&status.names).await?;
    let down: Vec<String> = plugins
        .iter()
        .filter(|plugin| {
            !matches!(plugin.state(), v1::PluginState::Initialized | v1::PluginState::Running)
        })
        .map(|plugin| plugin.name.clone())
        .collect();
    match status.output {
        Format::Json => {
            output::json(&plugins.into_iter().map(PluginHealth::from).collect::<Vec<_>>());
        }
        Format::Jsonl => plugins.into_iter().for_each(|plugin| {
            output::json_line(&PluginHealth::from(plugin));
        }),
        Format::Name => plugins.iter().for_each(|plugin| output::line(&plugin.name)),
        Format::Table | Format::Wide => {
            if status.names.is_empty() {
                problems(&client).await;
            }
            plugins.iter().for_each(card);
        }
    }
    match down.is_empty() {
        true => Ok(()),
        false => Err(Failure::not_running(format!("not serving: {}", down.join(", ")))),
    }
}

/// What is wrong with the daemon itself, for operators.
async fn problems(client: &Client) {
    if let Ok(daemon) = client.admin().get_daemon(v1::GetDaemonRequest {}).await {
        for problem in daemon.into_inner().problems {
            output::line(&format!("problem: {}", problem.replace('\n', "\n  ")));
        }
    }
}

/// One plugin, a line per fact; what is not there is left out.
pub(super) fn card(plugin: &v1::PluginHealth) {
    let state = plugin.state().as_str_name();
    let title = format!("{} ({}, {})", plugin.name, state, plugin.substate);
    output::line(&output::state_colour(state, &title));
    let fact = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // Its further lines stand below it: none looks like another fact.
            let value = value.replace('\n', &format!("\n{:17}", ""));
            output::line(&format!("  {:<14} {value}", format!("{name}:")));
        }
    };
    fact("description", plugin.description.clone());
    fact("version", plugin.version.clone());
    fact("reason", plugin.reason.clone());
    fact("progress", plugin.progress.clone());
    fact("missing", Some(plugin.missing.join(", ")));
    fact("next retry", plugin.next_retry_at.clone());
    fact("not taken", plugin.pending_change.clone());
    let process = plugin.pid.map(|pid| {
        let cpu = output::or_dash(plugin.cpu_percent.map(|cpu| format!("{cpu:.0}%")));
        format!(
            "pid {pid}, generation {}, up {}, cpu {cpu}, memory {}",
            plugin.generation,
            output::or_dash(plugin.uptime_seconds.map(output::duration)),
            output::size(plugin.memory_bytes)
        )
    });
    fact("process", process);
    let times = plugin
        .avg_execution_time_ms
        .map(|average| format!(", {average:.1} ms on average"))
        .unwrap_or_default();
    let calls = format!(
        "{} ok, {} failed, {} in flight, {} waiting{times}",
        plugin.success_count, plugin.error_count, plugin.in_flight, plugin.queued
    );
    fact("calls", Some(calls));
    fact("restarts", Some(plugin.restarts.to_string()));
    let exit = plugin
        .last_exit
        .as_ref()
        .map(|exit| format!("{} ({}) {}", exit.time, exit.cause, exit.reason));
    fact("last exit", exit);
    fact("sandbox", Some(plugin.sandbox.clone()));
    fact("directory", Some(plugin.directory.clone()));
}
