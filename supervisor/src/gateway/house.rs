//! The house behind the doors: pays for a request, finds who answers it, and sends the
//! answer on its way.

use std::{convert::Infallible, pin::Pin, sync::Arc};

use axum::http::{HeaderValue, Method, Request, Response, StatusCode, header};
use hyper::body::Incoming;
use tokio::sync::watch;
use tonic::{body::Body, service::Routes};
use tower::{Service as _, ServiceExt as _};

use super::{
    answer::{Answer, Kind, Owner},
    body::{self, Form, Most},
    connection::Connection,
    door::{self, Caller, NoToken},
    grpc::{PROVIDED, ToolsService},
    questions::{Asked, Questions, Turn, is_question},
    refusal::{self, refuse},
    texts::Reader,
    unread::{Lent, Rest},
};
use crate::{
    capacity::{Account, Budget, Crew, limits},
    config::Token,
    registry::RegistrySnapshot,
};

/// Where the path of calls begins.
const TOOLS: &str = "/stockade.v1.Tools/";

/// Everything that answers.
pub(super) struct House {
    pub(super) tools: ToolsService,
    pub(super) grpc: Routes,
    pub(super) http: axum::Router,
    pub(super) allowed_hosts: Arc<[String]>,
    pub(super) tokens: Arc<[Token]>,
    pub(super) budget: Budget,
    pub(super) crew: Crew,
    pub(super) max_request: usize,
    pub(super) ending: watch::Receiver<bool>,
    pub(super) registry: watch::Receiver<Arc<RegistrySnapshot>>,
    /// How many connections there are.
    pub(super) open: Arc<watch::Sender<usize>>,
}

impl std::fmt::Debug for House {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("House")
    }
}

/// What one connection is to the house.
pub(super) struct Guest {
    pub(super) caller: Caller,
    pub(super) connection: Arc<Connection>,
    pub(super) account: Account,
    /// It is answered health only.
    pub(super) reserve: bool,
    pub(super) questions: Questions,
    pub(super) reader: Reader,
}

/// Streams whose messages come when they come.
const STREAMS: [&str; 2] = ["/stockade.v1.Tools/Calls", "/stockade.v1.Hosting/ServeProviders"];

