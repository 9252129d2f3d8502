//! `stockade reload`

use clap::Args;
use stockade_proto::v1::ReloadRequest;

use super::{act::spinner, client::Client, failure::Failure, output};

/// Read the configuration and the plugin directories again
#[derive(Args)]
#[command(
    after_help = "A change with problems is not taken: what runs goes on, and the exit code is 1.\n\nExample:\n  stockade reload"
)]
pub(super) struct Reload {}

pub(super) async fn run(_: Reload, client: Client) -> Result<(), Failure> {
    let spinner = spinner("reloading");
    let reply = client.admin().reload(ReloadRequest {}).await;
    spinner.finish_and_clear();
    let reply = reply?.into_inner();
    let lists = [("added", &reply.added), ("changed", &reply.changed), ("removed", &reply.removed)];
    for (what, names) in lists {
        names.iter().for_each(|name| output::line(&format!("{what} {name}")));
    }
    if lists.iter().all(|(_, names)| names.is_empty()) {
        output::line("no plugin was added, changed or removed");
    }
    match reply.problems.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(reply.problems.join("\n"))),
    }
}
