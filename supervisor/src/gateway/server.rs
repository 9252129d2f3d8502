//! Opens the port and the socket and serves gRPC and HTTP on both.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use stockade_proto::socket::Socket;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, warn};

use super::{
    connection::{Place, Places, Verdict},
    door::Caller,
    grpc,
    hangup::Shared,
    house::{Guest, House},
    http,
    questions::Questions,
    texts::Reader,
    tls,
    traffic::Counted,
    watch::Watch,
};
use crate::{
    Supervisor,
    capacity::{Turns, limits},
};

/// Between two looks at a connection that goes.
const LOOK: Duration = Duration::from_millis(20);

/// The open doors. The socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Doors {
    /// The port, if one is open.
    pub address: Option<SocketAddr>,
    /// The socket.
    pub socket: PathBuf,
    house: Arc<House>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    ending: watch::Sender<bool>,
}

impl Doors {
    /// Nobody comes in any more. What has been answered is sent, streams end with a status,
    /// connections with a good-bye; who takes less than a step of it in a second is left, and
    /// at the deadline everybody.
    pub async fn close(self, deadline: Instant) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
        self.ending.send_replace(true);
        let mut open = self.house.open.subscribe();
        let _ = tokio::time::timeout_at(deadline.into(), open.wait_for(|open| *open == 0)).await;
    }

    /// A way for the daemon to ask itself.
    pub fn within(&self) -> Within {
        Within(self.house.clone())
    }
}

/// Connects the daemon to itself: by the same runtime and the same routes as everybody's,
/// in nobody's queue.
#[derive(Debug)]
pub struct Within(Arc<House>);

impl Within {
    /// A connection.
    ///
    /// # Errors
    /// The system refuses a pair of sockets.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let caller = Caller::Socket("the daemon itself".into());
        if let Some(place) = Places::new(1, 0).take() {
            serve(Socket::new(theirs.into_std()?)?, self.0.clone(), caller, place);
        }
        Ok(ours)
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Opens the doors that the configuration names and serves on the current
/// runtime, which is also the one that carries the calls.
///
/// # Errors
/// An address is in use or not ours, or the socket's folder cannot be made.
pub async fn open(supervisor: &Supervisor) -> io::Result<Doors> {
    let config = supervisor.config();
    let watch = Watch::new(supervisor);
    let (ending, ends) = watch::channel(false);
    let house = Arc::new(House {
        ending: ends,
        registry: supervisor.registry().watch(),
        open: Arc::new(watch::Sender::new(0)),
        tools: grpc::tools(supervisor),
        grpc: grpc::routes(supervisor, &watch),
        http: http::router(supervisor, &watch),
        allowed_hosts: config.allowed_hosts.clone().into(),
        tokens: config.tokens.clone().into(),
        budget: supervisor.budget().clone(),
        crew: supervisor.calls().crew().clone(),
        max_request: config.max_request,
    });
    let mut tasks = Vec::new();
    let socket = bind_socket(&config.socket).await?;
    // Counted apart: whoever fills the port shuts out no operator.
    let places = Places::new(limits::SOCKET_CONNECTIONS, limits::SOCKET_RESERVE);
    tasks.push(tokio::spawn(serve_socket(socket, house.clone(), places)));
    let mut address = None;
    let tls = tls::acceptor(&config)?;
    if let Some(wanted) = config.listen {
        let listener = TcpListener::bind(wanted).await.map_err(|error| {
            let text = format!("cannot listen on {wanted}: {error}; choose another with --listen");
            io::Error::new(error.kind(), text)
        })?;
        address = Some(listener.local_addr()?);
        let places = Places::new(config.max_connections, limits::HEALTH_CONNECTIONS);
        tasks.push(tokio::spawn(serve_port(listener, house.clone(), tls, places)));
    }
    Ok(Doors { address, socket: config.socket.clone(), house, tasks, ending })
}

/// Mode 0600. The file of a daemon that is gone is replaced; one that answers
/// is not.
async fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    let failed = |error: io::Error| {
        let text = format!(
            "cannot open the socket {}: {error}; choose another with --socket",
            path.display()
        );
        io::Error::new(error.kind(), text)
    };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    if UnixStream::connect(path).await.is_ok() {
        return Err(failed(io::Error::new(
            io::ErrorKind::AddrInUse,
            "another daemon answers on it",
        )));
    }
    // What a daemon that was killed has left; nothing else is anybody's to remove.
    match std::fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => {
            std::fs::remove_file(path).map_err(failed)?;
        }
        Ok(_) => {
            let text = "there is something else, which is no socket. Move it away, or choose \
                        another path for the socket";
            return Err(failed(io::Error::new(io::ErrorKind::AlreadyExists, text)));
        }
        Err(_) => {}
    }
    let place = path.to_owned();
    // A thread of its own: a mask is every thread's, unless it has left them.
    let bound = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS)?;
        // Never open to others, not even for a moment.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = std::os::unix::net::UnixListener::bind(place)?;
        listener.set_nonblocking(true)?;
        Ok::<_, io::Error>(listener)
    });
    let bound = bound.join().map_err(|_| io::Error::other("the binding thread ended"));
    let listener =
        bound.and_then(|bound| bound).and_then(UnixListener::from_std).map_err(failed)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(listener)
}

