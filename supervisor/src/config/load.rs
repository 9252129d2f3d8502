//! Reads the file and its drop-ins, the environment and the flags.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use tracing_subscriber::EnvFilter;

use super::{
    Config, Layer, Overlay, Setting, Token, files, paths,
    raw::{Raw, absolute, raw},
    tables, tokens,
};
use crate::{
    capacity::{Budget, limits},
    document::{
        Bytes, Problem, Problems, Severity, Table, parse_bytes, parse_duration, parse_toml,
    },
    manifest::{Ceilings, PermissionLists, Quota, RemoteRules, Restrictions, read_quota},
};

/// The environment variable of a key.
const ENV_PREFIX: &str = "STOCKADE_";

/// Where a configuration is read from; kept, so that it can be read again.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// A file that must exist; None = the default one, which may be absent.
    pub file: Option<PathBuf>,
    /// `(key, value)` pairs as typed.
    pub flags: Vec<(&'static str, String)>,
}

impl Source {
    /// Reads files, environment and flags.
    ///
    /// # Errors
    /// Every problem of all of them.
    pub fn load(&self) -> Result<Config, Vec<Problem>> {
        load(self, |name| std::env::var(name).ok())
    }
}

fn load(source: &Source, env: impl Fn(&str) -> Option<String>) -> Result<Config, Vec<Problem>> {
    let (file, flags) = (source.file.as_deref(), &source.flags);
    let default_file = paths::default_config_file();
    let path = file.unwrap_or(&default_file);
    let mut loader = Loader {
        values: BTreeMap::new(),
        problems: Vec::new(),
        overlays: BTreeMap::new(),
        tokens: Vec::new(),
        sandbox: Restrictions::default(),
        permissions: PermissionLists::default(),
        ceilings: Ceilings::default(),
        quota: Quota::default(),
        remote: RemoteRules::default(),
        tables: BTreeMap::new(),
    };
    let mut files = Vec::new();
    for path in files::with_drop_ins(path) {
        match files::read_text(&path) {
            Ok(text) => {
                loader.file(&path, &text);
                files.push(path);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_none() => {}
            Err(error) => {
                loader.problem(path.display().to_string(), format!("cannot be read: {error}"))
            }
        }
    }
    for key in KEYS {
        let name = format!("{ENV_PREFIX}{}", key.to_uppercase());
        if let Some(value) = env(&name) {
            loader.values.insert(key, (Raw::Text(value), Layer::Env(name)));
        }
    }
    let mut folders = Vec::new();
    for (key, value) in flags {
        if *key == "plugins" {
            folders.push(value.clone());
        } else {
            let layer = Layer::Flag(key.replace('_', "-"));
            loader.values.insert(key, (Raw::Text(value.clone()), layer));
        }
    }
    if !folders.is_empty() {
        loader.values.insert("plugins", (Raw::List(folders), Layer::Flag("plugins".into())));
    }
    let tables = std::mem::take(&mut loader.tables);
    let mut config = loader.finish(files)?;
    config.settings.extend(tables.into_values());
    config.source = Some(source.clone());
    Ok(config)
}

/// Every key of stockade.toml but `plugin`.
const KEYS: [&str; 31] = [
    "plugins",
    "state_dir",
    "listen",
    "socket",
    "worker",
    "allowed_hosts",
    "dev",
    "log",
    "log_json",
    "max_starting",
    "shutdown_timeout",
    "max_request",
    "max_buffered",
    "python",
    "python_host",
    "library_host",
    "remote_host",
    "provenance_records",
    "entry_points",
    "tls_cert",
    "tls_key",
    "tls_client_ca",
    "max_result",
    "max_connections",
    "log_lines",
    "crash_records",
    "watch",
    "nvml",
    "allow_unsandboxed",
    "allow_degraded",
    "plugin_uids",
];

struct Loader {
    values: BTreeMap<&'static str, (Raw, Layer)>,
    problems: Vec<Problem>,
    overlays: BTreeMap<String, Overlay>,
    tokens: Vec<Token>,
    sandbox: Restrictions,
    permissions: PermissionLists,
    ceilings: Ceilings,
    quota: Quota,
    remote: RemoteRules,
    /// What the files' tables say, as it is shown.
    tables: BTreeMap<Cow<'static, str>, Setting>,
}

impl Loader {
    fn problem(&mut self, file: String, message: String) {
        self.problems.push(Problem {
            severity: Severity::Error,
            file,
            line: 0,
            column: 0,
            message,
            suggestion: None,
        });
    }

    fn file(&mut self, path: &Path, text: &str) {
        let mut problems = Problems::new(path.display().to_string(), text);
        let document = parse_toml(text, &mut problems);
        if !problems.fatal() {
            let root = Table::root(&document, &mut problems);
            for key in KEYS {
                if let Some(raw) = raw(&root, key) {
                    self.values.insert(key, (raw, Layer::File(path.to_owned())));
                }
            }
            if let Some(plugins) = root.table("plugin") {
                for (name, table) in plugins.tables() {
                    let overlay = self.overlays.entry(name).or_default();
                    overlay.add(table, path.display().to_string(), text);
                }
            }
            if let Some(table) = root.table("sandbox") {
                self.sandbox = Restrictions::of_operator(table);
            }
            if let Some(table) = root.table("permissions") {
                self.permissions.add(PermissionLists::of_operator(table));
            }
            if let Some(table) = root.table("limits") {
                self.ceilings.add(table);
            }
            if let Some(table) = root.table("quota") {
                read_quota(table, &mut self.quota);
            }
            if let Some(table) = root.table("remote") {
                self.remote.add(RemoteRules::of_operator(table));
            }
            if let Some(tokens) = root.table("tokens") {
                for (name, table) in tokens.tables() {
                    let token = tokens::read(&name, table);
                    // A later file's word is the last.
                    self.tokens.retain(|known| known.name != name);
                    self.tokens.extend(token);
                }
            }
            root.finish();
            let tables = tables::settings(path, text).into_iter();
            self.tables.extend(tables.map(|setting| (setting.key.clone(), setting)));
        }
        self.problems.extend(problems.into_list());
    }

    fn take<T>(
        &mut self,
        settings: &mut Vec<Setting>,
        key: &'static str,
        expected: &str,
        default: T,
        show: impl Fn(&T) -> String,
        read: impl Fn(&Raw) -> Option<T>,
    ) -> T {
        let (value, layer) = match self.values.get(key).cloned() {
            None => (default, Layer::Default),
            Some((raw, layer)) => match read(&raw) {
                Some(value) => (value, layer),
                None => {
                    let message = format!("`{key}` must be {expected}, not \"{raw}\"");
                    self.problem(layer.to_string(), message);
                    (default, layer)
                }
            },
        };
        settings.push(Setting { key: key.into(), value: show(&value), layer });
        value
    }

    fn optional_path(&mut self, settings: &mut Vec<Setting>, key: &'static str) -> Option<PathBuf> {
        self.take(
            settings,
            key,
            "a path",
            None,
            |path: &Option<PathBuf>| {
                path.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
            },
            |raw| match raw {
                Raw::Text(text) => Some((!text.is_empty()).then(|| absolute(text))),
                Raw::List(_) => None,
            },
        )
    }

    fn finish(mut self, files: Vec<PathBuf>) -> Result<Config, Vec<Problem>> {
        let text = |raw: &Raw| match raw {
            Raw::Text(text) => Some(text.clone()),
            Raw::List(_) => None,
        };
        let path = |raw: &Raw| text(raw).filter(|t| !t.is_empty()).map(|t| absolute(&t));
        let boolean = |raw: &Raw| match text(raw)?.as_str() {
            "true" | "1" | "yes" => Some(true),
            "false" | "0" | "no" | "" => Some(false),
            _ => None,
        };
        let number = |raw: &Raw| text(raw)?.parse::<usize>().ok().filter(|n| *n > 0);
        let size = |raw: &Raw| parse_bytes(&text(raw)?).map(|n| n as usize).filter(|n| *n >= 1024);
        let payload = |raw: &Raw| size(raw).filter(|bytes| *bytes <= limits::PAYLOAD);
        let list = |raw: &Raw| match raw {
            Raw::List(items) => Some(items.clone()),
            Raw::Text(text) => {
                Some(text.split(':').filter(|t| !t.is_empty()).map(str::to_owned).collect())
            }
        };
        let show_path = |path: &PathBuf| path.display().to_string();
        let show_size = |size: &usize| Bytes(*size as u64).to_string();
        let show_paths = |paths: &Vec<PathBuf>| {
            paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
        };
        let mut s = Vec::new();
        let config = Config {
            plugin_dirs: self.take(
                &mut s,
                "plugins",
                "a list of folders",
                paths::default_plugin_dirs(),
                show_paths,
                |raw| Some(list(raw)?.iter().map(|path| absolute(path)).collect()),
            ),
            state_dir: self.take(
                &mut s,
                "state_dir",
                "a folder",
                paths::default_state_dir(),
                show_path,
                path,
            ),
            listen: self.take(
                &mut s,
                "listen",
                "ADDRESS:PORT, or \"none\"",
                Some(SocketAddr::from(([127, 0, 0, 1], 7077))),
                |listen| listen.map_or_else(|| "none".into(), |address| address.to_string()),
                |raw| match text(raw)?.as_str() {
                    "none" | "" => Some(None),
                    address => address.replace("localhost", "127.0.0.1").parse().ok().map(Some),
                },
            ),
            socket: self.take(&mut s, "socket", "a path", paths::default_socket(), show_path, path),
            worker: self.take(&mut s, "worker", "a path", paths::default_worker(), show_path, path),
            allowed_hosts: self.take(
                &mut s,
                "allowed_hosts",
                "a list of host names",
                Vec::new(),
                |hosts: &Vec<String>| hosts.join(":"),
                list,
            ),
            dev: self.take(&mut s, "dev", "true or false", false, bool::to_string, boolean),
            log: self.take(
                &mut s,
                "log",
                "a log filter such as \"debug\" or \"stockade=debug,error\"",
                "info".into(),
                String::clone,
                |raw| text(raw).filter(|filter| is_filter(filter)),
            ),
            log_json: self.take(
                &mut s,
                "log_json",
                "true or false",
                false,
                bool::to_string,
                boolean,
            ),
            max_starting: self.take(
                &mut s,
                "max_starting",
                "a number of 1 or more",
                4,
                usize::to_string,
                number,
            ),
            shutdown_timeout: self.take(
                &mut s,
                "shutdown_timeout",
                "a duration such as \"30s\"",
                std::time::Duration::from_secs(30),
                |duration| humantime::format_duration(*duration).to_string(),
                |raw| parse_duration(&text(raw)?),
            ),
            max_request: self.take(
                &mut s,
                "max_request",
                "a size of 1 byte to 255MiB such as \"64MiB\"",
                limits::MAX_REQUEST,
                show_size,
                payload,
            ),
            max_result: self.take(
                &mut s,
                "max_result",
                "a size of 1 byte to 255MiB such as \"64MiB\"",
                limits::MAX_RESULT,
                show_size,
                payload,
            ),
            max_buffered: self.take(
                &mut s,
                "max_buffered",
                "a size of 16MiB or more such as \"1GiB\"",
                Budget::usual(),
                show_size,
                |raw| size(raw).filter(|bytes| *bytes >= 16 << 20),
            ),
            max_connections: self.take(
                &mut s,
                "max_connections",
                "a number of 1 or more",
                limits::CONNECTIONS,
                usize::to_string,
                number,
            ),
            log_lines: self.take(
                &mut s,
                "log_lines",
                "a number of 1 or more",
                1000,
                usize::to_string,
                number,
            ),
            crash_records: self.take(
                &mut s,
                "crash_records",
                "a number of 1 or more",
                50,
                usize::to_string,
                number,
            ),
            watch: self.take(&mut s, "watch", "true or false", true, bool::to_string, boolean),
            nvml: self.optional_path(&mut s, "nvml"),
            tls_cert: self.optional_path(&mut s, "tls_cert"),
            tls_key: self.optional_path(&mut s, "tls_key"),
            tls_client_ca: self.optional_path(&mut s, "tls_client_ca"),
            python: self.take(&mut s, "python", "a path", paths::default_python(), show_path, path),
            python_host: self.take(
                &mut s,
                "python_host",
                "a folder",
                paths::default_python_host(),
                show_path,
                path,
            ),
            library_host: self.take(
                &mut s,
                "library_host",
                "a path",
                paths::default_library_host(),
                show_path,
                path,
            ),
            remote_host: self.take(
                &mut s,
                "remote_host",
                "a path",
                paths::default_remote_host(),
                show_path,
                path,
            ),
            provenance_records: self.take(
                &mut s,
                "provenance_records",
                "a number of 1 or more",
                10_000,
                usize::to_string,
                number,
            ),
            entry_points: self.take(
                &mut s,
                "entry_points",
                "true or false",
                true,
                bool::to_string,
                boolean,
            ),
            allow_unsandboxed: self.take(
                &mut s,
                "allow_unsandboxed",
                "true or false",
                false,
                bool::to_string,
                boolean,
            ),
            allow_degraded: self.take(
                &mut s,
                "allow_degraded",
                "true or false",
                false,
                bool::to_string,
                boolean,
            ),
            plugin_uids: self.take(
                &mut s,
                "plugin_uids",
                "a range of user ids such as \"70000-79999\"",
                70_000..=79_999,
                |uids| format!("{}-{}", uids.start(), uids.end()),
                |raw| {
                    let text = text(raw)?;
                    let (first, last) = text.split_once('-')?;
                    let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                    (0 < first && first <= last).then_some(first..=last)
                },
            ),
            sandbox: std::mem::take(&mut self.sandbox),
            permissions: std::mem::take(&mut self.permissions),
            ceilings: self.ceilings,
            quota: self.quota,
            remote: std::mem::take(&mut self.remote),
            tokens: std::mem::take(&mut self.tokens),
            plugins: std::mem::take(&mut self.overlays),
            settings: s,
            files,
            source: None,
        };
        for (key, message) in tokens::problems(&config) {
            self.problem(key.to_owned(), message);
        }
        if self.problems.iter().any(|problem| problem.severity == Severity::Error) {
            return Err(self.problems);
        }
        Ok(config)
    }
}

/// Levels, and `TARGET=LEVEL`: a word alone would be a target, and silence all others.
fn is_filter(text: &str) -> bool {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let is_known = |one: &str| one.contains('=') || levels.contains(&one.to_lowercase().as_str());
    text.split(',').all(|one| is_known(one.trim())) && EnvFilter::try_new(text).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn flag_beats_env_beats_file_beats_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stockade.toml");
        fs::write(&file, "listen = \"127.0.0.1:1\"\nlog = \"warn\"\nmax_starting = 2\n").unwrap();
        let flags = vec![("listen", "127.0.0.1:3".to_owned())];
        let env = |name: &str| match name {
            "STOCKADE_LISTEN" => Some("127.0.0.1:2".to_owned()),
            "STOCKADE_LOG" => Some("debug".to_owned()),
            _ => None,
        };
        let config = load(&Source { file: Some(file.clone()), flags }, env).unwrap();
        let layer = |key: &str| {
            config.settings.iter().find(|s| s.key == key).map(|s| s.layer.to_string()).unwrap()
        };
        assert_eq!(config.listen.unwrap().port(), 3);
        assert_eq!(layer("listen"), "flag --listen");
        assert_eq!((config.log.as_str(), layer("log")), ("debug", "env STOCKADE_LOG".into()));
        assert_eq!(config.max_starting, 2);
        assert_eq!(layer("max_starting"), format!("file {}", file.display()));
        assert_eq!(layer("max_result"), "default");
        assert_eq!(config.settings.len(), KEYS.len());
    }

    #[test]
    fn all_problems_of_all_layers_are_reported() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stockade.toml");
        fs::write(
            &file,
            "lisen = \"x\"\nmax_starting = 0\nlog = \"loud\"\n[plugin.ocr.limits]\nmemry = 1\n",
        )
        .unwrap();
        let flags = vec![("listen", "0.0.0.0:1".to_owned())];
        let problems = load(&Source { file: Some(file), flags }, |_| None).unwrap_err();
        let text = problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        assert!(text.contains("unknown key `lisen`; did you mean `listen`?"), "{text}");
        assert!(
            text.contains("unknown key `plugin.ocr.limits.memry`; did you mean `memory`?"),
            "{text}"
        );
        assert!(text.contains("`max_starting` must be a number of 1 or more, not \"0\""), "{text}");
        assert!(text.contains("not a loopback address"), "{text}");
        assert!(text.contains("`log` must be a log filter such as"), "{text}");
    }
}
