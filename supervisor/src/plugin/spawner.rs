//! The one thread that starts launchers. It never exits: a launcher's parent
//! is the thread that spawned it, and its death would be the launcher's.

use std::{
    io,
    os::fd::OwnedFd,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
};

use tokio::sync::oneshot;

use super::launchers;

/// A launcher to be started: the program and its three standard descriptors.
struct Request {
    program: PathBuf,
    stdin: OwnedFd,
    stdout: OwnedFd,
    stderr: OwnedFd,
    reply: oneshot::Sender<io::Result<Child>>,
}

/// Handle of the spawning thread.
#[derive(Clone, Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("program", &self.program).finish_non_exhaustive()
    }
}

impl Spawner {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system refuses another thread.
    pub fn start() -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel::<Request>();
        std::thread::Builder::new().name("spawner".into()).spawn(move || {
            for request in inbox {
                let mut command = Command::new(&request.program);
                // posix_spawn: no pre_exec, an empty environment.
                command
                    .env_clear()
                    .stdin(Stdio::from(request.stdin))
                    .stdout(Stdio::from(request.stdout))
                    .stderr(Stdio::from(request.stderr));
                let _ = request.reply.send(launchers::start(&mut command));
            }
            // The daemon is ending; its children must not go before it says so.
            std::thread::park();
        })?;
        Ok(Spawner { requests })
    }

    /// Starts one launcher.
    ///
    /// # Errors
    /// The program cannot be executed or the machine refuses another process.
    pub(super) async fn spawn(
        &self,
        program: PathBuf,
        stdin: OwnedFd,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> io::Result<Child> {
        let (reply, answer) = oneshot::channel();
        let gone = || io::Error::other("the spawning thread is gone");
        self.requests
            .send(Request { program, stdin, stdout, stderr, reply })
            .map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}
