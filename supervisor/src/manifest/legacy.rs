//! Reads `manifest.json`: the seed form, the form that shipped plugins have,
//! and the remote form. Unknown keys are kept out of the way, not refused.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::types::{
    Activation, GpuNeed, Limits, MEMORY_WITH_GPU, Manifest, Model, Queue, Requires, RestartPolicy,
    Run, Timeouts, valid_name,
};
use super::{
    Permissions, Protocol, Quota, Remote, Sandbox,
    remote::{Offers, REMOTE_CONCURRENCY, TIMEOUT, wrong_endpoint},
};
use crate::{
    capacity::limits,
    document::{Problem, Problems, key_position},
};

/// Reads the text of `file` (in `directory`); all problems at once.
pub(super) fn read(directory: &Path, file: &Path, text: &str) -> Result<Manifest, Vec<Problem>> {
    let mut problems = Problems::new("manifest.json", text);
    let object = match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(object)) => object,
        Ok(_) => {
            problems.error(Some(0), "the manifest must be a JSON object");
            return Err(problems.into_list());
        }
        Err(error) => {
            let offset = offset_of(text, error.line(), error.column());
            let message = error.to_string();
            let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
            problems.error(Some(offset), message);
            return Err(problems.into_list());
        }
    };
    let mut reader = Reader { object: &object, problems };
    let manifest = reader.read(directory, file);
    match manifest {
        Some(mut manifest) if !reader.problems.fatal() => {
            manifest.warnings = reader.problems.into_list();
            Ok(manifest)
        }
        _ => Err(reader.problems.into_list()),
    }
}

fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    before + column.saturating_sub(1)
}

struct Reader<'m> {
    object: &'m Map<String, Value>,
    problems: Problems,
}

