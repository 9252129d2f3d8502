//! What is left of a daemon's processes, wherever they went.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use crate::PATIENCE;

/// One process as `/proc` shows it.
struct Process {
    pid: u32,
    parent: u32,
    session: u32,
    /// In clock ticks since boot: with the pid it names a process for good.
    start: u64,
    /// It is no zombie.
    alive: bool,
    name: String,
}

impl Process {
    fn of(pid: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold spaces and brackets; the fields count from its end.
        let (head, tail) = stat.rsplit_once(')')?;
        let fields: Vec<&str> = tail.split_whitespace().collect();
        Some(Process {
            pid,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
            alive: !matches!(*fields.first()?, "Z" | "X"),
            name: head.split_once('(')?.1.to_owned(),
        })
    }

    fn link(&self, name: &str) -> Option<PathBuf> {
        fs::read_link(format!("/proc/{}/{name}", self.pid)).ok()
    }

    /// Of version 2, and not the root: only there is one somebody's own. A process that
    /// ends leaves those of version 1 before it is gone.
    fn cgroup(&self) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        (path != "/").then(|| path.to_owned())
    }

    fn told(&self) -> String {
        format!("{} {}", self.pid, self.name)
    }
}

/// Every process of the machine, by its pid.
fn processes() -> BTreeMap<u32, Process> {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, Process::of(pid)?))).collect()
}

/// A daemon with all its descendants: its launchers, the inits of their
/// namespaces, the plugins and what those started. Whoever was seen once is
/// recognised again after it changed its parent and its working directory, by
/// its session, its pid namespace and its cgroup; and so are its children.
pub struct Family {
    folder: PathBuf,
    /// Pids with start times.
    members: HashSet<(u32, u64)>,
    /// Sessions, each with the start time of its leader where that lived.
    sessions: HashMap<u32, Option<u64>>,
    cgroups: HashSet<String>,
    /// What we share with the daemon says nothing.
    own_session: u32,
    common_cgroups: HashSet<String>,
    own_namespace: Option<PathBuf>,
}

impl Family {
    /// The family of the daemon with this pid, whose folder is `folder`, as it is
    /// now.
    pub fn of(daemon: u32, folder: &Path) -> Self {
        let own = Process::of(std::process::id()).expect("our own process");
        let daemon = Process::of(daemon);
        let common_cgroups = [daemon.as_ref(), Some(&own)].into_iter().flatten();
        let mut family = Family {
            folder: folder.to_owned(),
            members: daemon.iter().map(|daemon| (daemon.pid, daemon.start)).collect(),
            sessions: HashMap::new(),
            cgroups: HashSet::new(),
            own_session: own.session,
            common_cgroups: common_cgroups.filter_map(Process::cgroup).collect(),
            own_namespace: own.link("ns/pid"),
        };
        family.look();
        family
    }

    /// Takes down who belongs to it now. To be called while the daemon lives, at
    /// the latest right before its end.
    pub fn look(&mut self) {
        let all = processes();
        for pid in self.related(&all) {
            let process = &all[&pid];
            self.members.insert((pid, process.start));
            if process.session != self.own_session && process.session != 0 {
                let leader = all.get(&process.session).map(|leader| leader.start);
                self.sessions.entry(process.session).or_insert(leader);
            }
            let cgroup = process.cgroup().filter(|path| !self.common_cgroups.contains(path));
            self.cgroups.extend(cgroup);
        }
    }

    /// Those that live, as `PID NAME`. Zombies do not count.
    pub fn left(&self) -> Vec<String> {
        let all = processes();
        self.related(&all).iter().map(|pid| all[pid].told()).collect()
    }

