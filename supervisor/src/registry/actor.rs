//! The registry actor: scans, compares, starts and ends plugin actors.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};
use tracing::{info, warn};

use super::{
    RegistrySnapshot,
    doubtful::Doubtful,
    watcher::{FolderWatcher, watched},
};
use crate::{
    config::Overlay,
    lifecycle::{Cause, CauseCode},
    manifest::{
        self, Ceilings, Found, Net, PermissionLists, Quota, RemoteRules, Restrictions, Run, Unread,
    },
    plugin::{self, Command, Context, EventKind, Handle, Recollection},
};

/// A burst of changes (a copy, a build) is over after this silence.
const DEBOUNCE: Duration = Duration::from_millis(300);
/// A burst that does not end is looked at all the same.
const LONGEST_BURST: Duration = Duration::from_secs(2);
/// Removed plugins are waited for this long, all together.
const LEAVING: Duration = Duration::from_secs(5);

/// What a reload found.
#[derive(Clone, Debug, Default)]
pub struct Reloaded {
    /// New plugins.
    pub added: Vec<String>,
    /// Plugins whose directory changed.
    pub changed: Vec<String>,
    /// Plugins whose directory is gone.
    pub removed: Vec<String>,
    /// What was not taken, and why.
    pub problems: Vec<String>,
}

/// What the registry depends on in the configuration.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Searched in this order.
    pub folders: Vec<PathBuf>,
    /// The interpreter whose distributions advertise plugins.
    pub python: Option<PathBuf>,
    /// What plugins may be granted.
    pub restrictions: Restrictions,
    /// Which permissions they may have.
    pub permissions: PermissionLists,
    /// What they may ask for at most.
    pub ceilings: Ceilings,
    /// How much of the host they may use.
    pub quota: Quota,
    /// Which addresses remote ones may have.
    pub remote: RemoteRules,
    /// Laid over single plugins.
    pub overlays: BTreeMap<String, Overlay>,
}

enum Request {
    Reload(Option<Box<Folders>>, oneshot::Sender<Reloaded>),
    Shutdown(Duration, oneshot::Sender<Vec<String>>),
}

/// Handle of the registry actor.
#[derive(Clone, Debug)]
pub struct Registry {
    requests: mpsc::Sender<Request>,
    /// Set by a shutdown, which waits for no scan.
    ending: Arc<watch::Sender<bool>>,
    snapshots: watch::Receiver<Arc<RegistrySnapshot>>,
}

impl Registry {
    /// The list now. Never waits.
    pub fn snapshot(&self) -> Arc<RegistrySnapshot> {
        self.snapshots.borrow().clone()
    }

    /// Changes of the list.
    pub fn watch(&self) -> watch::Receiver<Arc<RegistrySnapshot>> {
        self.snapshots.clone()
    }

