//! `stockade trace`

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use serde_json::json;
use stockade::{
    Config, Supervisor, ToolCall,
    config::Source,
    machine::{Observed, Tracer, plain},
    manifest,
    plugin::Attachment,
    preflight::{Access, Place as Visible},
};

use super::{
    Place,
    arguments::Given,
    failure::Failure,
    output::{self, Format},
};

/// Run a plugin unconfined and print the grants that it would need
#[derive(Args)]
#[command(
    after_help = "The plugin runs apart from the daemon, with a data directory of its own and WITHOUT\na sandbox, so trace only what you trust that far. What it does only in a certain\ncall is seen only when that call is made: --tool.\n\nExamples:\n  stockade trace ./plugins/ocr\n  stockade trace ocr --tool read --file image=page.png\n  stockade trace ocr --for 30s -o json"
)]
pub(super) struct Trace {
    /// A plugin's directory, or its name in the configured folders
    plugin: String,
    /// Also call this tool
    #[arg(long, value_name = "TOOL")]
    tool: Option<String>,
    #[command(flatten)]
    given: Given,
    /// Look on for this long after its start and its call
    #[arg(long = "for", value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How to print
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

/// A plugin that is still loading then is looked at as far as it came.
const START: Duration = Duration::from_secs(120);

pub(super) fn run(trace: &Trace, place: &Place) -> Result<(), Failure> {
    let source = Source { file: place.config.clone(), flags: place.flags() };
    let config = source.load().map_err(|problems| Failure::problems(&problems))?;
    let (name, directory) = find(&trace.plugin, &config)?;
    let scratch = tempfile::tempdir()
        .map_err(|error| Failure::failed(format!("no temporary folder: {error}")))?;
    let plugins = scratch.path().join("plugins");
    let linked = std::fs::create_dir(&plugins)
        .and_then(|()| std::os::unix::fs::symlink(&directory, plugins.join(&name)));
    linked.map_err(|error| Failure::failed(format!("no temporary folder: {error}")))?;
    let config = Config {
        plugin_dirs: vec![plugins],
        socket: scratch.path().join("none.sock"),
        state_dir: scratch.path().join("state"),
        watch: false,
        entry_points: false,
        ..config
    };
    eprintln!("Plugin {name} runs without a sandbox while it is traced.");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::failed(format!("cannot start: {error}")))?;
    let (needs, ended) = runtime.block_on(watch(trace, &name, config))?;
    runtime.shutdown_background();
    print(&name, &needs, trace.output);
    ended
}

/// By its directory, or by its name.
fn find(plugin: &str, config: &Config) -> Result<(String, PathBuf), Failure> {
    let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let path = absolute(Path::new(plugin));
    if let Some(found) = path.is_dir().then(|| manifest::load(&path)).flatten() {
        return Ok((found.name, path));
    }
    let (found, _) = manifest::scan(&config.plugin_dirs);
    match found.into_iter().find(|found| found.name == plugin) {
        Some(found) => Ok((found.name, absolute(&found.directory))),
        None => Err(Failure::unknown(format!(
            "{plugin} is neither a plugin's directory nor a plugin of {}",
            config
                .plugin_dirs
                .iter()
                .map(|dir| dir.display().to_string())
                .collect::<Vec<_>>()
                .join(", ")
        ))),
    }
}

/// Starts it, makes the call, waits; then what it needed, and how it went.
async fn watch(
    trace: &Trace,
    name: &str,
    config: Config,
) -> Result<(Needs, Result<(), Failure>), Failure> {
    let tracer = Tracer::default();
    let supervisor = Supervisor::start_traced(config, tracer.clone())
        .await
        .map_err(|error| Failure::failed(error.to_string()))?;
    let mut ended =
        supervisor.ready(name, START).await.map_err(|error| Failure::failed(error.to_string()));
    if let (Ok(()), Some(tool)) = (&ended, &trace.tool) {
        let attachments = trace.given.files()?.into_iter().map(|file| Attachment {
            name: file.name,
            content_type: file.content_type,
            data: file.data,
        });
        let call = ToolCall {
            plugin: name.into(),
            tool: tool.as_str().into(),
            args: trace.given.text()?.into(),
            attachments: attachments.collect(),
            loose: trace.given.loose(),
            ..ToolCall::default()
        };
        let outcome = supervisor.calls().run(call).await;
        ended = match outcome.result {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::failed(format!("{tool}: {error}"))),
        };
    }
    tokio::select! {
        () = tokio::time::sleep(trace.duration) => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    let places = supervisor.plugin(name).and_then(|handle| handle.snapshot().plan.clone());
    let places = places.map(|plan| plan.confinement.places.clone()).unwrap_or_default();
    supervisor.shutdown().await;
    Ok((Needs::of(&tracer.observed(), &places), ended))
}

