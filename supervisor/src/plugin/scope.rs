//! What a request over the host channel belongs to: a call in flight, its
//! workspace, its deadline, and the plugins that it came through.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use super::{pending::Fate, session::Session};

/// The plugins through which a call came, first one first.
pub type Chain = Arc<[Arc<str>]>;

/// A call in flight, as its plugin's requests see it.
#[derive(Clone, Debug)]
pub struct CallScope {
    /// The id that clients and logs know.
    pub call_id: Arc<str>,
    /// Its workspace; empty when it has none.
    pub workspace: Arc<str>,
    /// When it must be over.
    pub deadline: Instant,
    /// The plugins through which it came.
    pub chain: Chain,
    /// The only plugins that may run for it.
    pub enabled: Option<Arc<BTreeSet<String>>>,
    fate: Arc<Fate>,
}

impl CallScope {
    /// Resolves when nobody waits for the call any more: what is done on its behalf
    /// is wanted by nobody.
    pub async fn unwanted(&self) {
        self.fate.unwanted.wait().await;
    }
}

impl Session {
    /// The call of this number, if this process works on it now.
    pub fn scope(&self, id: u64) -> Option<CallScope> {
        let mut pending = self.pending();
        let one = pending.get_mut(&id)?;
        let fate = one.fate();
        let call = &one.call;
        Some(CallScope {
            fate,
            call_id: call.public_id.clone(),
            workspace: call.workspace.clone(),
            deadline: call.deadline,
            chain: call.chain.clone(),
            enabled: call.enabled.clone(),
        })
    }

    /// The plugins that may run for every one of its calls; None = all.
    pub fn enabled(&self) -> Option<Arc<BTreeSet<String>>> {
        let pending = self.pending();
        let mut lists = pending.values().filter_map(|one| one.call.enabled.as_ref());
        let first = lists.next()?.as_ref().clone();
        let both = |left: BTreeSet<String>, right: &Arc<BTreeSet<String>>| {
            left.intersection(right).cloned().collect()
        };
        Some(Arc::new(lists.fold(first, both)))
    }

    /// Every plugin through which one of its calls came: a request that belongs
    /// to no call may belong to any.
    pub fn chains(&self) -> Vec<Chain> {
        self.pending().values().map(|one| one.call.chain.clone()).collect()
    }
}