    /// Waits until none of them lives.
    ///
    /// # Panics
    /// Somebody still does after a minute.
    pub fn wait_gone(&self) {
        let deadline = Instant::now() + PATIENCE;
        while !self.left().is_empty() {
            assert!(Instant::now() < deadline, "left behind: {:?}", self.left());
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// The living processes that belong to it, and everything below them.
    fn related(&self, all: &BTreeMap<u32, Process>) -> Vec<u32> {
        let living = || all.values().filter(|process| process.alive);
        let known = |process: &Process| self.members.contains(&(process.pid, process.start));
        // Numbers of namespaces are used again, but a pid namespace ends with its
        // first process: one in which no member lives is somebody else's.
        let namespaces: HashSet<PathBuf> = living()
            .filter(|process| known(process))
            .filter_map(|process| process.link("ns/pid"))
            .filter(|namespace| Some(namespace) != self.own_namespace.as_ref())
            .collect();
        let belongs = |process: &Process| {
            known(process)
                || self.in_session(process, all)
                || process.link("ns/pid").is_some_and(|one| namespaces.contains(&one))
                || process.cgroup().is_some_and(|one| self.cgroups.contains(&one))
                || process.link("cwd").is_some_and(|place| place.starts_with(&self.folder))
        };
        let mut found: HashSet<u32> = living()
            .filter(|process| process.pid != std::process::id() && belongs(process))
            .map(|process| process.pid)
            .collect();
        loop {
            let below: Vec<u32> = living()
                .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid))
                .map(|process| process.pid)
                .collect();
            if below.is_empty() {
                break;
            }
            found.extend(below);
        }
        let mut found: Vec<u32> = found.into_iter().collect();
        found.sort_unstable();
        found
    }

    /// It is in a session of the family. A session keeps its number from being
    /// used again; whoever has that number and another start time shows that the
    /// session is over and the number somebody else's.
    fn in_session(&self, process: &Process, all: &BTreeMap<u32, Process>) -> bool {
        let Some(known) = self.sessions.get(&process.session) else { return false };
        match all.get(&process.session) {
            Some(leader) => *known == Some(leader.start),
            None => true,
        }
    }
}

/// Processes whose working directory is below `folder`, as `PID NAME`: plugins and
/// what they started there. Zombies do not count. Whoever went elsewhere, and the
/// init of a namespace, is not among them: see [`Family`].
pub fn left_in(folder: &Path) -> Vec<String> {
    let all = processes();
    let inside = |process: &&Process| {
        process.alive && process.link("cwd").is_some_and(|place| place.starts_with(folder))
    };
    all.values().filter(inside).map(Process::told).collect()
}

/// The nearest process above `pid` (or `pid` itself) with this name, for instance
/// `stockade-launch` or `stockade-init`.
pub fn ancestor(pid: u32, name: &str) -> Option<u32> {
    let mut process = Process::of(pid)?;
    while process.name != name {
        process = Process::of(process.parent)?;
    }
    Some(process.pid)
}

