//! Reads `plugin.toml`.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use super::{
    Quota,
    permissions::read_permissions,
    remote::{REMOTE_CONCURRENCY, read_remote},
    sandbox::{Sandbox, read_request},
    settings::{read_limits, read_restart, read_timeouts},
    types::{
        Activation, GpuNeed, Limits, MEMORY_WITH_GPU, Manifest, Model, Queue, Requires,
        RestartPolicy, Run, Timeouts, valid_name,
    },
};
use crate::{
    capacity::limits,
    document::{Problem, Problems, Table, parse_toml},
};

/// Reads the text of `file` (in `directory`); all problems at once.
pub(super) fn read(directory: &Path, file: &Path, text: &str) -> Result<Manifest, Vec<Problem>> {
    let mut problems = Problems::new("plugin.toml", text);
    let document = parse_toml(text, &mut problems);
    if problems.fatal() {
        return Err(problems.into_list());
    }
    let manifest = read_root(Table::root(&document, &mut problems), directory, file);
    match manifest {
        Some(mut manifest) if !problems.fatal() => {
            manifest.warnings = problems.into_list();
            Ok(manifest)
        }
        _ => Err(problems.into_list()),
    }
}

fn read_root(root: Table<'_>, directory: &Path, file: &Path) -> Option<Manifest> {
    let name = read_name(&root);
    let requires = root.table("requires").map(read_requires).unwrap_or_default();
    let gpu = requires.gpu.is_some();
    let run = root.table("run").and_then(read_run);
    if !root.has("run") {
        root.error_with("run", "`[run]` is missing", "add [run] with binary = \"bin/…\"");
    }
    if matches!(&run, Some(RunTable { run: Run::Binary(_), .. })) && !requires.packages.is_empty() {
        let message = "`requires.packages` are Python import names; this plugin runs a binary";
        root.error_with("requires", message, "use requires.commands or requires.models");
    }
    let mut limits = Limits::default();
    if gpu {
        limits.memory = MEMORY_WITH_GPU;
        limits.data = None;
    }
    if let Some(table) = root.table("limits") {
        read_limits(table, &mut limits, gpu);
    }
    let mut timeouts = Timeouts::default();
    if let Some(table) = root.table("timeouts") {
        read_timeouts(table, &mut timeouts);
    }
    let remote = matches!(&run, Some(RunTable { run: Run::Remote(_), .. }));
    let mut restart = if remote { RestartPolicy::remote() } else { RestartPolicy::default() };
    if let Some(table) = root.table("restart") {
        read_restart(table, &mut restart);
    }
    let mut sandbox = Sandbox { gpu, ..Sandbox::default() };
    if let Some(table) = root.table("sandbox") {
        read_request(table, directory, &mut sandbox);
    }
    if sandbox.gpu && !sandbox.jit {
        let message = "`sandbox.jit = false` cannot be used with a GPU: CUDA compiles as it runs";
        root.error("sandbox", message);
    }
    let permissions = root.table("permissions").map(read_permissions).unwrap_or_default();
    root.not_built_yet("probe");
    let (version, description) = (root.text("version"), root.text("description"));
    let author = root.text("author");
    for key in ["license", "homepage"] {
        root.text(key);
    }
    root.finish();
    let run = run?;
    Some(Manifest {
        name: name?,
        version,
        description,
        author,
        directory: directory.to_owned(),
        file: file.to_owned(),
        run: run.run,
        args: run.args,
        env: run.env,
        activation: run.activation,
        concurrency: run.concurrency,
        queue: run.queue,
        requires,
        limits,
        timeouts,
        restart,
        sandbox,
        permissions,
        quota: Quota::default(),
        warnings: Vec::new(),
    })
}

fn read_name(root: &Table<'_>) -> Option<String> {
    let (id, name) = (root.text("id"), root.text("name"));
    let key = if id.is_some() { "id" } else { "name" };
    let Some(name) = id.or(name) else {
        if !root.has("name") {
            root.error_with("name", "`name` is missing", "add name = \"…\" at the top");
        }
        return None;
    };
    if !valid_name(&name) {
        root.error_with(
            key,
            format!("`{key}` {name:?} is not a valid plugin name"),
            "use a lower-case letter, then letters, digits, `-` and `_`, 63 at most",
        );
    }
    Some(name)
}

