//! `POST …/tools/{tool}/run`: JSON, multipart or a raw body in; JSON, the
//! attachment itself or a stream of lines out.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    body::Bytes,
    extract::{FromRequest as _, Multipart, Path, Query, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json, value::RawValue};

use super::{detail, stream};
use crate::{
    CallError, Outcome, Success, Supervisor, ToolCall, gateway::status, plugin::Attachment,
};

/// The body of a JSON request.
#[derive(Deserialize)]
struct Body<'b> {
    #[serde(borrow, default)]
    args: Option<&'b RawValue>,
    #[serde(default)]
    timeout_ms: Option<u64>,
    #[serde(default)]
    workspace: Option<String>,
    #[serde(default)]
    enabled_plugins: Option<Arc<BTreeSet<String>>>,
}

pub(super) async fn run(
    State(supervisor): State<Supervisor>,
    Path((plugin, tool)): Path<(String, String)>,
    request: Request,
) -> Response {
    let accept = Accept::of(request.headers());
    let options = Options::of(request.headers());
    let mut call = match read(request, ToolCall { plugin, tool, ..ToolCall::default() }).await {
        Ok(call) => call,
        Err(response) => return *response,
    };
    call.timeout = options.timeout.or(call.timeout);
    call.workspace = options.workspace.unwrap_or(call.workspace);
    match accept {
        Accept::Lines | Accept::Events => {
            stream::respond(&supervisor, call, accept == Accept::Events)
        }
        Accept::Json | Accept::Raw | Accept::Parts => {
            respond(supervisor.calls().run(call).await, accept)
        }
    }
}

/// What goes with a call whatever its body is.
struct Options {
    timeout: Option<Duration>,
    workspace: Option<String>,
}

impl Options {
    fn of(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let timeout = text("stockade-timeout-ms").and_then(|text| text.parse().ok());
        Options {
            timeout: timeout.map(Duration::from_millis),
            workspace: text("stockade-workspace").map(str::to_owned),
        }
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

async fn read(request: Request, call: ToolCall) -> Result<ToolCall, Box<Response>> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let kind = kind.and_then(|kind| kind.to_str().ok()).unwrap_or_default().to_owned();
    let media = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match media.as_str() {
        "application/json" => read_json(body(request).await?, call),
        "multipart/form-data" => read_multipart(request, call).await,
        // What a web form can send without asking is not a raw body.
        "" | "text/plain" | "application/x-www-form-urlencoded" => Err(Box::new(detail(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "send application/json with {\"args\": {…}}, multipart/form-data, or the bytes of the \
             tool's binary argument with their own content type",
        ))),
        _ => read_raw(request, call, kind).await,
    }
}

async fn body(request: Request) -> Result<Bytes, Box<Response>> {
    Bytes::from_request(request, &()).await.map_err(|refused| {
        // Too long, or the client went away.
        Box::new(detail(refused.status(), &refused.body_text()))
    })
}

fn invalid(message: String, call: &ToolCall) -> Box<Response> {
    let outcome = Outcome {
        result: Err(CallError::InvalidArguments(message)),
        plugin: call.plugin.as_str().into(),
        tool: call.tool.as_str().into(),
        duration: Duration::ZERO,
        call_id: "".into(),
        generation: 0,
        delivered: false,
    };
    Box::new(respond(outcome, Accept::Json))
}

fn read_json(bytes: Bytes, mut call: ToolCall) -> Result<ToolCall, Box<Response>> {
    if bytes.is_empty() {
        return Ok(call);
    }
    let body: Body<'_> = serde_json::from_slice(&bytes).map_err(|error| {
        invalid(format!("the body is not JSON of the form {{\"args\": {{…}}}}: {error}"), &call)
    })?;
    if let Some(args) = body.args {
        call.args = bytes.slice_ref(args.get().as_bytes());
    }
    call.timeout = body.timeout_ms.map(Duration::from_millis);
    call.workspace = body.workspace.unwrap_or_default();
    call.enabled_plugins = body.enabled_plugins;
    Ok(call)
}

