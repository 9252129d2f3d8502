//! A plugin's process whose channels the fuzz target holds: the target's own program,
//! started by the daemon, hands its descriptors over and sleeps.

use std::{
    fs, io,
    io::{IoSlice, IoSliceMut, Read as _},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::{
            fs::PermissionsExt as _,
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, mpsc},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use stockade::plugin::Command;

use crate::house::{self, House};

/// The plugin's name.
pub const NAME: &str = "puppet";
/// Names the socket where the target waits.
const SOCKET: &str = "STOCKADE_PUPPET";

/// Where processes of the puppet announce themselves.
pub struct Stage(Mutex<mpsc::Receiver<Puppet>>);

/// One process. It ends when this is dropped.
pub struct Puppet {
    /// Descriptor 3: the supervisor calls.
    pub channel: OwnedFd,
    /// Descriptor 4: the host answers.
    pub host: OwnedFd,
    _control: UnixStream,
}

/// To be called first in a target: in a process that the daemon has started it does
/// not come back.
pub fn play() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let _ = hand_over(&PathBuf::from(path));
    std::process::exit(0);
}

fn hand_over(path: &Path) -> io::Result<()> {
    let mut control = UnixStream::connect(path)?;
    // SAFETY: the launcher leaves both descriptors open in a plugin, and nobody here
    // closes them.
    let channels = unsafe { [BorrowedFd::borrow_raw(3), BorrowedFd::borrow_raw(4)] };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    rights.push(SendAncillaryMessage::ScmRights(&channels));
    sendmsg(control.as_fd(), &[IoSlice::new(b"x")], &mut rights, SendFlags::empty())?;
    // Until the target lets go.
    control.read_to_end(&mut Vec::new()).map(drop)
}

fn take(control: UnixStream) -> io::Result<Puppet> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut rights = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(control.as_fd(), &mut [IoSliceMut::new(&mut byte)], &mut rights, RecvFlags::empty())?;
    let mut taken = rights.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => rights.collect(),
        _ => Vec::new(),
    });
    let (Some(channel), Some(host)) = (taken.next(), taken.next()) else {
        return Err(io::Error::other("no descriptors"));
    };
    drop(taken);
    Ok(Puppet { channel, host, _control: control })
}

impl Stage {
    /// The socket in this folder, and the plugin.
    ///
    /// # Panics
    /// They cannot be made.
    pub fn set(plugins: &Path) -> Self {
        let path = plugins.parent().expect("parent").join("stage");
        let listener = UnixListener::bind(&path).expect("socket");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).expect("permissions");
        let more = format!(
            "env = {{ {SOCKET} = \"{}\" }}\nconcurrency = 4\n\
             [restart]\nbackoff_min = \"1ms\"\nbackoff_max = \"5ms\"\nmax_deaths = 1000000\n\
             [timeouts]\ninit = \"2s\"\nstop = \"200ms\"\n[sandbox]\nprofile = \"none\"\n\
             [permissions]\nrequest = [\"*\"]",
            path.display()
        );
        let own = std::env::current_exe().expect("own path");
        house::plugin(plugins, NAME, &own, &more);
        let (sender, receiver) = mpsc::sync_channel(64);
        std::thread::spawn(move || {
            for control in listener.incoming().flatten() {
                if let Ok(puppet) = take(control) {
                    let _ = sender.send(puppet);
                }
            }
        });
        Stage(Mutex::new(receiver))
    }

    /// A fresh process.
    ///
    /// # Panics
    /// The daemon does not start it any more.
    pub fn next(&self, house: &House) -> Puppet {
        let processes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of earlier inputs go.
        while processes.try_recv().is_ok() {}
        house.command(NAME, Command::Restart("the fuzz target".into()));
        processes.recv_timeout(Duration::from_secs(20)).unwrap_or_else(|_| {
            let snapshot = house.supervisor.plugin(NAME).map(|handle| handle.snapshot());
            panic!("the puppet is not started any more: {snapshot:?}")
        })
    }
}