/// Open descriptors of a process.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn until(what: &str, is: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is() {
            assert!(Instant::now() < deadline, "never happened: {what}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn shell(script: &str, folder: &Path) -> Child {
        Command::new("sh").args(["-c", script]).current_dir(folder).spawn().expect("sh")
    }

    /// The pids of the living processes of this name in a list of `PID NAME`.
    fn named(list: &[String], name: &str) -> Vec<i32> {
        let pids = list.iter().filter_map(|one| one.strip_suffix(name)?.trim().parse().ok());
        pids.collect()
    }

    fn kill(child: &mut Child) {
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    /// A process that left session, parent and folder is found; one of somebody
    /// else that did the same is not.
    #[test]
    fn who_left_session_parent_and_folder_is_found_and_a_stranger_is_not() {
        let folder = tempfile::tempdir().expect("folder");
        let escape = "cd /; setsid sleep 77771 & cd - >/dev/null; wait; sleep 77772";
        let mut daemon = shell(escape, folder.path());
        // The same, of somebody else.
        let elsewhere = tempfile::tempdir().expect("folder");
        let mut stranger = shell(escape, elsewhere.path());
        let sleeps = |parent: u32| {
            let all = processes();
            let below = |one: &&Process| one.parent == parent && one.name == "sleep";
            let away = all.values().find(below).filter(|one| one.session == one.pid);
            away.filter(|one| one.link("cwd").is_some_and(|place| place == Path::new("/")))
                .map(|one| one.pid as i32)
        };
        until("both escaped", || sleeps(daemon.id()).is_some() && sleeps(stranger.id()).is_some());
        let (escaped, other) = (sleeps(daemon.id()).unwrap(), sleeps(stranger.id()).unwrap());
        let family = Family::of(daemon.id(), folder.path());
        assert_eq!(named(&family.left(), "sleep"), [escaped]);
        kill(&mut daemon);
        assert_eq!(named(&family.left(), "sleep"), [escaped], "without its parent, too");
        assert_eq!(left_in(folder.path()), Vec::<String>::new(), "the folder does not tell");
        kill(&mut stranger);
        unsafe { libc::kill(other, libc::SIGKILL) };
        unsafe { libc::kill(escaped, libc::SIGKILL) };
        family.wait_gone();
    }

    /// What was born after the last look is found by its parent's session.
    #[test]
    fn who_was_born_after_the_last_look_is_found() {
        let folder = tempfile::tempdir().expect("folder");
        let script = "setsid sh -c 'cd /; until [ -e \"$0/go\" ]; do sleep 0.01; done; \
                      sleep 77773 & exit' \"$PWD\" & wait; sleep 77774";
        let mut daemon = shell(script, folder.path());
        let leader = |daemon: u32| {
            let all = processes();
            let leads = |one: &&Process| one.parent == daemon && one.session == one.pid;
            all.values().find(leads).map(|one| one.pid)
        };
        until("a session", || leader(daemon.id()).is_some());
        let leader = leader(daemon.id()).unwrap();
        let mut family = Family::of(daemon.id(), folder.path());
        family.look();
        kill(&mut daemon);
        fs::write(folder.path().join("go"), "").expect("go");
        until("the leader ends", || Process::of(leader).is_none_or(|one| !one.alive));
        let left = named(&family.left(), "sleep");
        assert_eq!(left.len(), 1, "{:?}", family.left());
        unsafe { libc::kill(left[0], libc::SIGKILL) };
        family.wait_gone();
    }

    /// A process in a pid namespace of the family, and nobody above it.
    #[test]
    fn who_is_in_a_namespace_of_the_family_is_found() {
        if !rustix::process::geteuid().is_root() {
            return crate::skipped("only root makes pid namespaces without users");
        }
        let folder = tempfile::tempdir().expect("folder");
        // The first process inside lives on without the one that made it.
        let script = "unshare --pid --fork sh -c 'cd /; setsid sleep 77775 & wait; wait' & wait";
        let mut daemon = shell(script, folder.path());
        let inside = |family: &Family| named(&family.left(), "sleep");
        until("somebody inside", || inside(&Family::of(daemon.id(), folder.path())).len() == 1);
        let family = Family::of(daemon.id(), folder.path());
        let sleep = inside(&family)[0] as u32;
        let init = Process::of(sleep).expect("sleep").parent;
        let unshare = Process::of(init).expect("init").parent;
        kill(&mut daemon);
        unsafe { libc::kill(unshare as i32, libc::SIGKILL) };
        until("init is an orphan", || Process::of(init).expect("init").parent != unshare);
        assert_eq!(inside(&family), [sleep as i32]);
        assert_eq!(family.left().len(), 2, "{:?}", family.left());
        unsafe { libc::kill(init as i32, libc::SIGKILL) };
        family.wait_gone();
    }

    #[test]
    fn ancestors_are_found_by_their_names() {
        let name = Process::of(std::process::id()).expect("own").name;
        assert_eq!(ancestor(std::process::id(), &name), Some(std::process::id()));
        assert_eq!(ancestor(std::process::id(), "no-such-name"), None);
    }
}
