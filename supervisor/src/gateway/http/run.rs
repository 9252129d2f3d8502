//! `POST …/tools/{tool}/run`: JSON, multipart or a raw body in; JSON, the
//! attachment itself or a stream of lines out.

use std::time::Duration;

use axum::{
    body::{Body as HttpBody, Bytes},
    extract::{FromRequest as _, Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use serde::{Deserialize, Serializer as _};
use serde_json::{Value, value::RawValue};

use super::{
    Text,
    bounded::{Name, PluginNames},
    detail, is_object,
    parts::{self, Parts},
    render::{self, ESCAPES},
    stream,
};
use crate::{
    CallError, Outcome, Success, Supervisor, ToolCall,
    capacity::{Overloaded, is_little, limits, weigh, why_unread},
    gateway::{body::Reservation, status, texts},
    plugin::Attachment,
};

/// The body of a JSON request.
#[derive(Deserialize)]
struct Body<'b> {
    #[serde(borrow, default)]
    args: Option<&'b RawValue>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    workspace: Option<Name>,
    #[serde(default)]
    enabled_plugins: Option<PluginNames>,
}

pub(super) async fn run(
    State(supervisor): State<Supervisor>,
    Path((plugin, tool)): Path<(String, String)>,
    request: Request,
) -> Response {
    let accept = Accept::of(request.headers());
    let options = match Options::of(request.headers()) {
        Ok(options) => options,
        Err(why) => return detail(StatusCode::UNPROCESSABLE_ENTITY, why),
    };
    let reservation = request.extensions().get::<Reservation>().cloned();
    let call = ToolCall { plugin, tool, ..ToolCall::default() };
    let mut call = match read(&supervisor, request, call).await {
        Ok(call) => call,
        Err(response) => return *response,
    };
    if let Some(reservation) = reservation {
        call.held = reservation.take_all();
        call.payer = Some(reservation.account());
    }
    call.timeout = options.timeout.or(call.timeout);
    call.workspace = options.workspace.unwrap_or(call.workspace);
    match accept {
        Accept::Lines | Accept::Events => {
            stream::respond(&supervisor, call, accept == Accept::Events)
        }
        Accept::Json | Accept::Raw | Accept::Parts => {
            let outcome = supervisor.calls().run(call).await;
            let small = outcome.result.as_ref().map_or(0, |success| success.result.len());
            if small <= limits::STEP {
                return respond(outcome, accept);
            }
            // Where its attachments stand is looked for by the crew.
            let lane = outcome.plugin.clone();
            let made = supervisor.calls().crew().conclude(&lane, move || respond(outcome, accept));
            made.await.unwrap_or_else(overloaded)
        }
    }
}

fn overloaded(why: Overloaded) -> Response {
    let mut response = detail(StatusCode::SERVICE_UNAVAILABLE, &why.to_string());
    let seconds = HeaderValue::from(Overloaded::RETRY.as_secs());
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

/// What goes with a call whatever its body is.
struct Options {
    timeout: Option<Duration>,
    workspace: Option<String>,
}

impl Options {
    fn of(headers: &HeaderMap) -> Result<Self, &'static str> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        for name in ["stockade-timeout-ms", "stockade-workspace"] {
            if headers.get_all(name).iter().count() > 1 {
                return Err(
                    "stockade-timeout-ms and stockade-workspace are headers to be sent once",
                );
            }
        }
        // A name that cannot be read is not no name: that would run without a workspace.
        let workspace = match headers.get("stockade-workspace") {
            None => None,
            Some(_) => {
                let name = text("stockade-workspace").filter(|name| !name.is_empty());
                Some(name.ok_or("the header stockade-workspace must be a workspace's name")?)
            }
        };
        let timeout: Option<u64> = match headers.get("stockade-timeout-ms") {
            None => None,
            Some(_) => {
                let number = text("stockade-timeout-ms").and_then(|text| text.parse().ok());
                Some(number.ok_or("the header stockade-timeout-ms must be a number")?)
            }
        };
        Ok(Options {
            timeout: timeout.filter(|ms| *ms > 0).map(Duration::from_millis),
            workspace: workspace.map(str::to_owned),
        })
    }
}

/// What the client wants back.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accept {
    Json,
    /// The one attachment of the result, as it is.
    Raw,
    /// The outcome and each attachment as a part of their own.
    Parts,
    /// One JSON object per line: progress, items, the outcome.
    Lines,
    /// The same as server-sent events.
    Events,
}