async fn read_multipart(request: Request, mut call: ToolCall) -> Result<ToolCall, Box<Response>> {
    let refused = |error: axum::extract::multipart::MultipartError| {
        Box::new(detail(error.status(), &error.body_text()))
    };
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|refused| Box::new(detail(refused.status(), &refused.body_text())))?;
    let mut loose = serde_json::Map::new();
    while let Some(part) = parts.next_field().await.map_err(refused)? {
        let name = part.name().unwrap_or_default().to_owned();
        let name = ESCAPES.iter().fold(name, |name, (c, text)| name.replace(text, &c.to_string()));
        let kind = part.content_type().unwrap_or_default().to_owned();
        // A file of that name is an argument called `args`.
        let named = part.file_name().is_some();
        let file = named || !kind.is_empty();
        let data = part.bytes().await.map_err(refused)?;
        match name.as_str() {
            "args" if !named => call.args = data,
            _ if file => call.attachments.push(Attachment { name, content_type: kind, data }),
            // A plain form field: an argument as text.
            _ => {
                let text = String::from_utf8_lossy(&data).into_owned();
                loose.insert(name, Value::String(text));
            }
        }
    }
    if !loose.is_empty() {
        if !call.args.is_empty() {
            return Err(invalid(
                "send the arguments as the part `args` or as fields, not both".into(),
                &call,
            ));
        }
        call.args = Value::Object(loose).to_string().into();
        call.loose = true;
    }
    Ok(call)
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
        return (status, in_parts(outcome)).into_response();
    }
    if accept == Accept::Raw
        && let Ok(Success { attachments, .. }) = &outcome.result
        && let [only] = attachments.as_slice()
    {
        let kind = match only.content_type.as_str() {
            "" => "application/octet-stream",
            kind => kind,
        };
        let kind = HeaderValue::from_str(kind)
            .unwrap_or(HeaderValue::from_static("application/octet-stream"));
        return (status, [(header::CONTENT_TYPE, kind)], only.data.clone()).into_response();
    }
    let retry = outcome.result.as_ref().err().and_then(CallError::retry_after);
    let json = HeaderValue::from_static("application/json");
    let mut response = (status, [(header::CONTENT_TYPE, json)], to_json(outcome)).into_response();
    if let Some(wait) = retry {
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// What the name of a part cannot hold, and what stands for it (WHATWG).
const ESCAPES: [(char, &str); 3] = [('"', "%22"), ('\r', "%0D"), ('\n', "%0A")];

/// `multipart/form-data`: the part `outcome` is JSON in which attachments stand
/// as `"attachment:NAME"`; each attachment follows as the part of its name.
fn in_parts(mut outcome: Outcome) -> Response {
    let attachments = match &mut outcome.result {
        Ok(success) => std::mem::take(&mut success.attachments),
        Err(_) => Vec::new(),
    };
    let boundary = format!("stockade-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let size: usize = attachments.iter().map(|blob| blob.data.len() + 256).sum();
    let mut text = Vec::with_capacity(size + 1024);
    let mut part = |name: &str, kind: &str, data: &[u8]| {
        let name = ESCAPES.iter().fold(name.to_owned(), |name, (c, text)| name.replace(*c, text));
        let head = format!(
            "--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\
             Content-Type: {kind}\r\n\r\n"
        );
        text.extend_from_slice(head.as_bytes());
        text.extend_from_slice(data);
        text.extend_from_slice(b"\r\n");
    };
    part("outcome", "application/json", to_json(outcome).as_bytes());
    for blob in &attachments {
        let plain = blob.content_type.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        let kind = match blob.content_type.as_str() {
            kind if plain && !kind.is_empty() => kind,
            _ => "application/octet-stream",
        };
        part(&blob.name, kind, &blob.data);
    }
    text.extend_from_slice(format!("--{boundary}--\r\n").as_bytes());
    let kind = format!("multipart/form-data; boundary={boundary}");
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// The outcome as JSON text: the result's own text, untouched, or with base64
/// where an attachment stood.
pub(super) fn to_json(outcome: Outcome) -> String {
    let error = outcome.result.as_ref().err();
    let ok = error.is_none();
    let head = json!({
        "error": error.map(ToString::to_string),
        "error_type": error.map(CallError::error_type),
        "raised": matches!(error, Some(CallError::Raised { .. })),
        "plugin": &*outcome.plugin,
        "tool": &*outcome.tool,
        "duration_ms": outcome.duration.as_secs_f64() * 1000.0,
        "call_id": &*outcome.call_id,
        "generation": outcome.generation,
        "delivered": outcome.delivered,
        "cause": error.and_then(CallError::cause).map(|cause| cause.code.as_str()),
    })
    .to_string();
    let result = match outcome.result {
        Ok(success) => inline(success),
        Err(_) => "null".to_owned(),
    };
    format!("{{\"ok\":{ok},\"result\":{result},{}", &head[1..])
}

/// Puts attachments into the JSON text as base64.
pub(super) fn inline(success: Success) -> String {
    let text = String::from_utf8_lossy(&success.result).into_owned();
    if success.attachments.is_empty() {
        return text;
    }
    let Ok(mut value) = serde_json::from_str::<Value>(&text) else { return text };
    fill(&mut value, &success.attachments);
    value.to_string()
}

fn fill(value: &mut Value, attachments: &[Attachment]) {
    match value {
        Value::String(text) => {
            let found = text
                .strip_prefix("attachment:")
                .and_then(|name| attachments.iter().find(|blob| blob.name == name));
            if let Some(blob) = found {
                *text = STANDARD.encode(&blob.data);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| fill(item, attachments)),
        Value::Object(fields) => fields.values_mut().for_each(|field| fill(field, attachments)),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}