impl Reader<'_> {
    fn wrong(&mut self, key: &str, expected: &str) {
        let offset = key_position(self.problems.text(), key);
        self.problems.error(offset, format!("`{key}` must be {expected}"));
    }

    fn text(&mut self, key: &str) -> Option<String> {
        match self.object.get(key) {
            None | Some(Value::Null) => None,
            Some(Value::String(text)) => Some(text.clone()),
            Some(_) => {
                self.wrong(key, "text");
                None
            }
        }
    }

    fn texts(&mut self, key: &str) -> Vec<String> {
        let items = match self.object.get(key) {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Array(items)) => items,
            Some(_) => {
                self.wrong(key, "a list of texts");
                return Vec::new();
            }
        };
        let texts: Option<Vec<_>> =
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
        texts.unwrap_or_else(|| {
            self.wrong(key, "a list of texts");
            Vec::new()
        })
    }

    fn read(&mut self, directory: &Path, file: &Path) -> Option<Manifest> {
        let name = self.name(directory)?;
        let version = self.text("version");
        let description = self.text("description");
        let author = self.object.get("author").and_then(Value::as_str).map(str::to_owned);
        let run = self.run();
        let gpu = match self.object.get("requires_gpu") {
            None | Some(Value::Null | Value::Bool(false)) => None,
            Some(Value::Bool(true)) => Some(GpuNeed { count: 1, memory: 0, capability: None }),
            Some(_) => {
                self.wrong("requires_gpu", "true or false");
                None
            }
        };
        let limits = match gpu {
            Some(_) => Limits { memory: MEMORY_WITH_GPU, data: None, ..Limits::default() },
            None => Limits::default(),
        };
        let packages = self.texts("dependencies");
        if packages.len() > limits::REQUIRED {
            self.wrong("dependencies", &format!("a list of at most {} texts", limits::REQUIRED));
        }
        let requires = Requires {
            packages,
            commands: Vec::new(),
            models: self.models(),
            gpu,
            plugins: Vec::new(),
        };
        if !matches!(run, Run::Remote(_)) {
            self.tools();
        }
        let permissions = Permissions::of_request(self.texts("permissions"));
        for warning in permissions.warnings() {
            self.problems.warn(key_position(self.problems.text(), "permissions"), warning);
        }
        let remote = matches!(run, Run::Remote(_));
        Some(Manifest {
            name,
            version,
            description,
            author,
            directory: directory.to_owned(),
            file: file.to_owned(),
            run,
            args: Vec::new(),
            env: Default::default(),
            activation: Activation::Eager,
            concurrency: if remote { REMOTE_CONCURRENCY } else { 1 },
            queue: Queue::default(),
            sandbox: Sandbox { gpu: requires.gpu.is_some(), ..Sandbox::default() },
            requires,
            limits,
            timeouts: Timeouts::default(),
            restart: if remote { RestartPolicy::remote() } else { RestartPolicy::default() },
            permissions,
            quota: Quota::default(),
            warnings: Vec::new(),
        })
    }

    /// `id`, else `name`, else the directory; normalised with a warning.
    fn name(&mut self, directory: &Path) -> Option<String> {
        let (id, name) = (self.text("id"), self.text("name"));
        let key = if id.is_some() { "id" } else { "name" };
        let written = id
            .or(name)
            .or_else(|| directory.file_name().map(|name| name.to_string_lossy().into_owned()))?;
        let normal: String = written
            .trim()
            .chars()
            .map(|c| if c.is_whitespace() { '-' } else { c.to_ascii_lowercase() })
            .collect();
        let offset = key_position(self.problems.text(), key);
        if !valid_name(&normal) {
            self.problems.error_with(
                offset,
                format!("`{key}` {written:?} is not a valid plugin name"),
                "use a lower-case letter, then letters, digits, `-` and `_`, 63 at most",
            );
            return None;
        }
        if normal != written {
            self.problems
                .warn(offset, format!("the plugin is called \"{normal}\" (from {written:?})"));
        }
        Some(normal)
    }

    fn run(&mut self) -> Run {
        if self.object.get("kind").and_then(Value::as_str) == Some("remote_feature") {
            return Run::Remote(Box::new(self.remote()));
        }
        let module = self.text("entrypoint").unwrap_or_else(|| "plugin".to_owned());
        let target = if module.contains(':') { module } else { format!("{module}:Plugin") };
        Run::Python { target, venv: None, interpreter: None }
    }

    /// Seed 004's remote form.
    fn remote(&mut self) -> Remote {
        let endpoint = self.text("endpoint").unwrap_or_default();
        let word = self.text("protocol").unwrap_or_else(|| "http".to_owned());
        let protocol = Protocol::NAMES.iter().find(|(name, _)| *name == word);
        let Some((_, protocol)) = protocol.copied() else {
            self.wrong("protocol", "one of \"http\", \"websocket\", \"grpc\"");
            return Remote::new(endpoint, Protocol::Http, TIMEOUT);
        };
        if endpoint.is_empty() {
            self.problems.error(None, "`endpoint` is missing (kind is \"remote_feature\")");
        } else if let Some(why) = wrong_endpoint(&endpoint, protocol) {
            let offset = key_position(self.problems.text(), "endpoint");
            self.problems.error(offset, format!("`endpoint` {why}"));
        }
        let timeout = match self.object.get("timeout_ms").map(Value::as_u64) {
            None => TIMEOUT,
            Some(Some(ms)) if ms > 0 => std::time::Duration::from_millis(ms),
            Some(_) => {
                self.wrong("timeout_ms", "a whole number above 0");
                TIMEOUT
            }
        };
        let offers = Offers {
            tools: self.texts("tools"),
            conditions: self.texts("conditions"),
            effects: self.texts("effects"),
            simulation_configs: self.texts("simulation_configs"),
            events: self.texts("events"),
        };
        Remote { offers, ..Remote::new(endpoint, protocol, timeout) }
    }

    fn models(&mut self) -> Vec<Model> {
        let models = match self.object.get("models") {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::Object(models)) => models,
            Some(_) => {
                self.wrong("models", "an object of name and path");
                return Vec::new();
            }
        };
        let mut list = Vec::new();
        for (name, path) in models {
            match path.as_str() {
                Some(path) => {
                    let path = PathBuf::from(path);
                    list.push(Model { name: name.clone(), path, sha256: None });
                }
                None => self.wrong(name, "a path (text)"),
            }
        }
        list
    }

    /// The tools of the shipped form are checked; the plugin itself is asked
    /// for them when it runs.
    fn tools(&mut self) {
        match self.object.get("tools") {
            None | Some(Value::Null | Value::Object(_)) => {}
            Some(Value::Array(tools)) => {
                let named = |tool: &Value| {
                    ["id", "name"].iter().any(|key| tool.get(key).is_some_and(Value::is_string))
                };
                if !tools.iter().all(named) {
                    self.wrong("tools", "a list of objects, each with an `id`");
                }
            }
            Some(_) => self.wrong("tools", "a list of tools, or an object keyed by their ids"),
        }
    }
}
