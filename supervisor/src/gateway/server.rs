//! Opens the port and the socket and serves gRPC and HTTP on both.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use axum::http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use stockade_proto::v1::tools_server::ToolsServer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tonic::{body::Body, service::Routes};
use tower::{Service as _, ServiceExt as _};
use tracing::{debug, warn};

use super::{
    door::{self, Caller, NoToken},
    grpc::{self, ToolsService},
    http, tls,
};
use crate::{Supervisor, config::Token};

/// A client has this long to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent HTTP/2 peer is asked, and dropped when it does not answer.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(20));
/// Calls at once on one HTTP/2 connection.
const MAX_STREAMS: u32 = 1024;
/// Where the path of calls begins.
const TOOLS: &str = "/stockade.v1.Tools/";

/// The open doors. The socket's file goes when this is dropped.
#[derive(Debug)]
pub struct Doors {
    /// The port, if one is open.
    pub address: Option<SocketAddr>,
    /// The socket.
    pub socket: PathBuf,
    tasks: Vec<tokio::task::JoinHandle<()>>,
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
    let house = House {
        tools: grpc::tools(supervisor),
        grpc: grpc::routes(supervisor),
        http: http::router(supervisor),
        allowed_hosts: config.allowed_hosts.clone().into(),
        tokens: config.tokens.clone().into(),
        connections: Arc::new(Semaphore::new(config.max_connections)),
    };
    let mut tasks = Vec::new();
    let socket = bind_socket(&config.socket).await?;
    tasks.push(tokio::spawn(serve_socket(socket, house.clone())));
    let mut address = None;
    let tls = tls::acceptor(&config)?;
    if let Some(wanted) = config.listen {
        let listener = TcpListener::bind(wanted).await.map_err(|error| {
            let text = format!("cannot listen on {wanted}: {error}; choose another with --listen");
            io::Error::new(error.kind(), text)
        })?;
        address = Some(listener.local_addr()?);
        tasks.push(tokio::spawn(serve_port(listener, house, tls)));
    }
    Ok(Doors { address, socket: config.socket.clone(), tasks })
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
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
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

/// Everything that answers. One clone per connection.
#[derive(Clone)]
struct House {
    tools: ToolsServer<ToolsService>,
    grpc: Routes,
    http: axum::Router,
    allowed_hosts: Arc<[String]>,
    tokens: Arc<[Token]>,
    connections: Arc<Semaphore>,
}

impl House {
    /// Room for one more connection.
    fn place(&self) -> Option<OwnedSemaphorePermit> {
        let place = self.connections.clone().try_acquire_owned().ok();
        if place.is_none() {
            debug!("too many connections: one was closed");
        }
        place
    }

    async fn answer(self, mut request: Request<Incoming>, caller: Caller) -> Response<Body> {
        let is_grpc = request
            .headers()
            .get(header::CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
        let mut caller = caller;
        if matches!(caller, Caller::Port) {
            if let Err(refused) = door::check(&request, &self.allowed_hosts) {
                return refuse(is_grpc, StatusCode::FORBIDDEN, &refused.0);
            }
            caller = match door::identify(&request, &self.tokens) {
                Ok(caller) => caller,
                Err(NoToken::Unknown(why)) => {
                    return refuse(is_grpc, StatusCode::UNAUTHORIZED, &why);
                }
                Err(NoToken::Forbidden(why)) => {
                    return refuse(is_grpc, StatusCode::FORBIDDEN, &why);
                }
            };
        }
        if is_grpc && request.uri().path().starts_with(TOOLS) {
            return or_never(self.tools.oneshot(request).await);
        }
        request.extensions_mut().insert(caller);
        if is_grpc {
            return or_never(self.grpc.oneshot(request.map(Body::new)).await);
        }
        let mut http = self.http;
        or_never(http.call(request.map(axum::body::Body::new)).await).map(Body::new)
    }
}

fn or_never<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}

fn refuse(is_grpc: bool, status: StatusCode, why: &str) -> Response<Body> {
    if is_grpc {
        let refused = match status {
            StatusCode::UNAUTHORIZED => tonic::Status::unauthenticated(why),
            _ => tonic::Status::permission_denied(why),
        };
        return refused.into_http();
    }
    let body = serde_json::json!({ "detail": why }).to_string();
    let mut response = Response::new(Body::new(axum::body::Body::from(body)));
    *response.status_mut() = status;
    if status == StatusCode::UNAUTHORIZED {
        let bearer = header::HeaderValue::from_static("Bearer realm=\"stockade\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
    }
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

async fn serve_port(listener: TcpListener, house: House, tls: Option<TlsAcceptor>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                let Some(place) = house.place() else { continue };
                match &tls {
                    None => serve(stream, house.clone(), Caller::Port, place),
                    Some(tls) => {
                        let (shaking, house) = (tls.accept(stream), house.clone());
                        tokio::spawn(async move {
                            match tokio::time::timeout(HEADER_TIMEOUT, shaking).await {
                                Ok(Ok(stream)) => serve(stream, house, Caller::Port, place),
                                Ok(Err(error)) => debug!("no TLS: {error}"),
                                Err(_) => debug!("a TLS handshake took too long"),
                            }
                        });
                    }
                }
            }
            Err(error) => rest(&error).await,
        }
    }
}

async fn serve_socket(listener: UnixListener, house: House) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let caller = Caller::Socket(peer(&stream).into());
                if let Some(place) = house.place() {
                    serve(stream, house.clone(), caller, place);
                }
            }
            Err(error) => rest(&error).await,
        }
    }
}

/// Out of descriptors, most likely: others must end first.
async fn rest(error: &io::Error) {
    warn!("cannot accept a connection: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// `root`, or `uid 1000`.
fn peer(stream: &UnixStream) -> String {
    match stream.peer_cred() {
        Ok(peer) => nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(peer.uid()))
            .ok()
            .flatten()
            .map_or_else(|| format!("uid {}", peer.uid()), |user| user.name),
        Err(_) => "an unknown user".to_owned(),
    }
}

/// One connection, HTTP/1 or HTTP/2.
fn serve<I>(stream: I, house: House, caller: Caller, place: OwnedSemaphorePermit)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A peer on the socket hangs up when it is gone; one on the port may vanish.
    let keep_alive = matches!(caller, Caller::Port).then_some(KEEP_ALIVE.0);
    tokio::spawn(async move {
        let _place = place;
        let service = hyper::service::service_fn(move |request| {
            let (house, caller) = (house.clone(), caller.clone());
            // Boxed: hyper moves the future several times, and it is large.
            Box::pin(async move { Ok::<_, Infallible>(house.answer(request, caller).await) })
        });
        let mut builder = Builder::new(TokioExecutor::new());
        builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_STREAMS)
            .max_pending_accept_reset_streams(64)
            .keep_alive_interval(keep_alive)
            // gRPC has no use for it, and a call's head is half its bytes.
            .auto_date_header(false)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(16 << 20)
            .max_frame_size(256 << 10);
        if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
            debug!("a connection ended: {error}");
        }
    });
}
