//! `stockade start|stop|restart|reset|enable|disable`

use std::{io::IsTerminal as _, time::Duration};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use stockade_proto::v1::{PluginActionRequest, PluginHealth, PluginState};

use super::{client::Client, failure::Failure, output};

/// Act on plugins
#[derive(Args)]
pub(super) struct Act {
    /// Names or globs
    #[arg(required = true)]
    names: Vec<String>,
    /// Do not wait until it has taken effect
    #[arg(long)]
    no_wait: bool,
    /// Wait no longer than this
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Start,
    Stop,
    Restart,
    Reset,
    Enable,
    Disable,
}

impl Action {
    fn doing(self) -> &'static str {
        match self {
            Action::Start => "starting",
            Action::Stop => "stopping",
            Action::Restart => "restarting",
            Action::Reset => "resetting",
            Action::Enable => "enabling",
            Action::Disable => "disabling",
        }
    }

    /// The plugin is as it should be after it.
    fn achieved(self, plugin: &PluginHealth) -> bool {
        let up = matches!(plugin.state(), PluginState::Initialized | PluginState::Running);
        match self {
            Action::Stop | Action::Disable => !up && plugin.pid.is_none(),
            Action::Start | Action::Restart | Action::Reset | Action::Enable => {
                up || plugin.substate == "ON_DEMAND"
            }
        }
    }
}

pub(super) async fn run(act: Act, action: Action, client: Client) -> Result<(), Failure> {
    let plugins = client.select(&act.names).await?;
    let mut failed = Vec::new();
    for plugin in plugins {
        let spinner = spinner(&format!("{} {}", action.doing(), plugin.name));
        let reply = one(&client, action, &plugin.name, &act).await;
        spinner.finish_and_clear();
        let health = reply?;
        let state = health.state().as_str_name();
        let shown = output::state_colour(state, &format!("{state} ({})", health.substate));
        output::line(&format!("{}: {shown}", health.name));
        if !act.no_wait && !action.achieved(&health) {
            failed.push(format!("{}: {}", health.name, health.reason.unwrap_or(health.substate)));
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::failed(failed.join("\n"))),
    }
}

async fn one(
    client: &Client,
    action: Action,
    name: &str,
    act: &Act,
) -> Result<PluginHealth, Failure> {
    let request = PluginActionRequest {
        name: name.to_owned(),
        wait: !act.no_wait,
        timeout_ms: act.timeout.as_millis() as u64,
    };
    let mut admin = client.admin();
    let reply = match action {
        Action::Start => admin.start_plugin(request).await,
        Action::Stop => admin.stop_plugin(request).await,
        Action::Restart => admin.restart_plugin(request).await,
        Action::Reset => admin.reset_plugin(request).await,
        Action::Enable => admin.enable_plugin(request).await,
        Action::Disable => admin.disable_plugin(request).await,
    };
    Ok(reply?.into_inner().health.unwrap_or_default())
}

/// Shows that something goes on; nothing where nobody looks.
pub(super) fn spinner(text: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
    let bar = ProgressBar::new_spinner().with_message(text.to_owned());
    if let Ok(style) = style {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