/// `[run]`, checked.
struct RunTable {
    run: Run,
    args: Vec<String>,
    env: BTreeMap<String, String>,
    activation: Activation,
    concurrency: u32,
    queue: Queue,
}

fn read_run(table: Table<'_>) -> Option<RunTable> {
    let run = read_what(&table);
    let args = table.texts("args").unwrap_or_default();
    if args.iter().any(|arg| arg.contains('\0')) {
        table.error("args", "`run.args` must not contain NUL");
    }
    let env = table.map("env").unwrap_or_default();
    for (key, value) in &env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            table.error("env", format!("`run.env` entry {key:?} is not a valid variable"));
        }
    }
    let activations = [("eager", Activation::Eager), ("on_demand", Activation::OnDemand)];
    let activation = table.choice("activation", &activations).unwrap_or(Activation::Eager);
    if let Some(instances) = table.integer("instances", 1..=1024)
        && instances > 1
    {
        let message = "`run.instances` above 1 is not supported by this release yet";
        table.error_with("instances", message, "use run.concurrency for calls in parallel");
    }
    let remote = matches!(run, Some(Run::Remote(_)));
    // Its process is ours, with the machine's network: nothing of the author runs in it.
    for key in ["args", "env"].into_iter().filter(|key| remote && table.has(key)) {
        table.error(key, format!("`run.{key}` cannot be used with [run.remote]"));
    }
    let usual = if remote { REMOTE_CONCURRENCY } else { 1 };
    let concurrency = table.integer("concurrency", 1..=4096).map_or(usual, |n| n as u32);
    let mut queue = Queue::default();
    if let Some(inner) = table.table("queue") {
        if let Some(size) = inner.integer("size", 0..=1_000_000) {
            queue.size = size as u32;
        }
        queue.timeout = inner.duration("timeout").unwrap_or(queue.timeout);
        inner.finish();
    }
    table.not_built_yet("idle_stop");
    table.not_built_yet("secrets");
    table.finish();
    Some(RunTable { run: run?, args, env, activation, concurrency, queue })
}

/// Exactly one of binary, python, library, remote.
fn read_what(table: &Table<'_>) -> Option<Run> {
    let present: Vec<&'static str> = ["binary", "python", "library", "remote"]
        .into_iter()
        .filter(|key| table.has(key))
        .collect();
    let binary = table.path("binary").filter(|path| inside(table, "binary", path));
    let library = table.path("library").filter(|path| inside(table, "library", path));
    let venv = table.path("venv").filter(|path| inside(table, "venv", path));
    let python = table.text("python").and_then(|target| python_target(table, target));
    let interpreter = table.path("interpreter");
    if interpreter.as_ref().is_some_and(|path| !path.is_absolute()) {
        let message = "`run.interpreter` must be an absolute path";
        table.error_with("interpreter", message, "use run.venv for one in the directory");
    }
    for key in ["venv", "interpreter"] {
        if table.has(key) && !present.contains(&"python") {
            table.error(key, format!("`run.{key}` belongs to `run.python`"));
        }
    }
    if venv.is_some() && interpreter.is_some() {
        let message = "`[run]` has both `venv` and `interpreter`";
        table.error_with("interpreter", message, "keep exactly one");
    }
    let remote = table.table("remote").and_then(read_remote).map(Box::new).map(Run::Remote);
    match present.as_slice() {
        [_] => {}
        [] => {
            table.error_with(
                "binary",
                "`[run]` says nothing to run",
                "add one of binary, python, library or [run.remote]",
            );
            return None;
        }
        [_, second, ..] => {
            let message = format!("`[run]` has both `{}` and `{second}`", present[0]);
            table.error_with(second, message, "keep exactly one");
            return None;
        }
    }
    binary
        .map(Run::Binary)
        .or(library.map(Run::Library))
        .or(python.map(|target| Run::Python { target, venv, interpreter }))
        .or(remote)
}

