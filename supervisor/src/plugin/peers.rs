//! Plugins that need other plugins: whether those are there, and waiting for them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::sync::watch;

use super::{mailbox::Handle, snapshot::Snapshot};
use crate::lifecycle::{Cause, CauseCode, State, Substate};

/// Between looks at those that are on their way.
const LOOK: Duration = Duration::from_millis(20);

type All = BTreeMap<Arc<str>, Handle>;

/// All plugins by name, as the registry published them last.
#[derive(Clone, Debug)]
pub struct Peers(Arc<watch::Sender<All>>);

impl Default for Peers {
    fn default() -> Self {
        Peers(Arc::new(watch::channel(All::new()).0))
    }
}

/// How the others stand.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Standing {
    /// They serve.
    Ready,
    /// They will, or will be said to fail.
    Coming,
    /// It cannot run with them as they are; what is missing.
    Blocked(Cause, String),
}

impl Peers {
    /// The list has changed.
    pub fn set(&self, all: All) {
        self.0.send_replace(all);
    }

    /// How those that a plugin requires stand.
    pub(super) fn standing(&self, name: &str, requires: &[String]) -> Standing {
        let all = self.0.borrow();
        // It is not on the list itself: the list is of before.
        if !all.contains_key(name) {
            return Standing::Coming;
        }
        if let Some(cycle) = cycle(&all, name) {
            let reason = format!(
                "Circular dependency detected: {}. Remove {} from the requires.plugins of {}.",
                cycle.join(" -> "),
                cycle[cycle.len() - 1],
                cycle[cycle.len() - 2]
            );
            return blocked(reason, name);
        }
        let mut standing = Standing::Ready;
        for other in requires {
            let Some(handle) = all.get(other.as_str()) else {
                let reason = format!(
                    "Missing dependency: {other}. Install that plugin, or take it out of \
                     requires.plugins."
                );
                return blocked(reason, other);
            };
            match of(name, other, &handle.snapshot()) {
                Standing::Ready => {}
                Standing::Coming => standing = Standing::Coming,
                blocked => return blocked,
            }
        }
        standing
    }

    /// Waits for those that are on their way.
    pub(super) async fn settled(&self, name: &str, requires: &[String]) -> Standing {
        loop {
            match self.standing(name, requires) {
                Standing::Coming => tokio::time::sleep(LOOK).await,
                settled => return settled,
            }
        }
    }
}

fn blocked(reason: String, missing: &str) -> Standing {
    Standing::Blocked(Cause::new(CauseCode::DependencyMissing, reason), missing.to_owned())
}

fn of(name: &str, other: &str, snapshot: &Snapshot) -> Standing {
    let depends =
        |how: &str| blocked(format!("Plugin '{name}' depends on '{other}' which is {how}"), other);
    match (snapshot.resting, snapshot.substate) {
        (State::Initialized | State::Running, _) | (_, Substate::OnDemand) => Standing::Ready,
        (_, Substate::Disabled) => depends(&format!("disabled. Run `stockade enable {other}`.")),
        (_, Substate::Stopped) => depends(&format!("stopped. Run `stockade start {other}`.")),
        (state @ (State::Unavailable | State::Failed), _) if !snapshot.checking => {
            let why = snapshot.cause.as_ref().map(|cause| cause.reason.as_str());
            depends(&format!("{state}: {}", why.unwrap_or_default()))
        }
        _ => Standing::Coming,
    }
}

fn requires(handle: &Handle) -> Vec<String> {
    let manifest = handle.snapshot().manifest.clone();
    manifest.map(|manifest| manifest.requires.plugins.clone()).unwrap_or_default()
}

/// The way from a plugin back to itself, if there is one.
fn cycle(all: &All, name: &str) -> Option<Vec<String>> {
    fn search(all: &All, way: &mut Vec<String>, seen: &mut Vec<String>) -> bool {
        let Some(last) = way.last().cloned() else { return false };
        for next in all.get(last.as_str()).map(requires).unwrap_or_default() {
            if way.first() == Some(&next) {
                way.push(next);
                return true;
            }
            if seen.contains(&next) {
                continue;
            }
            seen.push(next.clone());
            way.push(next);
            if search(all, way, seen) {
                return true;
            }
            way.pop();
        }
        false
    }
    let mut way = vec![name.to_owned()];
    search(all, &mut way, &mut vec![name.to_owned()]).then_some(way)
}

/// The plugins in groups, each of which nobody behind it needs: the order in which
/// they end.
pub fn in_order_of_end(handles: Vec<Handle>) -> Vec<Vec<Handle>> {
    let mut left = handles;
    let mut groups = Vec::new();
    while !left.is_empty() {
        let needed: Vec<String> = left.iter().flat_map(requires).collect();
        let is_needed = |handle: &Handle| needed.iter().any(|name| **name == **handle.name());
        let (later, now): (Vec<Handle>, Vec<Handle>) = left.into_iter().partition(is_needed);
        // Those that need each other end together.
        if now.is_empty() {
            groups.push(later);
            break;
        }
        groups.push(now);
        left = later;
    }
    groups
}