impl House {
    /// Answers a request. Boxed: hyper moves the future several times, and it is large.
    pub(super) fn ask(
        self: Arc<Self>,
        guest: Arc<Guest>,
        request: Request<Incoming>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>> {
        let head = size_of_head(&request);
        let (active, rest) = (guest.connection.request(head), Rest::default());
        let request = request.map(|inner| Lent::new(inner, guest.connection.clone(), rest.clone()));
        Box::pin(async move {
            let kind = Kind {
                is_grpc: is_grpc(&request),
                is_call: is_call(request.uri().path()),
                is_health: asks_for_health(&request),
                is_head: request.method() == Method::HEAD,
            };
            let is_question = is_question(request.method(), request.uri().path());
            let turn = Turn::default();
            // Paid for while it is here; health is answered to whom nothing is left.
            let (head, answer) = match guest.account.charge(head + limits::REQUEST) {
                Err(why) if !kind.is_health || guest.connection.asks_much() => {
                    (None, body::no_room(kind.is_grpc, why))
                }
                head => {
                    // Over gRPC when its message is there.
                    if is_question && !kind.is_grpc {
                        guest.questions.clone().wait(turn.clone()).await;
                    }
                    (head.ok(), self.answer(request, &guest, &turn).await)
                }
            };
            let mut answer = answer;
            if self.registry.borrow().draining && !guest.connection.is_http2() {
                // Else its client sends the next request into a connection that goes.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            let _unread = rest.unread();
            let owner = Owner {
                house: self,
                guest,
                active,
                _unread,
                is_question,
                _turn: turn,
                _head: head,
            };
            Ok(Answer::of(answer, owner, kind).await)
        })
    }

    async fn answer(&self, request: Request<Lent>, guest: &Guest, turn: &Turn) -> Response<Body> {
        let is_grpc = is_grpc(&request);
        let is_question = is_question(request.method(), request.uri().path());
        let mut token = None;
        if matches!(guest.caller, Caller::Port) {
            if let Err(refused) = door::check(&request, &self.allowed_hosts) {
                return refuse(is_grpc, StatusCode::FORBIDDEN, &refused.0);
            }
            token = match door::identify(&request, &self.tokens) {
                Ok(caller) => Some(caller),
                Err(NoToken::Unknown(why)) => {
                    return refuse(is_grpc, StatusCode::UNAUTHORIZED, &why);
                }
                Err(NoToken::Forbidden(why)) => {
                    return refuse(is_grpc, StatusCode::FORBIDDEN, &why);
                }
            };
        }
        if guest.reserve
            && let Some(why) = beyond_reserve(&request, &guest.caller)
        {
            return refuse(is_grpc, StatusCode::SERVICE_UNAVAILABLE, why);
        }
        if let Some(refused) = refusal::of_head(request.headers(), is_grpc) {
            return refused;
        }
        let path = request.uri().path();
        let is_call = is_call(path);
        let (form, most) = match (is_grpc, is_call) {
            // A third of base64 on top of the payload.
            (false, true) if is_json(&request) => {
                (Form::Plain, self.max_request / 3 * 4 + (1 << 20))
            }
            (false, true) => (Form::Plain, self.max_request + (1 << 20)),
            (false, false) => (Form::Plain, limits::SMALL_BODY),
            (true, true) if path == STREAMS[0] => (Form::Messages, self.max_request + (1 << 20)),
            (true, true) => (Form::Message, self.max_request + (1 << 20)),
            (true, false) if path == STREAMS[1] => (Form::Messages, PROVIDED),
            (true, false) => (Form::Message, 2 * limits::SMALL_BODY),
        };
        let is_tools = is_grpc && path.starts_with(TOOLS);
        let (parts, incoming) = request.into_parts();
        let most = Most { bytes: most, is_call };
        let counted = body::Counted::new(incoming, &guest.account, form, most, &self.ending);
        let (counted, reservation) = match counted {
            Ok(counted) => counted,
            Err(status) => return body::refused(is_grpc, &status),
        };
        let mut request = Request::from_parts(parts, counted);
        if is_tools {
            return self.tools.answer(request, reservation, &guest.connection).await;
        }
        request.extensions_mut().insert(reservation);
        let caller = token.unwrap_or_else(|| guest.caller.clone());
        let reader = guest.reader.of(&caller);
        request.extensions_mut().insert(caller);
        let answered = async {
            match is_grpc {
                true => {
                    let request = request.map(|body| match is_question {
                        true => Body::new(Asked::new(body, guest.questions.clone(), turn.clone())),
                        false => Body::new(body),
                    });
                    or_never(self.grpc.clone().oneshot(request).await)
                }
                false => {
                    let request = request.map(axum::body::Body::new);
                    or_never(self.http.clone().call(request).await).map(Body::new)
                }
            }
        };
        // What is rarely asked is boxed: a call's future stays small.
        reader.during(Box::pin(answered)).await
    }
}

fn is_grpc<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}

fn is_json<B>(request: &Request<B>) -> bool {
    let kind = request.headers().get(header::CONTENT_TYPE);
    kind.is_none_or(|kind| kind.to_str().is_ok_and(|kind| kind.contains("json")))
}

/// Bytes that a request takes before its body comes, roughly.
fn size_of_head<B>(request: &Request<B>) -> usize {
    let header = |(name, value): (&header::HeaderName, &HeaderValue)| {
        size_of::<HeaderValue>() + name.as_str().len() + value.len()
    };
    let path = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    1024 + path + request.headers().iter().map(header).sum::<usize>()
}

fn is_call(path: &str) -> bool {
    let of_tool = || {
        let mut parts = path.strip_prefix("/v1/plugins/")?.split('/').skip(1);
        let parts = [parts.next()?, parts.next()?, parts.next()?, parts.next().unwrap_or("/")];
        Some(parts[0] == "tools" && parts[2..] == ["run", "/"])
    };
    path.starts_with(TOOLS) || of_tool().unwrap_or(false)
}

/// What is answered when there is no room for anything else.
fn asks_for_health<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    let grpc = ["/grpc.health.v1.Health/Check", "/stockade.v1.Plugins/ListPlugins"];
    let http = path == "/healthz"
        || path == "/readyz"
        || path == "/v1/plugins"
        || (path.starts_with("/v1/plugins/") && path.ends_with("/health"));
    grpc.contains(&path) || (http && request.method() == Method::GET)
}

/// Why it is not answered to a connection beyond those that there may be.
fn beyond_reserve<B>(request: &Request<B>, caller: &Caller) -> Option<&'static str> {
    if asks_for_health(request) {
        return None;
    }
    if matches!(caller, Caller::Port) {
        return Some(
            "there are as many connections as may be (max_connections); only health is answered \
             now",
        );
    }
    let path = request.uri().path();
    let acts = path.starts_with("/stockade.v1.Admin/") || path.starts_with("/admin/");
    let asks = is_question(request.method(), path) && !path.ends_with("/logs");
    (!acts && !asks).then_some(
        "there are as many connections on the socket as may be (docs/limits.md); only what \
         operators ask and do is answered now, no calls and nothing that is followed",
    )
}

fn or_never<T>(result: Result<T, Infallible>) -> T {
    match result {
        Ok(value) => value,
        Err(never) => match never {},
    }
}
