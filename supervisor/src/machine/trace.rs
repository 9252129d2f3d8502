//! Listens to the system calls of a traced plugin (seccomp user notification):
//! each call waits for us, is noted, and goes on as if nobody had looked. For
//! `stockade trace`; the plugin runs unconfined meanwhile.
#![allow(unsafe_code)]

use std::{
    collections::BTreeMap,
    fs::File,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::FileExt as _,
    },
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::libc;
use rustix::event::{PollFd, PollFlags, poll};
use syscalls::Sysno;

/// Where a call keeps a path: the argument of a directory descriptor, if it has
/// one, and that of the path.
type PathAt = (Option<usize>, usize);

/// How a call touches files.
enum Touch {
    /// The flags are this argument.
    Open(PathAt, usize),
    /// The flags are in memory (openat2).
    OpenHow(PathAt, usize),
    /// Reads, or executes.
    Read(PathAt),
    /// Changes these.
    Change(&'static [PathAt]),
    /// The family of a new socket.
    Socket,
    /// An address to connect to.
    Connect,
}

/// The calls that are looked at besides those that the filter would refuse.
fn table() -> Vec<(Sysno, Touch)> {
    use Touch::{Change, Connect, Open, OpenHow, Read, Socket};
    let mut table = vec![
        (Sysno::openat, Open((Some(0), 1), 2)),
        (Sysno::openat2, OpenHow((Some(0), 1), 2)),
        (Sysno::execve, Read((None, 0))),
        (Sysno::execveat, Read((Some(0), 1))),
        (Sysno::truncate, Change(&[(None, 0)])),
        (Sysno::unlinkat, Change(&[(Some(0), 1)])),
        (Sysno::mkdirat, Change(&[(Some(0), 1)])),
        (Sysno::mknodat, Change(&[(Some(0), 1)])),
        (Sysno::fchmodat, Change(&[(Some(0), 1)])),
        (Sysno::fchownat, Change(&[(Some(0), 1)])),
        (Sysno::renameat2, Change(&[(Some(0), 1), (Some(2), 3)])),
        (Sysno::symlinkat, Change(&[(Some(1), 2)])),
        (Sysno::linkat, Change(&[(Some(2), 3)])),
        (Sysno::socket, Socket),
        (Sysno::connect, Connect),
    ];
    #[cfg(target_arch = "x86_64")]
    table.extend([
        (Sysno::open, Open((None, 0), 1)),
        (Sysno::creat, Change(&[(None, 0)])),
        (Sysno::unlink, Change(&[(None, 0)])),
        (Sysno::mkdir, Change(&[(None, 0)])),
        (Sysno::rmdir, Change(&[(None, 0)])),
        (Sysno::mknod, Change(&[(None, 0)])),
        (Sysno::chmod, Change(&[(None, 0)])),
        (Sysno::chown, Change(&[(None, 0)])),
        (Sysno::rename, Change(&[(None, 0), (None, 1)])),
        (Sysno::renameat, Change(&[(Some(0), 1), (Some(2), 3)])),
        (Sysno::symlink, Change(&[(None, 1)])),
        (Sysno::link, Change(&[(None, 1)])),
    ]);
    table
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Files by path; true = changed.
    pub files: BTreeMap<PathBuf, bool>,
    /// Addresses beyond loopback were connected to, or sockets for them made
    /// without a connect.
    pub internet: bool,
    /// Only loopback was.
    pub loopback: bool,
    /// Calls that a sandbox refuses, and how often.
    pub refused: BTreeMap<String, u64>,
    /// All calls looked at.
    pub calls: u64,
}

/// Notes the calls of every process that is attached. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Tracer {
    observed: Arc<Mutex<Observed>>,
}

