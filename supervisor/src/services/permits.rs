//! Permissions as they are used: granted or refused, counted, and a refusal told
//! to the operator.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    capacity::limits,
    plugin::{EventKind, Journal},
};

/// A refusal is told this often; all are counted.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// How often a permission was used and refused since the daemon's start.
#[derive(Clone, Copy, Debug, Default)]
pub struct PermissionUse {
    /// Asked for and granted.
    pub used: u64,
    /// Asked for and refused.
    pub refused: u64,
    told: Option<Instant>,
    untold: u64,
}

/// How a plugin has used its permissions.
#[derive(Clone, Debug, Default)]
pub struct PluginUse {
    /// By permission.
    pub permissions: BTreeMap<String, PermissionUse>,
    /// Requests refused for a quota.
    pub over_quota: u64,
}

/// The use of every plugin.
#[derive(Debug, Default)]
pub(super) struct Permits(Mutex<HashMap<Arc<str>, PluginUse>>);

/// `Plugin 'P' attempted …`: the sources' wording.
pub(super) fn refusal(plugin: &str, capability: &str, permission: &str) -> String {
    let capability = limits::cut(capability, 2 * limits::NAME);
    let permission = limits::cut(permission, 2 * limits::NAME);
    format!(
        "Plugin '{plugin}' attempted to use capability '{capability}' but lacks required \
         permission '{permission}'"
    )
}

/// Names of permissions that are counted apart; a plugin may make up more.
const NAMES: usize = limits::DENIED_NAMES;

impl PluginUse {
    /// The entry of a permission, or that of all further ones.
    fn entry(&mut self, permission: &str) -> &mut PermissionUse {
        let known = self.permissions.contains_key(permission)
            || (self.permissions.len() < NAMES && permission.len() <= 2 * limits::NAME);
        let name = if known { permission } else { "(others)" };
        self.permissions.entry(name.to_owned()).or_default()
    }
}

impl Permits {
    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, PluginUse>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn used(&self, plugin: &Arc<str>, permission: &str) {
        let mut all = self.lock();
        if !all.contains_key(plugin) {
            all.insert(plugin.clone(), PluginUse::default());
        }
        let Some(used) = all.get_mut(plugin) else { return };
        match used.permissions.get_mut(permission) {
            Some(one) => one.used += 1,
            None => used.entry(permission).used += 1,
        }
    }

    /// Counts a refusal and tells the operator, though not a thousand times.
    pub(super) fn refused(
        &self,
        journal: &Journal,
        plugin: &Arc<str>,
        permission: &str,
        text: &str,
    ) {
        let mut all = self.lock();
        let one = all.entry(plugin.clone()).or_default().entry(permission);
        one.refused += 1;
        if one.told.is_some_and(|told| told.elapsed() < TOLD_EVERY) {
            one.untold += 1;
            return;
        }
        one.told = Some(Instant::now());
        let more = match std::mem::take(&mut one.untold) {
            0 => String::new(),
            n => format!(" ({n} more since)"),
        };
        drop(all);
        tracing::warn!(plugin = %plugin, permission, "plugin_permission_denied: {text}{more}");
        let message = format!("plugin_permission_denied: {text}{more}");
        journal.say(plugin, EventKind::Warning, message);
    }

    pub(super) fn over_quota(&self, plugin: &Arc<str>) {
        self.lock().entry(plugin.clone()).or_default().over_quota += 1;
    }

    /// How a plugin has used its permissions.
    pub(super) fn of(&self, plugin: &str) -> PluginUse {
        self.lock().get(plugin).cloned().unwrap_or_default()
    }
}