impl Accept {
    fn of(headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let first = accept.unwrap_or("").split([',', ';']).next().unwrap_or("").trim();
        match first {
            "application/x-ndjson" => Accept::Lines,
            "text/event-stream" => Accept::Events,
            "multipart/form-data" => Accept::Parts,
            "application/octet-stream" => Accept::Raw,
            kind if kind.starts_with("image/") || kind.starts_with("video/") => Accept::Raw,
            _ => Accept::Json,
        }
    }
}

async fn read(
    supervisor: &Supervisor,
    request: Request,
    call: ToolCall,
) -> Result<ToolCall, Box<Response>> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let media = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media.as_str() {
        "application/json" => {
            let bytes = body(request).await?;
            let read = texts::read(supervisor, bytes, move |text| read_json(text, call)).await;
            read.unwrap_or_else(|why| Err(Box::new(overloaded(why))))
        }
        "multipart/form-data" => read_multipart(supervisor, request, call).await,
        // What a web form can send without asking is not a raw body.
        "" | "text/plain" | "application/x-www-form-urlencoded" => Err(Box::new(detail(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send application/json with {\"args\": {…}}, multipart/form-data, or the bytes of the \
             tool's binary argument with their own content type",
        ))),
        _ if kind.len() > limits::CONTENT_TYPE => {
            let (length, most) = (kind.len(), limits::CONTENT_TYPE);
            let text = format!("the content type has {length} bytes; {most} are allowed");
            Err(Box::new(detail(StatusCode::UNPROCESSABLE_ENTITY, &text)))
        }
        _ => read_raw(request, call, kind).await,
    }
}

async fn body(request: Request) -> Result<Bytes, Box<Response>> {
    Text::from_request(request, &()).await.map(|text| text.0).map_err(Box::new)
}

fn invalid(message: String, call: &ToolCall) -> Box<Response> {
    let error = CallError::InvalidArguments(message);
    let outcome = Outcome::refused(&call.plugin, &call.tool, error);
    Box::new(respond(outcome, Accept::Json))
}

fn read_json(bytes: &Bytes, mut call: ToolCall) -> Result<ToolCall, Box<Response>> {
    if bytes.is_empty() {
        return Ok(call);
    }
    let values = weigh(bytes).values;
    if values > limits::JSON_VALUES {
        let text = format!(
            "the body has {values} JSON values; {} are allowed: send large data as a part of \
             multipart/form-data",
            limits::JSON_VALUES
        );
        return Err(Box::new(detail(StatusCode::PAYLOAD_TOO_LARGE, &text)));
    }
    let read = is_object(bytes)
        .and_then(|()| serde_json::from_slice(bytes).map_err(|error| why_unread(&error)));
    let body: Body<'_> = read.map_err(|why| {
        invalid(format!("the body is not JSON of the form {{\"args\": {{…}}}}: {why}"), &call)
    })?;
    if let Some(args) = body.args {
        call.args = bytes.slice_ref(args.get().as_bytes());
    }
    // 0 is the plugin's own, as over gRPC.
    call.timeout = body.timeout_ms.filter(|ms| *ms > 0).map(Duration::from_millis);
    call.workspace = body.workspace.unwrap_or_default().0;
    call.enabled_plugins = body.enabled_plugins.map(|names| names.0);
    Ok(call)
}

