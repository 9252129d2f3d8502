//! `stockade metrics`

use clap::Args;
use stockade::gateway::report::metrics as report;
use stockade_proto::v1::{GetMetricsRequest, PluginMetrics, ResetMetricsRequest};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// Show how plugins have fared: requests, conditions, effects, event handlers
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade metrics\n  stockade metrics quests -o json | jq .health\n  stockade metrics --reset"
)]
pub(super) struct Metrics {
    /// The plugin [default: all]
    plugin: Option<String>,
    /// Forget what was measured
    #[arg(long)]
    reset: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(metrics: Metrics, client: Client) -> Result<(), Failure> {
    let plugin_id = metrics.plugin.clone().unwrap_or_default();
    if metrics.reset {
        let reply = client.observability().reset_metrics(ResetMetricsRequest { plugin_id }).await?;
        output::line(&reply.into_inner().message);
        return Ok(());
    }
    let all = client.observability().get_metrics(GetMetricsRequest { plugin_id }).await?;
    let all = all.into_inner();
    let mut plugins: Vec<&PluginMetrics> = all.plugins.values().collect();
    plugins.sort_by(|a, b| a.plugin_id.cmp(&b.plugin_id));
    match metrics.output {
        Format::Json => match (&metrics.plugin, plugins.first()) {
            (Some(_), Some(one)) => output::json(&report::json(one)),
            _ => output::json(&report::all_json(&all)),
        },
        Format::Jsonl => {
            plugins.iter().for_each(|one| output::line(&report::json(one).to_string()))
        }
        Format::Name => plugins.iter().for_each(|one| output::line(&one.plugin_id)),
        Format::Table | Format::Wide => {
            let rows: Vec<Vec<String>> = plugins.iter().map(|one| row(one)).collect();
            let head = [
                "PLUGIN",
                "KIND",
                "HEALTHY",
                "REQUESTS",
                "ERRORS",
                "P50-MS",
                "P99-MS",
                "CONDITIONS",
                "FAILED",
                "EFFECTS",
                "FAILED",
                "EVENTS",
                "FAILED",
            ];
            output::line(&output::table(&head, &rows, |_, _, cell| cell));
        }
    }
    Ok(())
}

fn row(of: &PluginMetrics) -> Vec<String> {
    let requests = of.requests.clone().unwrap_or_default();
    let extensions = of.behavior_extensions.unwrap_or_default();
    let events = of.event_handlers.unwrap_or_default();
    let healthy = of.health.as_ref().is_some_and(|health| health.is_healthy);
    vec![
        of.plugin_id.clone(),
        of.kind.clone(),
        if healthy { "yes" } else { "NO" }.to_owned(),
        requests.total.to_string(),
        requests.errors.to_string(),
        format!("{:.2}", requests.p50),
        format!("{:.2}", requests.p99),
        extensions.condition_evaluations.to_string(),
        extensions.condition_failures.to_string(),
        extensions.effect_applications.to_string(),
        extensions.effect_failures.to_string(),
        events.calls.to_string(),
        events.failures.to_string(),
    ]
}
