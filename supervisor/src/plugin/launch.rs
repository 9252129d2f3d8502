//! Starts a launcher with its plan and listens to what it reports.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream as StdStream,
    },
    path::Path,
    process::Child,
    sync::Arc,
};

use prost::Message as _;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
        sockopt,
    },
    pipe::{PipeFlags, pipe_with},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use stockade_proto::launch::{
    Access, KillTree, LaunchCommand, LaunchPlan as WirePlan, LaunchReport, Link, Network, Place,
    Rlimit, Sandbox, launch_command, launch_report::Report,
};
use tokio::{io::unix::AsyncFd, net::unix::pipe};

use super::{launchers, readiness, spawner::Spawner};
use crate::{
    machine::{Leaf, Tracer},
    manifest::{Net, Profile},
    preflight::{self, LaunchPlan},
};

/// Large messages go out in one flight.
const SOCKET_BUFFER: usize = 1 << 20;

/// Our ends of everything that connects to one process.
pub(super) struct Launched {
    pub(super) launcher: u32,
    pub(super) reports: Reports,
    pub(super) calls: StdStream,
    pub(super) host: StdStream,
    pub(super) notice: pipe::Receiver,
    pub(super) stdout: OwnedFd,
    pub(super) stderr: OwnedFd,
    pub(super) leaf: Option<Arc<Leaf>>,
}

/// Starts the launcher; the plan waits in its socket before it runs.
///
/// # Errors
/// Descriptors, processes or memory ran out, or the launcher is not there.
pub(super) async fn launch(
    spawner: &Spawner,
    worker: &Path,
    plan: &LaunchPlan,
    leaf: Option<Arc<Leaf>>,
) -> io::Result<Launched> {
    let pair = |kind| socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None);
    let (calls, calls_child) = pair(SocketType::STREAM)?;
    let (host, host_child) = pair(SocketType::STREAM)?;
    for socket in [&calls, &calls_child] {
        sockopt::set_socket_send_buffer_size(socket, SOCKET_BUFFER)?;
    }
    let (notice, notice_child) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stdout, stdout_child) = pipe_with(PipeFlags::CLOEXEC)?;
    let (stderr, stderr_child) = pipe_with(PipeFlags::CLOEXEC)?;
    let (launch, launch_child) = pair(SocketType::SEQPACKET)?;
    let entrance = leaf.as_ref().map(|leaf| leaf.entrance()).transpose()?;
    send_plan(&launch, plan, [&calls_child, &host_child, &notice_child], entrance.as_ref())?;
    drop((calls_child, host_child, notice_child));
    let child = spawner.spawn(worker.to_owned(), launch_child, stdout_child, stderr_child).await?;
    let launcher = child.id();
    // Reaped with the last value that holds it, whatever happens from here on.
    let reaper = Reaper { child: Some(child) };
    let stream = |fd: OwnedFd| -> io::Result<StdStream> {
        let stream = StdStream::from(fd);
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    let receiver = |fd: OwnedFd| pipe::Receiver::from_owned_fd(fd);
    rustix::io::ioctl_fionbio(&launch, true)?;
    Ok(Launched {
        launcher,
        reports: Reports { socket: readiness::watch(launch)?, _reaper: reaper },
        calls: stream(calls)?,
        host: stream(host)?,
        notice: receiver(notice)?,
        stdout,
        stderr,
        leaf,
    })
}

fn send_plan(
    socket: &OwnedFd,
    plan: &LaunchPlan,
    fds: [&OwnedFd; 3],
    entrance: Option<&OwnedFd>,
) -> io::Result<()> {
    let message = WirePlan {
        path: plan.program.display().to_string(),
        argv: plan.argv.clone(),
        env: plan.env.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        directory: plan.directory.display().to_string(),
        rlimits: rlimits(plan),
        nice: 0,
        supervisor_pid: std::process::id(),
        sandbox: sandbox(plan).filter(|_| plan.tracer.is_none()),
        trace: plan.tracer.as_ref().map(|_| Tracer::calls()).unwrap_or_default(),
    };
    let bytes = message.encode_to_vec();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = fds.into_iter().chain(entrance).map(|fd| fd.as_fd()).collect();
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    match sendmsg(socket, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(Errno::MSGSIZE) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "run.args and run.env are larger than 190 KiB together",
        )),
        Err(errno) => Err(errno.into()),
    }
}

