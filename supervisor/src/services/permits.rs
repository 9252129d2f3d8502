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

/// After a refusal of a plugin is told, further ones of it are only counted for this long.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// Each time twice as long, at most this, until it has been refused nothing for as long:
/// what other plugins do stays in the journal.
const TOLD_RARELY: Duration = Duration::from_secs(300);

/// Of so many permissions the first refusal is told in any case.
const FIRSTS: usize = 16;

/// How often a permission was used and refused since the daemon's start.
#[derive(Clone, Copy, Debug, Default)]
pub struct PermissionUse {
    /// Asked for and granted.
    pub used: u64,
    /// Asked for and refused.
    pub refused: u64,
}

/// How a plugin has used its permissions.
#[derive(Clone, Debug, Default)]
pub struct PluginUse {
    /// By permission.
    pub permissions: BTreeMap<String, PermissionUse>,
    /// Requests refused for a quota.
    pub over_quota: u64,
    told: Told,
}

/// What has been said of a plugin's refusals.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    /// When, and how long nothing is said after it.
    last: Option<(Instant, Duration)>,
    /// Refused meanwhile.
    untold: u64,
}

impl Told {
    /// One more is refused: how many were before it of which nothing was said, if it is
    /// to be told.
    fn one(&mut self) -> Option<u64> {
        let pause = match self.last {
            Some((last, pause)) if last.elapsed() < pause => {
                self.untold += 1;
                return None;
            }
            Some((last, pause)) if last.elapsed() < pause * 2 + TOLD_EVERY => pause * 2,
            _ => TOLD_EVERY,
        };
        self.last = Some((Instant::now(), pause.min(TOLD_RARELY)));
        Some(std::mem::take(&mut self.untold))
    }
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
        let of_plugin = all.entry(plugin.clone()).or_default();
        let one = of_plugin.entry(permission);
        one.refused += 1;
        let is_first = one.refused == 1 && of_plugin.permissions.len() <= FIRSTS;
        let more = match of_plugin.told.one() {
            None if is_first => String::new(),
            None => return,
            Some(0) => String::new(),
            Some(n) => format!(
                " ({n} more refusals of this plugin before; `stockade permissions` counts them)"
            ),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_plugins_refusals_leave_room_for_what_others_do() {
        let (permits, journal) = (Permits::default(), Journal::default());
        let plugin: Arc<str> = "x".into();
        for n in 0..10_000 {
            permits.refused(&journal, &plugin, &format!("plugin:call:{}", n % 500), "no");
        }
        let (first, next) = crate::plugin::Feed::span(&journal);
        assert!((1..=FIRSTS as u64 + 2).contains(&(next - first)), "{}", next - first);
        let of = permits.of("x");
        assert_eq!(of.permissions.values().map(|one| one.refused).sum::<u64>(), 10_000);
    }
}
