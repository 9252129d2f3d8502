//! What a daemon tells systemd, on a socket of the test's own.

use std::{
    io,
    os::unix::net::UnixDatagram as Socket,
    path::{Path, PathBuf},
};

use tokio::net::UnixDatagram;

/// The other end of `NOTIFY_SOCKET`.
#[derive(Debug)]
pub struct Notices {
    socket: Socket,
    path: PathBuf,
}

impl Notices {
    pub(crate) fn bind(folder: &Path) -> Self {
        let path = folder.join("notices");
        let socket = Socket::bind(&path).expect("the notices' socket");
        socket.set_nonblocking(true).expect("the notices' socket");
        Notices { socket, path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes notices of its own until no more fit; how many.
    ///
    /// # Errors
    /// It cannot be written to.
    pub fn fill(&self) -> io::Result<u64> {
        let other = Socket::unbound()?;
        other.set_nonblocking(true)?;
        let mut written = 0;
        loop {
            match other.send_to(b"X_NOISE=1", &self.path) {
                Ok(_) => written += 1,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(written),
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads them on the runtime that asks.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn listen(&self) -> io::Result<Listener> {
        Ok(Listener(UnixDatagram::from_std(self.socket.try_clone()?)?))
    }
}

/// Reads what is told.
#[derive(Debug)]
pub struct Listener(UnixDatagram);

impl Listener {
    /// Forgets what has been told.
    pub fn forget(&self) {
        let mut buffer = [0; 4096];
        while self.0.try_recv(&mut buffer).is_ok() {}
    }

    /// Waits for a notice with this line, `READY=1` say.
    ///
    /// # Errors
    /// The socket cannot be read.
    pub async fn wait_for(&self, line: &str) -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let size = self.0.recv(&mut buffer).await?;
            let text = String::from_utf8_lossy(&buffer[..size]);
            if text.lines().any(|one| one == line) {
                return Ok(());
            }
        }
    }
}
