//! `[plugin.NAME]`: what the operator lays over single plugins.

use crate::{
    document::{Problems, Table, parse_toml},
    manifest::{
        Manifest, PermissionLists, RemoteRules, Restrictions, Run, read_limits, read_quota,
        read_restart, read_timeouts,
    },
};

/// What the operator lays over one plugin: `[plugin.NAME]`.
#[derive(Clone, Debug, Default)]
pub struct Overlay {
    /// False: it is DISABLED.
    pub enabled: Option<bool>,
    /// Its own lists of permissions.
    pub permissions: Option<PermissionLists>,
    /// The files' text, applied to each manifest that bears the name.
    text: Vec<(String, String)>,
}

impl Overlay {
    /// The table of one more file; its problems are told here, its values applied
    /// later.
    pub(super) fn add(&mut self, table: Table<'_>, file: String, text: &str) {
        self.enabled = table.boolean("enabled").or(self.enabled);
        if let Some(permissions) = table.table("permissions") {
            let lists = PermissionLists::of_operator(permissions);
            self.permissions.get_or_insert_default().add(lists);
        }
        self.text.push((file, text.to_owned()));
        check(table);
    }

    /// Changes when what is laid over this plugin does.
    pub fn fingerprint(&self, plugin: &str) -> u64 {
        use std::hash::{Hash as _, Hasher as _};
        let mut hasher = std::hash::DefaultHasher::new();
        for (_, text) in &self.text {
            let file: toml::Table = text.parse().unwrap_or_default();
            let own = file.get("plugin").and_then(|plugins| plugins.get(plugin));
            let Some(mut own) = own.and_then(toml::Value::as_table).cloned() else { continue };
            own.remove("enabled");
            own.to_string().hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The operator says how much RLIMIT_DATA this plugin has.
    pub fn sets_data(&self, plugin: &str) -> bool {
        self.text.iter().any(|(_, text)| {
            let file: toml::Table = text.parse().unwrap_or_default();
            let own = file.get("plugin").and_then(|plugins| plugins.get(plugin));
            own.and_then(|own| own.get("limits")?.get("data")).is_some()
        })
    }

    /// Lays limits, time-outs and restart policy over the manifest.
    pub fn apply(&self, manifest: &mut Manifest) {
        let gpu = manifest.requires.gpu.is_some();
        for (file, text) in &self.text {
            let mut problems = Problems::new(file.clone(), text.clone());
            let document = parse_toml(text, &mut problems);
            let root = Table::root(&document, &mut problems);
            let plugin = root.table("plugin").and_then(|plugins| plugins.table_of(&manifest.name));
            let Some(plugin) = plugin else { continue };
            if let Some(table) = plugin.table("limits") {
                read_limits(table, &mut manifest.limits, gpu);
            }
            if let Some(table) = plugin.table("timeouts") {
                read_timeouts(table, &mut manifest.timeouts);
            }
            if let Some(table) = plugin.table("restart") {
                read_restart(table, &mut manifest.restart);
            }
            if let Some(table) = plugin.table("sandbox") {
                Restrictions::of_operator(table).apply(&mut manifest.sandbox);
            }
            if let Some(table) = plugin.table("quota") {
                read_quota(table, &mut manifest.quota);
            }
            if let (Some(table), Run::Remote(remote)) = (plugin.table("remote"), &mut manifest.run)
            {
                RemoteRules::of_operator(table).apply(remote);
            }
        }
    }
}

/// Finds the problems of one `[plugin.NAME]`; the values are applied later.
fn check(table: Table<'_>) {
    if let Some(limits) = table.table("limits") {
        read_limits(limits, &mut Default::default(), false);
    }
    if let Some(timeouts) = table.table("timeouts") {
        read_timeouts(timeouts, &mut Default::default());
    }
    if let Some(restart) = table.table("restart") {
        read_restart(restart, &mut Default::default());
    }
    if let Some(sandbox) = table.table("sandbox") {
        Restrictions::of_operator(sandbox);
    }
    if let Some(quota) = table.table("quota") {
        read_quota(quota, &mut Default::default());
    }
    if let Some(remote) = table.table("remote") {
        RemoteRules::of_operator(remote);
    }
    table.finish();
}