/// Grants, and what none would give.
#[derive(Debug, Default)]
struct Needs {
    read: BTreeSet<PathBuf>,
    write: BTreeSet<PathBuf>,
    net: Option<&'static str>,
    gpu: bool,
    never: BTreeSet<PathBuf>,
    refused: BTreeMap<String, u64>,
    calls: u64,
}

/// Every sandbox has its own.
const OWN: [&str; 11] = [
    "/proc",
    "/tmp",
    "/dev/shm",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/fd",
    "/dev/stdout",
    "/dev/stderr",
];

impl Needs {
    fn of(observed: &Observed, places: &[Visible]) -> Self {
        let mut needs =
            Needs { refused: observed.refused.clone(), calls: observed.calls, ..Needs::default() };
        needs.net = match (observed.internet, observed.loopback) {
            (true, _) => Some("true"),
            (_, true) => Some("\"loopback\""),
            _ => None,
        };
        for (path, write) in &observed.files {
            needs.file(path, *write, places);
        }
        needs.read = folders(needs.read);
        needs.write = folders(needs.write);
        let write = needs.write.clone();
        needs.read.retain(|path| !write.iter().any(|outer| path.starts_with(outer)));
        needs
    }

    fn file(&mut self, path: &Path, write: bool, places: &[Visible]) {
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| plain(path));
        // What is looked for and not there needs no grant.
        if !path.exists() {
            return;
        }
        let under = |outer: &str| path.starts_with(outer);
        let place = places.iter().rev().find(|place| path.starts_with(&place.path));
        let covered = place.is_some_and(|place| !write || place.access != Access::Read);
        if covered || OWN.into_iter().any(under) || path == Path::new("/") {
        } else if under("/dev/nvidia") || under("/dev/nvidiactl") {
            self.gpu = true;
        } else if ["/dev", "/sys"].into_iter().any(under) {
            self.never.insert(path);
        } else if write {
            self.write.insert(path);
        } else {
            self.read.insert(path);
        }
    }
}

/// Two files of a folder are the folder; what lies in another grant is none.
fn folders(paths: BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let mut by_folder: BTreeMap<PathBuf, Vec<PathBuf>> = BTreeMap::new();
    for path in paths {
        let folder = path.parent().unwrap_or(&path).to_owned();
        by_folder.entry(folder).or_default().push(path);
    }
    let mut short = BTreeSet::new();
    for (folder, paths) in by_folder {
        match paths.len() {
            1 => short.extend(paths),
            _ if folder == Path::new("/") => short.extend(paths),
            _ => drop(short.insert(folder)),
        }
    }
    let all = short.clone();
    short.retain(|path| !all.iter().any(|outer| outer != path && path.starts_with(outer)));
    short
}

fn print(name: &str, needs: &Needs, format: Format) {
    if matches!(format, Format::Json | Format::Jsonl) {
        return output::json(&json!({
            "plugin": name,
            "calls": needs.calls,
            "fs": { "read": needs.read, "write": needs.write },
            "net": match needs.net { Some("true") => json!(true), Some(_) => json!("loopback"), None => json!(false) },
            "gpu": needs.gpu,
            "never_granted": needs.never,
            "refused": needs.refused,
        }));
    }
    let mut lines = Vec::new();
    let list = |paths: &BTreeSet<PathBuf>| {
        let paths: Vec<String> =
            paths.iter().map(|path| format!("{:?}", path.display().to_string())).collect();
        format!("[{}]", paths.join(", "))
    };
    let mut fs = Vec::new();
    for (kind, paths) in [("read", &needs.read), ("write", &needs.write)] {
        if !paths.is_empty() {
            fs.push(format!("{kind} = {}", list(paths)));
        }
    }
    if !fs.is_empty() {
        lines.push(format!("fs = {{ {} }}", fs.join(", ")));
    }
    lines.extend(needs.net.map(|net| format!("net = {net}")));
    lines.extend(needs.gpu.then(|| "gpu = true".to_owned()));
    output::line(&format!("# {name}: {} calls looked at", needs.calls));
    if lines.is_empty() {
        output::line("# it needs no grant: the profile `standard` is enough");
    } else {
        output::line("[sandbox]");
        lines.iter().for_each(|line| output::line(line));
    }
    for path in &needs.never {
        output::line(&format!("# no grant gives {}", path.display()));
    }
    for (call, times) in &needs.refused {
        output::line(&format!("# the sandbox refuses {call} ({times} ×)"));
    }
}
