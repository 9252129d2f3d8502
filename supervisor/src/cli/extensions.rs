//! `stockade extensions`

use clap::Args;
use stockade::gateway::report::extensions as report;
use stockade_proto::v1::{ListExtensionsRequest, ListExtensionsResponse};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// List what plugins have registered: conditions, effects, configuration, event
/// handlers, providers
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade extensions\n  stockade extensions -o json | jq '.conditions.list[].condition_id'"
)]
pub(super) struct Extensions {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

pub(super) async fn run(extensions: Extensions, client: Client) -> Result<(), Failure> {
    let list = client.extensions().list_extensions(ListExtensionsRequest {}).await?.into_inner();
    let rows = rows(&list);
    match extensions.output {
        Format::Json | Format::Jsonl => output::json(&report::json(&list)),
        Format::Name => rows.iter().for_each(|row| output::line(&row[1])),
        Format::Table | Format::Wide if rows.is_empty() => output::line(
            "Nothing is registered. Plugins do it in Init; see `stockade permissions` for what \
             they may.",
        ),
        Format::Table | Format::Wide => {
            let head = ["KIND", "ID", "DETAILS", "DESCRIPTION"];
            output::line(&output::table(&head, &rows, |_, _, cell| cell));
        }
    }
    Ok(())
}

fn rows(list: &ListExtensionsResponse) -> Vec<Vec<String>> {
    let row = |kind: &str, id: &str, details: String, description: &str| {
        let details = if details.is_empty() { "-".to_owned() } else { details };
        vec![kind.to_owned(), id.to_owned(), details, description.to_owned()]
    };
    let mut rows = Vec::new();
    rows.extend(list.conditions.iter().map(|one| {
        row("condition", &one.condition_id, one.required_context.join(", "), &one.description)
    }));
    rows.extend(list.effects.iter().map(|one| {
        let params = String::from_utf8_lossy(&one.default_params).into_owned();
        row("effect", &one.effect_id, params, &one.description)
    }));
    rows.extend(list.simulation_configs.iter().map(|one| {
        let details = format!("priority {}", one.priority);
        row("config", &one.provider_id, details, &one.description)
    }));
    rows.extend(list.event_handlers.iter().map(|one| {
        let id = format!("plugin:{}:{}", one.plugin_id, one.name);
        let lost = match one.dropped {
            0 => String::new(),
            n => format!(" ({n} lost)"),
        };
        row("handler", &id, format!("{}{lost}", one.patterns.join(", ")), "")
    }));
    rows.extend(
        list.providers
            .iter()
            .map(|one| row("provider", &one.name, one.permission.clone(), &one.description)),
    );
    rows
}
