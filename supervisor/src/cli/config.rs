//! `stockade config`

use clap::{Args, Subcommand};
use stockade::{
    Supervisor,
    config::{Source, default_config_file},
};

use super::{
    Place,
    failure::Failure,
    output::{self, Format},
};

/// Show the configuration
#[derive(Args)]
#[command(after_help = "Examples:\n  stockade config show\n  stockade config path")]
pub(super) struct Config {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Every value and where it came from (flag > env > file > default)
    Show {
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// The file that is read
    Path,
}

pub(super) fn run(config: &Config, place: &Place) -> Result<(), Failure> {
    let file = place.config.clone();
    match config.what {
        What::Path => {
            output::line(&file.unwrap_or_else(default_config_file).display().to_string());
            Ok(())
        }
        What::Show { output } => {
            let source = Source { file, flags: place.flags() };
            let loaded = source.load().map_err(|problems| Failure::problems(&problems))?;
            let mut rows: Vec<Vec<String>> = loaded
                .settings
                .iter()
                .map(|s| vec![s.key.to_string(), s.value.clone(), s.layer.to_string()])
                .collect();
            rows.extend(totals(&loaded));
            match output {
                Format::Json | Format::Jsonl => {
                    let list: Vec<_> = rows
                        .iter()
                        .map(|row| serde_json::json!({"key": row[0], "value": row[1], "from": row[2]}))
                        .collect();
                    output::json(&list);
                }
                Format::Name => rows.iter().for_each(|row| output::line(&row[0])),
                Format::Table | Format::Wide => {
                    let head = ["KEY", "VALUE", "FROM"];
                    output::line(&output::table(&head, &rows, |_, _, cell| cell));
                }
            }
            Ok(())
        }
    }
}

/// What all plugins may use together where no file says so.
fn totals(config: &stockade::Config) -> impl Iterator<Item = Vec<String>> {
    let totals = Supervisor::totals(config);
    let rows = [
        ("limits.memory_total", output::size(Some(totals.memory))),
        ("limits.processes_total", totals.processes.to_string()),
    ];
    let said = |key: &str| config.settings.iter().any(|setting| setting.key == key);
    let rows: Vec<_> = rows.into_iter().filter(|(key, _)| !said(key)).collect();
    rows.into_iter().map(|(key, value)| vec![key.to_owned(), value, "default".to_owned()])
}
