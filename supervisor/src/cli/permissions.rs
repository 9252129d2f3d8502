//! `stockade permissions`

use clap::Args;
use stockade::gateway::report::permissions as report;
use stockade_proto::v1::{ListPermissionsRequest, PluginPermissions};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// Show what plugins may ask of the host: requested, granted, denied, and used
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade permissions\n  stockade permissions quests -o json | jq .quota\n\nWhat is granted is decided by [permissions] and [plugin.NAME.permissions] of stockade.toml."
)]
pub(super) struct Permissions {
    /// Names or globs [default: all]
    plugins: Vec<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(permissions: Permissions, client: Client) -> Result<(), Failure> {
    let wanted = client.select(&permissions.plugins).await?;
    let reply = client.data().list_permissions(ListPermissionsRequest::default()).await?;
    let mut plugins = reply.into_inner().plugins;
    plugins.retain(|one| wanted.iter().any(|plugin| plugin.name == one.plugin));
    match permissions.output {
        Format::Json if permissions.plugins.len() == 1 && plugins.len() == 1 => {
            output::json(&report::json(&plugins[0]));
        }
        Format::Json => output::json(&plugins.iter().map(report::json).collect::<Vec<_>>()),
        Format::Jsonl => {
            plugins.iter().for_each(|one| output::line(&report::json(one).to_string()))
        }
        Format::Name => plugins.iter().for_each(|one| output::line(&one.plugin)),
        Format::Table | Format::Wide => print(&plugins, permissions.output),
    }
    Ok(())
}

fn print(plugins: &[PluginPermissions], format: Format) {
    let rows: Vec<Vec<String>> = plugins
        .iter()
        .flat_map(|plugin| {
            plugin.permissions.iter().map(|one| {
                vec![
                    plugin.plugin.clone(),
                    one.permission.clone(),
                    one.status.clone(),
                    one.used.to_string(),
                    one.refused.to_string(),
                    one.note.clone(),
                ]
            })
        })
        .collect();
    if rows.is_empty() {
        output::line("No permission was requested. Plugins ask for them with [permissions].");
    } else {
        let head = ["PLUGIN", "PERMISSION", "STATUS", "USED", "REFUSED", "NOTE"];
        output::line(&output::table(&head, &rows, |_, _, cell| cell));
    }
    if format == Format::Wide {
        quotas(plugins);
    }
}

fn quotas(plugins: &[PluginPermissions]) {
    let rows: Vec<Vec<String>> = plugins
        .iter()
        .map(|plugin| {
            let quota = plugin.quota.unwrap_or_default();
            vec![
                plugin.plugin.clone(),
                format!("{}/{}", quota.keys, quota.max_keys),
                format!(
                    "{}/{}",
                    output::size(Some(quota.bytes)),
                    output::size(Some(quota.max_bytes))
                ),
                output::size(Some(quota.max_value_bytes)),
                quota.max_requests_per_second.to_string(),
                quota.max_writes_per_second.to_string(),
                quota.max_events_per_second.to_string(),
                quota.refused.to_string(),
            ]
        })
        .collect();
    let head =
        ["PLUGIN", "KEYS", "BYTES", "VALUE", "REQUESTS/S", "WRITES/S", "EVENTS/S", "REFUSED"];
    output::line(&format!("\n{}", output::table(&head, &rows, |_, _, cell| cell)));
}