/// One connection, until it is dropped.
struct Open(Arc<watch::Sender<usize>>);

impl Open {
    fn new(open: &Arc<watch::Sender<usize>>) -> Self {
        open.send_modify(|open| *open += 1);
        Open(open.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

async fn serve_port(
    listener: TcpListener,
    house: Arc<House>,
    tls: Option<TlsAcceptor>,
    places: Arc<Places>,
) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let Some(place) = places.take() else {
                    debug!("too many connections: one was closed");
                    continue;
                };
                match &tls {
                    None => serve(stream, house.clone(), Caller::Port, place),
                    Some(tls) => {
                        let shaking = tls.accept(Turns::one_by_one(stream));
                        let house = house.clone();
                        tokio::spawn(async move {
                            tokio::select! {
                                shaken = shaking => match shaken {
                                    Ok(mut stream) => {
                                        stream.get_mut().0.go_on();
                                        serve(stream, house, Caller::Port, place);
                                    }
                                    Err(error) => debug!("no TLS: {error}"),
                                },
                                _ = place.connection.left() => {
                                    debug!("a TLS handshake took too long, or made room");
                                }
                            }
                        });
                    }
                }
            }
            Err(error) => rest(&error).await,
        }
        // A thousand that come at once are not taken at once: others have their turn.
        tokio::task::yield_now().await;
    }
}

async fn serve_socket(listener: UnixListener, house: Arc<House>, places: Arc<Places>) {
    let names = Names::new();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if let Some(place) = places.take() {
                    let (house, names) = (house.clone(), names.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            name = names.of(&stream) => {
                                match stream.into_std().and_then(Socket::new) {
                                    Ok(stream) => {
                                        serve(stream, house, Caller::Socket(name), place);
                                    }
                                    Err(error) => warn!("cannot serve a connection: {error}"),
                                }
                            }
                            _ = place.connection.left() => {}
                        }
                    });
                }
            }
            Err(error) => rest(&error).await,
        }
        tokio::task::yield_now().await;
    }
}

/// Out of descriptors, most likely: others must end first.
async fn rest(error: &io::Error) {
    warn!("cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// Names of users who have come before: a directory of users may be slow to ask, and is
/// asked for one at a time.
#[derive(Clone, Debug)]
struct Names {
    known: Arc<Mutex<HashMap<u32, Arc<str>>>>,
    asking: Arc<Semaphore>,
}

impl Names {
    /// Names that are kept.
    const MOST: usize = 256;
    /// Without an answer the number has to do.
    const PATIENCE: Duration = Duration::from_secs(1);

    fn new() -> Self {
        Names { known: Arc::default(), asking: Arc::new(Semaphore::new(1)) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u32, Arc<str>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `root`, or `uid 1000`.
    async fn of(&self, stream: &UnixStream) -> Arc<str> {
        let Ok(peer) = stream.peer_cred() else { return "an unknown user".into() };
        let uid = peer.uid();
        if let Some(name) = self.known().get(&uid) {
            return name.clone();
        }
        let asking = self.asking.clone();
        let look = async move {
            let turn = asking.acquire_owned().await.ok()?;
            let look = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)).ok().flatten()
            });
            look.await.ok().flatten()
        };
        let found = tokio::time::timeout(Self::PATIENCE, look).await.ok().flatten();
        let Some(user) = found else { return format!("uid {uid}").into() };
        let name: Arc<str> = user.name.into();
        let mut known = self.known();
        if known.len() >= Self::MOST {
            known.clear();
        }
        known.insert(uid, name.clone());
        name
    }
}

