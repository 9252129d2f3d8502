//! `stockade workspace list|show|set|enable|disable|delete|reopen`

use clap::{Args, Subcommand};
use stockade::gateway::report::data::workspace_json;
use stockade_proto::v1::{
    self, DeleteWorkspaceRequest, GetWorkspaceRequest, ListWorkspacesRequest,
    ReopenWorkspacesRequest, SetWorkspaceRequest, WorkspacePluginRequest,
};

use super::{
    client::Client,
    failure::Failure,
    output::{self, Format},
};

/// Which plugins are enabled where
#[derive(Args)]
#[command(
    after_help = "Examples:\n  stockade workspace show main\n  stockade workspace disable main stealth\n  stockade workspace enable main stealth romance --only\n  stockade workspace set main '{\"behavior\": {\"simulationConfig\": {\"tick\": 5}}}'\n\nIn a workspace without a list of plugins all are enabled."
)]
pub(super) struct Workspace {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// List the workspaces that somebody has configured
    List {
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Show a workspace
    Show {
        /// Its name
        name: String,
        /// How to print
        #[arg(short, long, value_enum, default_value = "table")]
        output: Format,
    },
    /// Set a workspace's document
    Set {
        /// Its name
        name: String,
        /// A JSON object; `@FILE` reads a file, `-` standard input
        document: String,
    },
    /// Enable plugins in a workspace
    Enable {
        /// The workspace
        name: String,
        /// The plugins, names or globs
        #[arg(required = true)]
        plugins: Vec<String>,
        /// And disable all others
        #[arg(long)]
        only: bool,
    },
    /// Disable plugins in a workspace
    Disable {
        /// The workspace
        name: String,
        /// The plugins, names or globs
        #[arg(required = true)]
        plugins: Vec<String>,
    },
    /// Forget a workspace's document: all plugins are enabled again
    Delete {
        /// Its name
        name: String,
    },
    /// Open the workspaces that nobody has configured, after the stored ones were lost
    Reopen,
}

pub(super) async fn run(workspace: Workspace, client: Client) -> Result<(), Failure> {
    let mut workspaces = client.workspaces();
    match workspace.command {
        Command::List { output } => {
            let reply = workspaces.list_workspaces(ListWorkspacesRequest {}).await?.into_inner();
            list(&reply, output);
        }
        Command::Show { name, output } => {
            let one = workspaces.get_workspace(GetWorkspaceRequest { name }).await?.into_inner();
            match output {
                Format::Json | Format::Jsonl => output::json(&workspace_json(&one)),
                Format::Name => output::line(&one.name),
                Format::Table | Format::Wide => card(&one),
            }
        }
        Command::Set { name, document } => {
            let document = super::arguments::text_or_stdin(document)?.into();
            let request = SetWorkspaceRequest { name, document };
            card(&workspaces.set_workspace(request).await?.into_inner());
        }
        Command::Enable { name, plugins, only } => {
            let plugins = names(&client, &plugins).await?;
            let request = WorkspacePluginRequest { name, plugins, only };
            card(&workspaces.enable_plugin(request).await?.into_inner());
        }
        Command::Disable { name, plugins } => {
            let plugins = names(&client, &plugins).await?;
            let request = WorkspacePluginRequest { name, plugins, only: false };
            card(&workspaces.disable_plugin(request).await?.into_inner());
        }
        Command::Delete { name } => {
            let request = DeleteWorkspaceRequest { name: name.clone() };
            if !workspaces.delete_workspace(request).await?.into_inner().deleted {
                return Err(Failure::unknown(format!("Workspace {name} is not configured.")));
            }
        }
        Command::Reopen => {
            let reply = workspaces.reopen_workspaces(ReopenWorkspacesRequest {}).await?;
            output::line(match reply.into_inner().reopened {
                true => "The workspaces that nobody has configured are open again.",
                false => "No workspace was closed.",
            });
        }
    }
    Ok(())
}

/// The plugins that names and globs mean.
async fn names(client: &Client, typed: &[String]) -> Result<Vec<String>, Failure> {
    Ok(client.select(typed).await?.into_iter().map(|plugin| plugin.name).collect())
}

fn enabled(workspace: &v1::Workspace) -> String {
    match (workspace.all_enabled, workspace.enabled_plugins.is_empty()) {
        (true, _) => "all".to_owned(),
        (false, true) => "none".to_owned(),
        (false, false) => workspace.enabled_plugins.join(", "),
    }
}

fn card(workspace: &v1::Workspace) {
    let note = match (workspace.configured, workspace.closed.is_empty()) {
        (_, false) => "  (closed)",
        (true, true) => "",
        (false, true) => "  (nobody has configured it)",
    };
    output::line(&format!("{}{note}", workspace.name));
    output::line(&format!("  plugins:  {}", enabled(workspace)));
    if !workspace.closed.is_empty() {
        output::line(&format!("  closed:   {}", workspace.closed));
    }
    output::line(&format!("  document: {}", String::from_utf8_lossy(&workspace.document)));
}

fn list(reply: &v1::ListWorkspacesResponse, format: Format) {
    let workspaces = &reply.workspaces;
    let closed = format!("Workspaces without a list of plugins are closed: {}.", reply.closed);
    match format {
        Format::Json => output::json(&workspaces.iter().map(workspace_json).collect::<Vec<_>>()),
        Format::Jsonl => {
            workspaces.iter().for_each(|one| output::json_line(&workspace_json(one)));
        }
        Format::Name => workspaces.iter().for_each(|one| output::line(&one.name)),
        Format::Table | Format::Wide if workspaces.is_empty() && !reply.closed.is_empty() => {
            output::line(&closed);
        }
        Format::Table | Format::Wide if workspaces.is_empty() => {
            output::line("No workspace is configured: all plugins are enabled everywhere.");
        }
        Format::Table | Format::Wide => {
            let rows: Vec<Vec<String>> =
                workspaces.iter().map(|one| vec![one.name.clone(), enabled(one)]).collect();
            output::line(&output::table(&["WORKSPACE", "PLUGINS"], &rows, |_, _, cell| cell));
            if !reply.closed.is_empty() {
                output::line(&closed);
            }
        }
    }
}
