//! `stockade provenance`

use clap::Args;
use stockade::gateway::report::data::provenance_json;
use stockade_proto::v1::ListProvenanceRequest;

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// Show who changed what plugins have stored, newest first
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade provenance --plugin quests\n  stockade provenance --key 'plugin:quests:player:1'\n  stockade provenance --key 'main/npc/7*' -o json"
)]
pub(super) struct Provenance {
    /// Of this plugin
    #[arg(long, default_value = "")]
    plugin: String,
    /// Of this key; with `*` at the end, of those that begin so
    #[arg(long, default_value = "")]
    key: String,
    /// In this workspace
    #[arg(long, default_value = "")]
    workspace: String,
    /// How many
    #[arg(short = 'n', long, default_value_t = 50)]
    lines: u32,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(provenance: Provenance, client: Client) -> Result<(), Failure> {
    let Provenance { plugin, key, workspace, lines, output } = provenance;
    let request = ListProvenanceRequest { plugin, key, workspace, limit: lines };
    let records = client.data().list_provenance(request).await?.into_inner().records;
    match output {
        Format::Json => output::json(&records.iter().map(provenance_json).collect::<Vec<_>>()),
        Format::Jsonl => {
            records.iter().for_each(|one| output::line(&provenance_json(one).to_string()));
        }
        Format::Name => records.iter().for_each(|one| output::line(&one.key)),
        Format::Table | Format::Wide if records.is_empty() => output::line("Nothing was changed."),
        Format::Table | Format::Wide => {
            let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
            let rows: Vec<Vec<String>> = records
                .iter()
                .map(|one| {
                    vec![
                        one.time.clone(),
                        one.actor.clone(),
                        one.generation.to_string(),
                        dash(&one.call_id),
                        dash(&one.workspace),
                        one.operation.clone(),
                        one.key.clone(),
                    ]
                })
                .collect();
            let head = ["TIME", "WHO", "GEN", "CALL", "WORKSPACE", "DID", "KEY"];
            output::line(&output::table(&head, &rows, |_, _, cell| cell));
        }
    }
    Ok(())
}