/// Both, with their bounds.
fn protocols(keep_alive: Option<Duration>) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // The connection keeps its own times.
        .header_read_timeout(None)
        .max_headers(limits::HEADER_LINES)
        .max_buf_size(limits::STEP);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits::STREAMS as u32)
        .max_pending_accept_reset_streams(limits::RESETS)
        // Those that are not much too long are refused with a sentence.
        .max_header_list_size(4 * limits::HEADERS as u32)
        .keep_alive_interval(keep_alive)
        // gRPC has no use for it, and a call's head is half its bytes.
        .auto_date_header(false)
        .keep_alive_timeout(limits::PONG)
        // Of calls, as much as a request is charged for may be there when its charge has gone.
        .max_send_buf_size(limits::REQUEST)
        .initial_stream_window_size(limits::WINDOW as u32)
        .initial_connection_window_size(limits::WINDOW as u32)
        .max_frame_size(limits::HTTP2_FRAME as u32);
    builder
}

/// One connection, HTTP/1 or HTTP/2.
fn serve<I>(stream: I, house: Arc<House>, caller: Caller, place: Place)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A peer on the socket hangs up when it is gone; one on the port may vanish.
    let is_port = matches!(caller, Caller::Port);
    let keep_alive = is_port.then_some(limits::SILENT);
    let account = match is_port {
        true => house.budget.of_connection(),
        false => house.budget.of_operator(),
    };
    let connection = place.connection.clone();
    let guest = Arc::new(Guest {
        caller,
        connection: connection.clone(),
        account: account.clone(),
        reserve: place.reserve,
        questions: Questions::new(),
        reader: Reader::new(Some(account)),
    });
    let (open, mut ending) = (Open::new(&house.open), house.ending.clone());
    tokio::spawn(async move {
        let _open = open;
        let stream = Shared::new(stream);
        let io = Counted::new(stream.clone(), connection.clone());
        let service =
            hyper::service::service_fn(move |request| house.clone().ask(guest.clone(), request));
        let builder = protocols(keep_alive);
        let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
        let leaving = connection.clone();
        // A task of its own: whatever is waited for here is looked at for every message.
        let mut kept = tokio::spawn(async move {
            tokio::select! {
                verdict = connection.left() => verdict,
                _ = ending.wait_for(|ending| *ending) => Verdict::Idle,
            }
        });
        let verdict = tokio::select! {
            biased;
            ended = serving.as_mut() => {
                kept.abort();
                if let Err(error) = ended {
                    debug!("a connection ended: {error}");
                }
                return;
            }
            verdict = &mut kept => verdict.unwrap_or(Verdict::Stuck),
            () = stream.gone(&leaving) => {
                kept.abort();
                debug!("a client has gone before it was answered");
                return;
            }
        };
        let (mut parting, mut taken) = (verdict == Verdict::Idle, leaving.taken());
        let (mut since, mut is_told) = (Instant::now(), false);
        while parting {
            // HTTP/2 says good-bye, so that no request is lost. Of HTTP/1 hyper forgets
            // what it has not written yet.
            if !is_told && leaving.may_be_told() {
                serving.as_mut().graceful_shutdown();
                is_told = true;
            }
            parting = tokio::time::timeout(LOOK, serving.as_mut()).await.is_err();
            if leaving.taken() - taken >= limits::STEP as u64 {
                (taken, since) = (leaving.taken(), Instant::now());
            }
            parting &= since.elapsed() < limits::PARTING;
        }
        drop(place);
    });
}