/// None for profile none: then nothing is applied.
fn sandbox(plan: &LaunchPlan) -> Option<Sandbox> {
    let confinement = &plan.confinement;
    let granted = &confinement.granted;
    let text = |path: &Path| path.display().to_string();
    let place = |place: &preflight::Place| Place {
        path: text(&place.path),
        source: text(&place.source),
        access: match place.access {
            preflight::Access::Read => Access::Read.into(),
            preflight::Access::Write => Access::Write.into(),
            preflight::Access::Device => Access::Device.into(),
        },
        device: place.identity.0,
        inode: place.identity.1,
    };
    let network = match granted.net {
        Net::None => Network::None,
        Net::Loopback => Network::Loopback,
        Net::Host => Network::Host,
    };
    (granted.profile != Profile::None).then(|| Sandbox {
        namespaces: confinement.has("namespaces"),
        landlock: confinement.has("landlock"),
        seccomp: confinement.has("seccomp"),
        uid: confinement.uid.unwrap_or(0),
        network: network.into(),
        places: confinement.places.iter().map(place).collect(),
        links: confinement
            .links
            .iter()
            .map(|(path, target)| Link { path: text(path), target: text(target) })
            .collect(),
        scratch: confinement.scratch,
        sealed: granted.profile == Profile::Strict,
        jit: granted.jit,
        gpu: granted.gpu,
        open_files: plan.limits.open_files,
    })
}

fn rlimits(plan: &LaunchPlan) -> Vec<Rlimit> {
    let limits = &plan.limits;
    // Soft below hard for the processor, so that SIGXCPU comes before SIGKILL.
    let both =
        |resource: i32, value: u64| Rlimit { resource: resource as u32, soft: value, hard: value };
    let mut list = vec![both(7, limits.open_files), both(4, limits.core)];
    list.extend(limits.data.map(|value| both(2, value)));
    list.extend(limits.address_space.map(|value| both(9, value)));
    list.extend(limits.file_size.map(|value| both(1, value)));
    // The guard kills above the limit and says so; this holds a bomb until then.
    // Where the user is not the plugin's own it would count others, too.
    if plan.confinement.has("namespaces") || plan.confinement.uid.is_some() {
        list.push(both(6, limits.processes.saturating_mul(2).saturating_add(16)));
    }
    list.extend(limits.cpu_time.map(|value| Rlimit { resource: 0, soft: value, hard: value + 1 }));
    list
}

/// The launcher's side of the story, one report at a time.
pub(super) struct Reports {
    socket: AsyncFd<OwnedFd>,
    _reaper: Reaper,
}

/// One report and the descriptor that came with it.
pub(super) type Incoming = (Report, Option<OwnedFd>);

impl Reports {
    /// The next report; None when the launcher has hung up.
    pub(super) async fn next(&self) -> Option<Incoming> {
        loop {
            let mut ready = self.socket.readable().await.ok()?;
            match receive(self.socket.get_ref()) {
                Ok(received) => return received,
                Err(Errno::AGAIN) => ready.clear_ready(),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// A second handle to the socket, for commands.
    pub(super) fn killer(&self) -> io::Result<OwnedFd> {
        Ok(rustix::io::fcntl_dupfd_cloexec(self.socket.get_ref(), 3)?)
    }
}

fn receive(socket: &OwnedFd) -> Result<Option<Incoming>, Errno> {
    let mut buffer = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags)?;
    let fd = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let report = LaunchReport::decode(&buffer[..received.bytes]).unwrap_or_default();
    Ok(report.report.map(|report| (report, fd)))
}

/// Kills the whole tree: the main process at once, the rest by the launcher.
pub(super) fn kill_tree(killer: &OwnedFd, main: Option<&OwnedFd>) {
    if let Some(main) = main {
        let _ = pidfd_send_signal(main, Signal::KILL);
    }
    let command = LaunchCommand { command: Some(launch_command::Command::KillTree(KillTree {})) };
    let _ = rustix::net::send(killer, &command.encode_to_vec(), SendFlags::NOSIGNAL);
}

/// SIGTERM for the main process.
pub(super) fn terminate(main: &OwnedFd) {
    let _ = pidfd_send_signal(main, Signal::TERM);
}

/// Collects the launcher's exit status off the path of everything else.
struct Reaper {
    child: Option<Child>,
}

impl Drop for Reaper {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = child.id();
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            launchers::forget(pid);
            return;
        }
        let pidfd = Pid::from_raw(pid as i32)
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            .and_then(|fd| readiness::watch(fd).ok());
        match (tokio::runtime::Handle::try_current(), pidfd) {
            (Ok(runtime), Some(pidfd)) => {
                runtime.spawn(async move {
                    let _ = pidfd.readable().await;
                    // Before the wait: after it the pid may be another's.
                    launchers::forget(pid);
                    let _ = child.wait();
                });
            }
            _ => drop(std::thread::spawn(move || {
                let _ = child.wait();
                launchers::forget(pid);
            })),
        }
    }
}

/// Kills what is left below a launcher that does not get on with it.
pub(super) fn help_launcher(launcher: u32) {
    let kill = |pid: u32, signal| {
        if let Some(pid) = Pid::from_raw(pid as i32) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    };
    for pid in crate::machine::descendants(launcher) {
        kill(pid, Signal::KILL);
    }
    // It may have been stopped; it must reap.
    kill(launcher, Signal::CONT);
}