impl Tracer {
    /// What was seen so far.
    pub fn observed(&self) -> Observed {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Observed> {
        self.observed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers of the calls to be told of.
    pub(crate) fn calls() -> Vec<u32> {
        table().iter().map(|(call, _)| call.id() as u32).collect()
    }

    /// Listens until the processes behind the descriptor are gone.
    pub(crate) fn attach(&self, listener: OwnedFd) {
        let tracer = self.clone();
        let _ = std::thread::Builder::new().name("trace".into()).spawn(move || {
            let table: BTreeMap<i32, Touch> =
                table().into_iter().map(|(call, touch)| (call.id(), touch)).collect();
            while let Some(request) = next(&listener) {
                tracer.note(&request, &table);
                go_on(&listener, request.id);
            }
        });
    }

    fn note(&self, request: &libc::seccomp_notif, table: &BTreeMap<i32, Touch>) {
        let process = Process::of(request.pid);
        let arguments = request.data.args;
        let mut files = Vec::new();
        let mut observed = self.lock();
        observed.calls += 1;
        match table.get(&request.data.nr) {
            Some(Touch::Open(place, flags)) => {
                files.push(opened(process.path(&arguments, *place), arguments[*flags]));
            }
            Some(Touch::OpenHow(place, how)) => {
                let flags = process.word(arguments[*how]);
                files.push(opened(process.path(&arguments, *place), flags));
            }
            Some(Touch::Read(place)) => files.push((process.path(&arguments, *place), false)),
            Some(Touch::Change(places)) => {
                files.extend(
                    places.iter().map(|place| (folder(process.path(&arguments, *place)), true)),
                );
            }
            Some(Touch::Socket) => match arguments[0] as i32 {
                libc::AF_UNIX => {}
                libc::AF_INET | libc::AF_INET6 | libc::AF_NETLINK => observed.loopback = true,
                other => {
                    *observed.refused.entry(format!("socket (family {other})")).or_default() += 1
                }
            },
            Some(Touch::Connect) => match process.address(arguments[1], arguments[2]) {
                Address::Path(path) => files.push((Some(path), false)),
                Address::Loopback => observed.loopback = true,
                Address::Internet => observed.internet = true,
                Address::Other => {}
            },
            None => {
                let name = Sysno::new(request.data.nr as usize).map_or_else(
                    || format!("number {}", request.data.nr),
                    |call| call.name().into(),
                );
                *observed.refused.entry(name).or_default() += 1;
            }
        }
        for (path, write) in files {
            if let Some(path) = path {
                let known = observed.files.entry(path).or_default();
                *known |= write;
            }
        }
    }
}

/// A file that is opened, and whether to change it; one that is made changes its
/// folder.
fn opened(path: Option<PathBuf>, flags: u64) -> (Option<PathBuf>, bool) {
    let flags = flags as i32;
    if flags & libc::O_CREAT != 0 {
        return (folder(path), true);
    }
    (path, flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0)
}

fn folder(path: Option<PathBuf>) -> Option<PathBuf> {
    path.map(|path| path.parent().unwrap_or(&path).to_owned())
}

enum Address {
    Path(PathBuf),
    Loopback,
    Internet,
    Other,
}

/// The process that waits for us, as /proc shows it.
struct Process {
    pid: u32,
    memory: Option<File>,
}

impl Process {
    fn of(pid: u32) -> Self {
        Process { pid, memory: File::open(format!("/proc/{pid}/mem")).ok() }
    }

    fn read(&self, address: u64, size: usize) -> Vec<u8> {
        let mut bytes = vec![0; size];
        let read = self.memory.as_ref().and_then(|memory| memory.read_at(&mut bytes, address).ok());
        bytes.truncate(read.unwrap_or(0));
        bytes
    }

    fn word(&self, address: u64) -> u64 {
        let bytes = self.read(address, 8);
        bytes.try_into().map_or(0, u64::from_ne_bytes)
    }

    /// Absolute; None when it cannot be read.
    fn path(&self, arguments: &[u64; 6], (directory, path): PathAt) -> Option<PathBuf> {
        // In two steps: a path may end just before memory does.
        let start = arguments[path];
        let to_page_end = 4096 - (start % 4096) as usize;
        let mut bytes = self.read(start, to_page_end);
        if !bytes.contains(&0) {
            bytes.extend(self.read(start + to_page_end as u64, 4096));
        }
        let end = bytes.iter().position(|byte| *byte == 0)?;
        let path = PathBuf::from(String::from_utf8_lossy(&bytes[..end]).into_owned());
        if path.is_absolute() {
            return Some(path);
        }
        let base = match directory.map(|argument| arguments[argument] as i32) {
            None | Some(libc::AT_FDCWD) => format!("/proc/{}/cwd", self.pid),
            Some(fd) => format!("/proc/{}/fd/{fd}", self.pid),
        };
        Some(std::fs::read_link(base).ok()?.join(path))
    }

    fn address(&self, address: u64, size: u64) -> Address {
        let bytes = self.read(address, (size as usize).min(128));
        let Some(family) = bytes.first_chunk::<2>() else { return Address::Other };
        match i32::from(u16::from_ne_bytes(*family)) {
            libc::AF_UNIX if bytes.len() > 2 && bytes[2] != 0 => {
                let path = &bytes[2..];
                let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
                let path = PathBuf::from(String::from_utf8_lossy(&path[..end]).into_owned());
                if path.is_absolute() { Address::Path(path) } else { Address::Other }
            }
            libc::AF_INET if bytes.len() >= 8 && bytes[4] == 127 => Address::Loopback,
            libc::AF_INET6 if bytes.len() >= 24 && bytes[8..24] == LOOPBACK => Address::Loopback,
            libc::AF_INET | libc::AF_INET6 => Address::Internet,
            _ => Address::Other,
        }
    }
}

const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];

/// `_IOWR('!', number, size)`
const fn request(number: u64, size: usize) -> u64 {
    3 << 30 | (size as u64) << 16 | (b'!' as u64) << 8 | number
}

/// The next call that waits; None when nobody is left to make one.
fn next(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    loop {
        let mut fds = [PollFd::new(listener, PollFlags::IN)];
        poll(&mut fds, None).ok();
        let events = fds[0].revents();
        if events.contains(PollFlags::IN) {
            // SAFETY: zeroed is what the kernel demands of the buffer that it
            // fills; its size is that of the request's number.
            let (result, notification) = unsafe {
                let mut notification: libc::seccomp_notif = std::mem::zeroed();
                let number = request(0, size_of::<libc::seccomp_notif>());
                (libc::ioctl(listener.as_raw_fd(), number as _, &mut notification), notification)
            };
            // A caller that was killed while it waited is none.
            if result == 0 {
                return Some(notification);
            }
        } else if !events.is_empty() {
            return None;
        }
    }
}

/// The call is made as if nobody had looked.
fn go_on(listener: &OwnedFd, id: u64) {
    let answer = libc::seccomp_notif_resp {
        id,
        val: 0,
        error: 0,
        flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
    };
    // SAFETY: the kernel only reads the answer, whose size the number carries.
    unsafe {
        let number = request(1, size_of::<libc::seccomp_notif_resp>());
        libc::ioctl(listener.as_raw_fd(), number as _, &answer);
    }
}

/// Without `.` and `..`, as far as that can be said without the file system.
pub fn plain(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}
