//! `stockade doctor`

use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use stockade::{
    config::Source,
    machine::{Cgroups, Gap, LayerProbe},
};

use super::{
    Place,
    failure::Failure,
    output::{self, Format},
};

/// Try what this machine can hold plugins back with, layer by layer
#[derive(Args)]
#[command(
    after_help = "Each layer is tried, not looked up: some systems allow a namespace and then deny\nwhat is done inside. Run it as the daemon's user. The exit code is 1 when a layer\nof the profile `standard` is missing: then plugins that ask for it do not start,\nunless allow_degraded = true.\n\nExamples:\n  stockade doctor\n  sudo -u stockade stockade doctor -o json"
)]
pub(super) struct Doctor {
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// One line of the answer.
struct Line {
    layer: &'static str,
    /// The profile `standard` cannot do without it.
    required: bool,
    found: Result<String, (String, String)>,
}

pub(super) fn run(doctor: &Doctor, place: &Place) -> Result<ExitCode, Failure> {
    let source = Source { file: place.config.clone(), flags: place.flags() };
    let config = source.load().map_err(|problems| Failure::problems(&problems))?;
    if !config.worker.exists() {
        let text = format!(
            "the launcher {} is not there; install stockade-worker beside stockade or set `worker`",
            config.worker.display()
        );
        return Err(Failure::failed(text));
    }
    let probe = LayerProbe::new(config.worker.clone(), config.plugin_uids.clone());
    let lines = lines(&probe);
    let missing = lines.iter().any(|line| line.required && line.found.is_err());
    print(&lines, doctor.output, missing);
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn lines(probe: &LayerProbe) -> Vec<Line> {
    let layers = probe.layers();
    let gap = |gap: &Gap| (gap.what.clone(), gap.fix.clone());
    let uids = probe.uids();
    let users = match &layers.users {
        Some(users) => Line {
            layer: "users",
            required: true,
            found: users
                .as_ref()
                .map(|()| format!("a user of {}-{} for each plugin", uids.start(), uids.end()))
                .map_err(gap),
        },
        None => Line {
            layer: "users",
            required: false,
            found: Err((
                "the daemon is not root: plugins have its user".to_owned(),
                "run it as root under systemd".to_owned(),
            )),
        },
    };
    let namespaces = layers.namespaces.as_ref();
    let landlock = layers.landlock.as_ref();
    let seccomp = layers.seccomp.as_ref();
    let cgroups = Cgroups::look();
    vec![
        users,
        Line {
            layer: "namespaces",
            required: true,
            found: namespaces
                .map(|()| "a root, pids, a network of its own for each plugin".to_owned())
                .map_err(gap),
        },
        Line {
            layer: "landlock",
            required: true,
            found: landlock.map(|abi| format!("ABI {abi}")).map_err(gap),
        },
        Line {
            layer: "seccomp",
            required: true,
            found: seccomp.map(|()| "system calls are filtered".to_owned()).map_err(gap),
        },
        Line {
            layer: "cgroups",
            required: false,
            found: cgroups.map(|root| root.display().to_string()).map_err(|why| {
                let (what, fix) = why.split_once("; ").unwrap_or((&why, ""));
                (format!("{what}: the guard limits instead of the kernel"), fix.to_owned())
            }),
        },
    ]
}

fn print(lines: &[Line], format: Format, missing: bool) {
    match format {
        Format::Json | Format::Jsonl => {
            let list: Vec<_> = lines
                .iter()
                .map(|line| {
                    let (detail, fix) = match &line.found {
                        Ok(detail) => (detail, None),
                        Err((what, fix)) => (what, Some(fix)),
                    };
                    json!({
                        "layer": line.layer,
                        "holds": line.found.is_ok(),
                        "required": line.required,
                        "detail": detail,
                        "fix": fix,
                    })
                })
                .collect();
            output::json(&list);
        }
        Format::Name => {
            let held = lines.iter().filter(|line| line.found.is_ok());
            held.for_each(|line| output::line(line.layer));
        }
        Format::Table | Format::Wide => {
            let rows: Vec<Vec<String>> = lines
                .iter()
                .map(|line| match &line.found {
                    Ok(detail) => vec![line.layer.into(), "yes".into(), detail.clone()],
                    Err((what, _)) => vec![line.layer.into(), "no".into(), what.clone()],
                })
                .collect();
            output::line(&output::table(&["LAYER", "HERE", "DETAIL"], &rows, |_, _, cell| cell));
            for line in lines {
                if let Err((_, fix)) = &line.found {
                    output::line(&format!("\nTo get {}: {fix}", line.layer));
                }
            }
            output::line(match missing {
                true => "\nThe profile `standard` cannot be built here.",
                false => "\nThe profiles `standard` and `strict` can be built here.",
            });
        }
    }
}
