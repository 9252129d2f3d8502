//! Whoever follows health shares one picture of all plugins, looked at twenty times a
//! second while anybody does. A thousand watchers cost a thousand writes, not a thousand
//! renderings.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use stockade_proto::v1::{PluginHealth, plugin_change::Kind};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tonic::{Request, Status};

use super::{body::Reservation, door::Caller, report::health, status, wanted::Wanted};
use crate::{
    Supervisor,
    capacity::{Charge, limits},
};

/// A watcher is told of a change this soon; what changes back in between is
/// not told (RUNNING comes and goes with every call).
const TICK: Duration = Duration::from_millis(50);

/// Groups of watchers.
const GROUPS: usize = 128;

/// The shared picture, and how many may look. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    /// Watchers are woken a few at a time, so that others have their turn in between.
    groups: Arc<[watch::Sender<Arc<Picture>>]>,
    next: Arc<AtomicUsize>,
    places: Arc<Semaphore>,
    /// Of those besides whom nobody may take away: operators.
    operators: Arc<Semaphore>,
    looking: Arc<AtomicBool>,
    supervisor: Supervisor,
}

/// All plugins at one moment.
#[derive(Debug, Default)]
pub(super) struct Picture {
    plugins: BTreeMap<Arc<str>, Seen>,
}

/// A plugin, and a number that grows with each change that is told.
#[derive(Clone, Debug)]
struct Seen {
    change: u64,
    serving: bool,
    health: Arc<PluginHealth>,
}

/// A watcher's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    /// For what is kept of its request.
    _room: Option<Charge>,
}

impl Watch {
    /// What somebody is told for whom there is no place.
    pub(super) const FULL: &'static str =
        "as many streams are being followed as may; end some, or ask instead of following";

    pub(super) fn new(supervisor: &Supervisor) -> Self {
        Watch {
            groups: (0..GROUPS).map(|_| watch::channel(Arc::default()).0).collect(),
            next: Arc::default(),
            places: Arc::new(Semaphore::new(limits::WATCHERS)),
            operators: Arc::new(Semaphore::new(limits::OPERATORS_WATCHERS)),
            looking: Arc::default(),
            supervisor: supervisor.clone(),
        }
    }

    /// A place for one more watcher of anything. Operators have places of their own.
    pub(super) fn place(&self, caller: Option<&Caller>) -> Option<Place> {
        let is_operator = caller.is_some_and(|caller| caller.admin().is_some());
        let places = if is_operator { &self.operators } else { &self.places };
        let permit = places.clone().try_acquire_owned().ok()?;
        Some(Place { _permit: permit, _room: None })
    }

    /// The same, or why not.
    pub(super) fn grpc_place<T>(&self, request: &Request<T>) -> Result<Place, Status> {
        let caller = request.extensions().get::<Caller>();
        self.place(caller).ok_or_else(|| status::overloaded(Self::FULL))
    }

    /// The same for one who follows plugins of these names, which are kept.
    pub(super) fn grpc_place_for<T>(
        &self,
        request: &Request<T>,
        names: &[String],
    ) -> Result<Place, Status> {
        let bytes = names.iter().map(|name| name.len() + size_of::<String>()).sum();
        let account = request.extensions().get::<Reservation>().map(Reservation::account);
        let room = account.map(|account| account.charge(bytes)).transpose();
        let room = room.map_err(|why| status::of_room(why, why))?;
        Ok(Place { _room: room, ..self.grpc_place(request)? })
    }

    /// Pictures from now on; the first one is of now.
    pub(super) fn pictures(&self) -> watch::Receiver<Arc<Picture>> {
        let group = self.next.fetch_add(1, Ordering::Relaxed) % GROUPS;
        let receiver = self.groups[group].subscribe();
        if !self.looking.swap(true, Ordering::AcqRel) {
            let first = self.look().unwrap_or_else(|| self.groups[0].borrow().clone());
            self.groups.iter().for_each(|group| drop(group.send_replace(first.clone())));
            tokio::spawn(self.clone().run());
        }
        receiver
    }

    /// Looks while anybody follows.
    async fn run(self) {
        loop {
            tokio::time::sleep(TICK).await;
            if self.groups.iter().all(|group| group.receiver_count() == 0) {
                self.looking.store(false, Ordering::Release);
                return;
            }
            let Some(picture) = self.look() else { continue };
            for group in self.groups.iter() {
                group.send_replace(picture.clone());
                if group.receiver_count() > 0 {
                    tokio::task::yield_now().await;
                }
            }
        }
    }

    /// Takes a new picture, if anything has changed.
    fn look(&self) -> Option<Arc<Picture>> {
        // The last group is told last: what it knows everybody knows.
        let before = self.groups[GROUPS - 1].borrow().clone();
        let registry = self.supervisor.registry().snapshot();
        let mut changed = before.plugins.len() != registry.plugins.len();
        let mut plugins = BTreeMap::new();
        for (name, handle) in &registry.plugins {
            let known = before.plugins.get(name);
            let now = PluginHealth::from(health::health(handle));
            let same = known.filter(|known| essence(&known.health) == essence(&now)).cloned();
            let seen = same.unwrap_or_else(|| {
                changed = true;
                Seen {
                    change: known.map_or(1, |known| known.change + 1),
                    serving: health::serving(&handle.snapshot()),
                    health: Arc::new(now),
                }
            });
            plugins.insert(name.clone(), seen);
        }
        changed.then(|| Arc::new(Picture { plugins }))
    }
}

impl Picture {
    /// Is a plugin SERVING in the sense of grpc.health.v1? None = there is none.
    pub(super) fn serving(&self, name: &str) -> Option<bool> {
        self.plugins.get(name).map(|seen| seen.serving)
    }
}

/// What a watcher is to be told.
pub(super) type Change = (Kind, Arc<PluginHealth>);

/// What one watcher has been told.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<Arc<str>, Seen>);

impl Told {
    /// What is new since the last picture.
    pub(super) fn changes(&mut self, picture: &Picture, wanted: &Wanted) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut tell = |kind: Kind, seen: &Seen| changes.push((kind, seen.health.clone()));
        for (name, seen) in picture.plugins.iter().filter(|(name, _)| wanted.has(name)) {
            match self.0.get(name) {
                None => tell(Kind::Present, seen),
                Some(before) if before.change != seen.change => tell(Kind::Changed, seen),
                Some(_) => continue,
            }
            self.0.insert(name.clone(), seen.clone());
        }
        self.0.retain(|name, last| {
            let there = picture.plugins.contains_key(name);
            if !there {
                tell(Kind::Removed, last);
            }
            there
        });
        changes
    }
}

/// The fields whose change is told; counters and times run on.
fn essence(health: &PluginHealth) -> impl PartialEq + '_ {
    (
        (health.state, &health.substate, &health.reason, &health.version),
        (health.pid, health.generation, health.restarts, &health.last_exit),
        (&health.missing, &health.pending_change, &health.progress),
    )
}