/// `module:Class`; the class is `Plugin` when only the module is named.
fn python_target(table: &Table<'_>, target: String) -> Option<String> {
    let target = if target.contains(':') { target } else { format!("{target}:Plugin") };
    let name = |part: &str| {
        part.starts_with(|c: char| c.is_alphabetic() || c == '_')
            && part.chars().all(|c| c.is_alphanumeric() || c == '_')
    };
    let valid = target
        .split_once(':')
        .is_some_and(|(module, class)| module.split('.').all(name) && class.split('.').all(name));
    if !valid {
        let message = format!("`run.python` {target:?} is not like \"package.module:Class\"");
        table.error_with("python", message, "write the module as in an import statement");
    }
    valid.then_some(target)
}

/// A relative path that does not climb out of the directory.
fn inside(table: &Table<'_>, key: &'static str, path: &Path) -> bool {
    let climbs =
        path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir));
    if climbs || path.as_os_str().is_empty() {
        let message = format!("`run.{key}` {path:?} leaves the plugin's directory");
        table.error_with(key, message, "use a relative path without `..`");
    }
    !climbs
}

/// A list of `[requires]`, no longer than it may be.
fn required(table: &Table<'_>, key: &'static str) -> Vec<String> {
    let list = table.texts(key).unwrap_or_default();
    if list.len() > limits::REQUIRED {
        let (many, most) = (list.len(), limits::REQUIRED);
        table.error(key, format!("`requires.{key}` has {many} entries; {most} are allowed"));
    }
    list
}

fn read_requires(table: Table<'_>) -> Requires {
    let plugins = required(&table, "plugins");
    for name in plugins.iter().filter(|name| !valid_name(name)) {
        table.error("plugins", format!("`requires.plugins` entry {name:?} is no plugin's name"));
    }
    let requires = Requires {
        plugins,
        packages: required(&table, "packages"),
        commands: required(&table, "commands"),
        models: read_models(&table),
        gpu: read_gpu(&table),
    };
    if requires.models.len() > limits::REQUIRED {
        let (many, most) = (requires.models.len(), limits::REQUIRED);
        table.error("models", format!("`requires.models` has {many} entries; {most} are allowed"));
    }
    table.finish();
    requires
}

fn read_models(requires: &Table<'_>) -> Vec<Model> {
    let Some(table) = requires.table("models") else { return Vec::new() };
    // A model is a path, or a table of a path and its digest.
    let tables = table.keys().into_iter().filter_map(|(name, offset)| {
        let value = table.value_of(&name)?;
        if let Some(path) = value.as_str() {
            return Some(Model { name, path: PathBuf::from(path), sha256: None });
        }
        let Some(inner) = table.table_of(&name) else {
            table.error_at(
                offset,
                format!("`requires.models.{name}` must be a path, or a table with path and sha256"),
            );
            return None;
        };
        let path = inner.path("path");
        if !inner.has("path") {
            inner.error("path", format!("`requires.models.{name}.path` is missing"));
        }
        let sha256 = inner.text("sha256").map(|digest| digest.to_ascii_lowercase());
        if sha256.as_ref().is_some_and(|digest| {
            digest.len() != 64 || !digest.bytes().all(|b| b.is_ascii_hexdigit())
        }) {
            inner.error("sha256", "a sha256 digest has 64 hexadecimal digits");
        }
        inner.finish();
        Some(Model { name, path: path?, sha256 })
    });
    tables.collect()
}

fn read_gpu(requires: &Table<'_>) -> Option<GpuNeed> {
    let any = GpuNeed { count: 1, memory: 0, capability: None };
    if let Some(wanted) = requires.boolean_if("gpu") {
        return wanted.then_some(any);
    }
    let table = requires.table("gpu")?;
    let count = table.integer("count", 1..=64).unwrap_or(1) as u32;
    let memory = table.bytes("memory").unwrap_or(0);
    let capability = table.text("capability").and_then(|text| {
        let parsed = text.split_once('.').unwrap_or((&text, "0"));
        let parsed = parsed.0.parse().ok().zip(parsed.1.parse().ok());
        if parsed.is_none() {
            let message = format!("`requires.gpu.capability` {text:?} is not like \"8.0\"");
            table.error("capability", message);
        }
        parsed
    });
    table.finish();
    Some(GpuNeed { count, memory, capability })
}