    /// Reads every folder again; with `folders`, other ones from now on.
    pub async fn reload(&self, folders: Option<Folders>) -> Reloaded {
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Reload(folders.map(Box::new), reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Stops every plugin; returns those that were still there at the end.
    pub async fn shutdown(&self, timeout: Duration) -> Vec<String> {
        self.ending.send_replace(true);
        let (reply, answer) = oneshot::channel();
        let _ = self.requests.send(Request::Shutdown(timeout, reply)).await;
        answer.await.unwrap_or_default()
    }
}

struct Entry {
    handle: Handle,
    /// The name that the scan found; the handle's own when it was taken.
    scanned: String,
    fingerprint: u64,
    enabled: bool,
}

struct Actor {
    context: Context,
    folders: Folders,
    /// By the key of what was found.
    entries: HashMap<PathBuf, Entry>,
    watcher: FolderWatcher,
    watch_problem: Option<String>,
    snapshots: watch::Sender<Arc<RegistrySnapshot>>,
    draining: bool,
    ending: watch::Receiver<bool>,
    /// Removed, and not seen to have ended.
    leaving: Vec<Handle>,
    doubtful: Doubtful,
}

/// Starts the actor on the current runtime; it scans the folders first.
pub fn start(context: Context, folders: Folders, watch_folders: bool) -> Registry {
    let (requests, inbox) = mpsc::channel(16);
    let (snapshots, receiver) = watch::channel(Arc::default());
    let (ending, ended) = watch::channel(false);
    let (watcher, changes, watch_problem) = FolderWatcher::new(watch_folders);
    let actor = Actor {
        context,
        folders,
        entries: HashMap::new(),
        watcher,
        watch_problem,
        snapshots,
        draining: false,
        ending: ended,
        leaving: Vec::new(),
        doubtful: Doubtful::default(),
    };
    tokio::spawn(actor.run(inbox, changes));
    Registry { requests, ending: Arc::new(ending), snapshots: receiver }
}

impl Actor {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>, mut changes: mpsc::Receiver<()>) {
        self.rescan().await;
        loop {
            // The arms only take from a queue, or look: cancel-safe.
            tokio::select! {
                request = requests.recv() => match request {
                    Some(Request::Reload(folders, reply)) => {
                        if let Some(folders) = folders {
                            self.folders = *folders;
                        }
                        let _ = reply.send(self.rescan().await);
                    }
                    Some(Request::Shutdown(timeout, reply)) => {
                        let _ = reply.send(self.shutdown(timeout).await);
                        return;
                    }
                    None => {
                        self.shutdown(Duration::from_secs(10)).await;
                        return;
                    }
                },
                Some(()) = changes.recv() => {
                    quiet(&mut changes).await;
                    self.rescan().await;
                }
                () = self.doubtful.changes(), if !self.doubtful.is_empty() => {
                    self.rescan().await;
                }
            }
        }
    }

    async fn rescan(&mut self) -> Reloaded {
        let (folders, python) = (self.folders.folders.clone(), self.folders.python.clone());
        let (store, watcher) = (self.context.store.clone(), self.watcher.clone());
        let known: HashSet<String> =
            self.entries.values().map(|entry| entry.handle.name().to_string()).collect();
        // Everything that reads files, in one go, away from the actors.
        let scan = tokio::task::spawn_blocking(move || {
            // Before anything is read, so that what comes later is not missed.
            watcher.add(watched(&folders, None, &[]));
            let (mut found, unread) = manifest::scan(&folders);
            found.extend(python.iter().flat_map(|python| manifest::advertised(python)));
            watcher.set(watched(&folders, python.as_deref(), &found));
            let new = found.iter().map(|one| one.name.as_str());
            let new = new.filter(|name| !known.contains(*name));
            let memories: HashMap<String, Recollection> =
                new.map(|name| (name.to_owned(), Recollection::of(&store, name))).collect();
            (found, unread, memories)
        });
        // A disk that does not answer keeps the daemon from reloading, not from ending.
        let scanned = tokio::select! {
            scanned = scan => scanned.ok(),
            _ = self.ending.wait_for(|ending| *ending) => None,
        };
        let Some((found, unread, mut memories)) = scanned else { return Reloaded::default() };
        let mut problems: Vec<String> = unread.iter().map(Unread::to_string).collect();
        problems.extend(self.watch_problem.clone());
        self.doubtful = Doubtful::of(unread, &found);
        let mut reloaded = Reloaded { problems: problems.clone(), ..Reloaded::default() };
        // A name that is mistyped would leave its plugin as it is, in silence.
        let stays = |name: &str| {
            let mut kept = self.entries.iter().filter(|(key, _)| self.doubtful.has(key));
            kept.any(|(_, one)| **one.handle.name() == *name)
        };
        let nobody =
            |name: &&String| !found.iter().any(|one| one.name == **name) && !stays(name.as_str());
        problems.extend(self.folders.overlays.keys().filter(nobody).map(|name| {
            format!("[plugin.{name}] of the configuration is for nobody: there is no plugin {name}")
        }));
        self.remove_gone(&found, &mut reloaded).await;
        for mut one in found {
            let lowered = self.overlay(&mut one);
            // Told as long as it is so; nothing that a reload has failed at.
            problems.extend(lowered);
            self.take(one, &mut memories, &mut reloaded).await;
        }
        self.say(&reloaded, &problems);
        self.publish(problems);
        reloaded
    }

    /// The operator's limits, time-outs, restart policy and grants. What the manifest
    /// asked for and does not get.
    fn overlay(&self, found: &mut Found) -> Vec<String> {
        let Ok(manifest) = &mut found.manifest else { return Vec::new() };
        let Folders { restrictions, permissions, quota, remote, .. } = &self.folders;
        restrictions.apply(&mut manifest.sandbox);
        found.fingerprint ^= restrictions.fingerprint();
        let (asked, ceilings) = (manifest.clone(), &self.folders.ceilings);
        ceilings.apply(manifest);
        if asked != *manifest {
            found.fingerprint ^= ceilings.fingerprint();
        }
        manifest.quota = *quota;
        found.fingerprint ^= quota.fingerprint();
        if let Run::Remote(own) = &mut manifest.run {
            remote.apply(own);
            found.fingerprint ^= remote.fingerprint();
        }
        let own = self.folders.overlays.get(&manifest.name);
        let lists = permissions.under(own.and_then(|overlay| overlay.permissions.as_ref()));
        lists.apply(&mut manifest.permissions);
        found.fingerprint ^= lists.fingerprint();
        if let Some(overlay) = self.folders.overlays.get(&manifest.name) {
            overlay.apply(manifest);
            // What follows from its memory is what nobody has asked for.
            if !overlay.sets_data(&manifest.name) {
                ceilings.cap_data(manifest);
            }
            // A changed overlay is a change of the plugin.
            found.fingerprint ^= overlay.fingerprint(&manifest.name);
        }
        if manifest.remote().is_some() {
            // Its process is ours and looks at each address; nothing of the author runs in it.
            manifest.sandbox.net = Net::Host;
        }
        ceilings.lowered(&asked, manifest)
    }

    async fn remove_gone(&mut self, found: &[Found], reloaded: &mut Reloaded) {
        let present: HashMap<&PathBuf, &Found> = found.iter().map(|one| (&one.key, one)).collect();
        let missing: Vec<PathBuf> = self
            .entries
            .iter()
            .filter(|(directory, entry)| match present.get(directory) {
                None => !self.doubtful.has(directory),
                // A directory whose plugin has another name is another plugin.
                Some(one) => one.manifest.is_ok() && *one.name != entry.scanned,
            })
            .map(|(directory, _)| directory.clone())
            .collect();
        let leaving: Vec<Handle> = missing
            .iter()
            .filter_map(|directory| self.entries.remove(directory))
            .map(|entry| entry.handle)
            .collect();
        reloaded.removed.extend(leaving.iter().map(|handle| handle.name().to_string()));
        self.leaving.retain(|handle| handle.watch().has_changed().is_ok());
        self.leaving.extend(leaving.iter().cloned());
        // Only those are waited for whose names are taken again, and only once.
        let again: HashSet<&str> = found.iter().map(|one| one.name.as_str()).collect();
        let awaited = leaving.iter().filter(|handle| again.contains(&**handle.name())).cloned();
        let awaited: Vec<Handle> = awaited.collect();
        tokio::spawn(async move {
            end_all(&leaving, "the removal of its directory", LEAVING).await;
        });
        let awaited = futures_util::future::join_all(awaited.iter().map(gone));
        tokio::select! {
            _ = tokio::time::timeout(LEAVING, awaited) => {}
            _ = self.ending.wait_for(|ending| *ending) => {}
        }
    }

    /// One found directory: new, changed, or as it was.
    async fn take(
        &mut self,
        found: Found,
        memories: &mut HashMap<String, Recollection>,
        reloaded: &mut Reloaded,
    ) {
        let overlay = self.folders.overlays.get(&found.name);
        let enabled = overlay.and_then(|overlay| overlay.enabled).unwrap_or(true);
        if let Some(entry) = self.entries.get_mut(&found.key) {
            if entry.enabled != enabled {
                reloaded.changed.push(entry.handle.name().to_string());
                match entry.handle.command(Command::Allow(enabled)) {
                    Ok(()) => entry.enabled = enabled,
                    Err(error) => {
                        reloaded.problems.push(format!("{}: {error}", entry.handle.name()));
                    }
                }
            }
            if entry.fingerprint != found.fingerprint {
                let fingerprint = found.fingerprint;
                reloaded.changed.push(entry.handle.name().to_string());
                if let Err(problems) = &found.manifest {
                    reloaded.problems.push(format!("{}: {}", found.name, Found::reason(problems)));
                }
                match entry.handle.command(Command::Replace(Box::new(found))) {
                    Ok(()) => entry.fingerprint = fingerprint,
                    Err(error) => {
                        reloaded.problems.push(format!("{}: {error}", entry.handle.name()));
                    }
                }
            }
            return;
        }
        let mut found = found;
        let scanned = found.name.clone();
        let usable = self.usable(&mut found);
        if let Err(cause) = &usable {
            reloaded.problems.push(format!("{}: {}", found.name, cause.reason));
        }
        reloaded.added.push(found.name.clone());
        let (key, fingerprint) = (found.key.clone(), found.fingerprint);
        let known = match memories.remove(&found.name) {
            Some(known) => known,
            // Listed under another name than it was found by.
            None => {
                let (store, name) = (self.context.store.clone(), found.name.clone());
                let asked = tokio::task::spawn_blocking(move || Recollection::of(&store, &name));
                let Ok(known) = asked.await else { return };
                known
            }
        };
        let handle = plugin::spawn(self.context.clone(), found, usable, enabled, known);
        self.entries.insert(key, Entry { handle, scanned, fingerprint, enabled });
    }

    /// The manifest, or why it cannot be used. A name that is taken is one of
    /// those reasons: the first stays, the second is listed under another.
    fn usable(&self, found: &mut Found) -> Result<Arc<manifest::Manifest>, Cause> {
        let taken = |name: &str| {
            self.entries.iter().find(|(_, entry)| **entry.handle.name() == *name).map(|(d, _)| d)
        };
        let first = taken(&found.name).cloned();
        if first.is_some() {
            let base = found.name.clone();
            let mut n = 2;
            while taken(&found.name).is_some() {
                found.name = format!("{base}-{n}");
                n += 1;
            }
        }
        match (&found.manifest, first) {
            (Err(problems), _) => {
                Err(Cause::new(CauseCode::ManifestError, Found::reason(problems)))
            }
            (Ok(manifest), Some(first)) => {
                let reason = format!(
                    "Manifest error: the name \"{}\" is used twice: {} and {}. Rename one.",
                    manifest.name,
                    first.display(),
                    found.directory.display()
                );
                Err(Cause::new(CauseCode::ManifestError, reason))
            }
            (Ok(manifest), None) => Ok(Arc::new(manifest.clone())),
        }
    }

    fn say(&self, reloaded: &Reloaded, problems: &[String]) {
        let names = |names: &[String]| names.join(", ");
        let failed = reloaded.problems.iter().filter(|problem| !problems.contains(problem));
        // What was so before the reload has been said.
        let known = self.snapshots.borrow().problems.clone();
        for problem in problems.iter().filter(|problem| !known.contains(problem)).chain(failed) {
            warn!("{problem}");
        }
        let Reloaded { added, changed, removed, .. } = reloaded;
        if added.is_empty() && changed.is_empty() && removed.is_empty() {
            return;
        }
        let text = format!(
            "plugins added: [{}], changed: [{}], removed: [{}]",
            names(added),
            names(changed),
            names(removed)
        );
        info!("{text}");
        self.context.journal.say("", EventKind::Reload, text);
    }

    fn publish(&self, problems: Vec<String>) {
        let plugins =
            self.entries.values().map(|entry| (entry.handle.name().clone(), entry.handle.clone()));
        let plugins: BTreeMap<Arc<str>, Handle> = plugins.collect();
        self.context.peers.set(plugins.clone());
        self.snapshots.send_replace(Arc::new(RegistrySnapshot {
            plugins,
            scanned: true,
            draining: self.draining,
            problems,
        }));
    }

    async fn shutdown(&mut self, timeout: Duration) -> Vec<String> {
        self.draining = true;
        let problems = self.snapshots.borrow().problems.clone();
        self.publish(problems);
        let mut handles: Vec<Handle> =
            self.entries.values().map(|entry| entry.handle.clone()).collect();
        handles.append(&mut self.leaving);
        let deadline = Instant::now() + timeout;
        let mut left = Vec::new();
        for group in plugin::in_order_of_end(handles) {
            let patience = deadline.saturating_duration_since(Instant::now());
            let names = end_all(&group, "the end of the daemon", patience).await;
            for handle in group.iter().filter(|one| names.iter().any(|name| **name == **one.name()))
            {
                if let Some(session) = &handle.snapshot().session {
                    session.leave();
                }
            }
            left.extend(names);
        }
        left
    }
}

/// Waits for the end of a burst, but not for ever: a plugin may write into its
/// own directory all the time.
async fn quiet(changes: &mut mpsc::Receiver<()>) {
    let limit = Instant::now() + LONGEST_BURST;
    while let Ok(Some(())) =
        tokio::time::timeout_at((Instant::now() + DEBOUNCE).min(limit), changes.recv()).await
    {}
}

/// Ends plugins together; the names of those that are still there in the end.
async fn end_all(handles: &[Handle], why: &str, patience: Duration) -> Vec<String> {
    for handle in handles {
        let _ = handle.command(Command::Remove(why.to_owned()));
    }
    let deadline = Instant::now() + patience;
    let mut left = Vec::new();
    for handle in handles {
        if tokio::time::timeout_at(deadline, gone(handle)).await.is_err() {
            let seconds = patience.as_secs_f32();
            warn!(plugin = %handle.name(), "still there {seconds:.1} s after it was told of {why}");
            left.push(handle.name().to_string());
        }
    }
    left
}

/// Resolves when the plugin's actor has ended.
async fn gone(handle: &Handle) {
    let mut snapshots = handle.watch();
    while snapshots.changed().await.is_ok() {}
}