async fn read_multipart(
    supervisor: &Supervisor,
    request: Request,
    mut call: ToolCall,
) -> Result<ToolCall, Box<Response>> {
    let reservation = request.extensions().get::<Reservation>().cloned();
    let too_many = |what: &str, most: usize| {
        let text = format!("{what}; {most} are allowed");
        Box::new(detail(StatusCode::UNPROCESSABLE_ENTITY, &text))
    };
    let mut parts = Parts::of(request).await?;
    let refuse = |text: String| Box::new(detail(StatusCode::UNPROCESSABLE_ENTITY, &text));
    let mut loose: Vec<(String, Bytes)> = Vec::new();
    let mut has_args = false;
    while let Some(part) = parts.next().await? {
        let Some(name) = part.name().map(str::to_owned) else {
            let text = "a part of the body has no name that can be read: each needs a \
                        content-disposition with name=, in UTF-8";
            return Err(refuse(text.to_owned()));
        };
        let name = ESCAPES.iter().fold(name, |name, (c, text)| name.replace(text, &c.to_string()));
        let kind = part.content_type().unwrap_or_default().to_owned();
        // A file of that name is an argument called `args`.
        let named = part.file_name().is_some();
        let file = named || !kind.is_empty();
        if name.len() > limits::NAME || kind.len() > limits::CONTENT_TYPE {
            return Err(too_many("the name or type of a part is too long", limits::NAME));
        }
        if call.attachments.len() + loose.len() >= limits::ATTACHMENTS {
            return Err(too_many("the body has too many parts", limits::ATTACHMENTS));
        }
        let data = part.bytes().await.map_err(parts::refused)?;
        match name.as_str() {
            "args" if !named && has_args => {
                return Err(refuse("the body has more than one part `args`".to_owned()));
            }
            "args" if !named => {
                has_args = true;
                call.args = data;
            }
            _ if file => call.attachments.push(Attachment { name, content_type: kind, data }),
            // A plain form field: an argument as text.
            _ if loose.iter().any(|(known, _)| *known == name) => {
                return Err(refuse(format!("the field {name:?} is there more than once")));
            }
            _ => loose.push((name, data)),
        }
    }
    if !loose.is_empty() {
        if has_args {
            return Err(invalid(
                "send the arguments as the part `args` or as fields, not both".into(),
                &call,
            ));
        }
        let most = supervisor.config().max_request;
        let bytes: usize = loose.iter().map(|(_, data)| data.len()).sum();
        let made = match is_little(bytes) {
            true => Ok(fields(&loose, most)),
            // Escaped it may be six times as much.
            false => texts::of_bytes(supervisor, bytes, move || fields(&loose, most)).await,
        };
        call.args = made.map_err(|why| Box::new(overloaded(why)))??;
        if let Some(Err(why)) = reservation.map(|paid| paid.pay_more(call.args.len())) {
            return Err(Box::new(detail(StatusCode::SERVICE_UNAVAILABLE, &why.to_string())));
        }
        call.loose = true;
    }
    Ok(call)
}

/// Fields of a form as a JSON object of texts, of so many bytes at most.
fn fields(loose: &[(String, Bytes)], most: usize) -> Result<Bytes, Box<Response>> {
    let refuse = |status, text: String| Err(Box::new(detail(status, &text)));
    let mut texts = Vec::with_capacity(loose.len());
    for (name, data) in loose {
        let Ok(text) = str::from_utf8(data) else {
            return refuse(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!(
                    "the field {name:?} is not UTF-8: send bytes as a file, with a content type"
                ),
            );
        };
        texts.push((name, text));
    }
    let mut object = Bounded { bytes: Vec::new(), most };
    match serde_json::Serializer::new(&mut object).collect_map(texts) {
        Ok(()) => Ok(object.bytes.into()),
        Err(_) => refuse(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!(
                "the fields have more than {most} bytes as JSON (max_request): send large data as \
                 a file, with a content type"
            ),
        ),
    }
}

/// Bytes that do not grow without end.
struct Bounded {
    bytes: Vec<u8>,
    most: usize,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > self.most {
            return Err(std::io::Error::other("too large"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn read_raw(
    request: Request,
    mut call: ToolCall,
    content_type: String,
) -> Result<ToolCall, Box<Response>> {
    let query = Query::<Vec<(String, String)>>::try_from_uri(request.uri())
        .map_err(|error| invalid(error.to_string(), &call))?;
    let args: serde_json::Map<String, Value> =
        query.0.into_iter().map(|(key, value)| (key, Value::String(value))).collect();
    call.args = Value::Object(args).to_string().into();
    call.loose = true;
    let data = body(request).await?;
    call.attachments.push(Attachment { name: String::new(), content_type, data });
    Ok(call)
}

fn respond(outcome: Outcome, accept: Accept) -> Response {
    let status = status::http(&outcome.result);
    if accept == Accept::Parts && outcome.result.is_ok() {
        let (pieces, boundary) = render::parts(outcome);
        let kind = format!("multipart/form-data; boundary={boundary}");
        return (status, [(header::CONTENT_TYPE, kind)], HttpBody::new(pieces)).into_response();
    }
    if accept == Accept::Raw
        && let Ok(Success { attachments, held, .. }) = &outcome.result
        && let [only] = attachments.as_slice()
    {
        let kind = match only.content_type.as_str() {
            "" => "application/octet-stream",
            kind => kind,
        };
        let kind = HeaderValue::from_str(kind)
            .unwrap_or(HeaderValue::from_static("application/octet-stream"));
        let mut pieces = render::Pieces::default();
        pieces.text(only.data.clone());
        pieces.hold(held.clone());
        return (status, [(header::CONTENT_TYPE, kind)], HttpBody::new(pieces)).into_response();
    }
    let retry = outcome.result.as_ref().err().and_then(CallError::retry_after);
    let json = HeaderValue::from_static("application/json");
    let body = HttpBody::new(render::outcome(outcome, false));
    let mut response = (status, [(header::CONTENT_TYPE, json)], body).into_response();
    if let Some(wait) = retry {
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}
