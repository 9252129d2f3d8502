//! JSON by POST: connections are kept and used again.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use stockade_plugin_sdk::Error;
use stockade_proto::limits;

use crate::{
    config::Config,
    connect::{Place, unreachable},
    offer::{Offer, told},
    sign,
};

/// Bytes of an answer.
pub(crate) const MOST: usize = limits::SERVICE_MESSAGE;
/// Connections that are kept.
const KEPT: usize = 16;

/// One service over HTTP.
pub(crate) struct Http {
    config: Config,
    place: Place,
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

impl Http {
    pub(crate) fn new(config: Config) -> Result<Self, Error> {
        let place = Place::of(&config, b"http/1.1")?;
        Ok(Http { config, place, idle: Mutex::default() })
    }

    /// What it offers; nothing, when it does not say.
    pub(crate) async fn describe(&self) -> Result<Offer, Error> {
        let (status, body) = self.send(Method::GET, "describe", Bytes::new()).await?;
        match status {
            StatusCode::NOT_FOUND
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_IMPLEMENTED => Ok(Offer::default()),
            status if status.is_success() => serde_json::from_slice(&body).map_err(|error| {
                Error::new("InvalidResponse", format!("/describe is not as it should be: {error}"))
            }),
            status => Err(refused(status, &body)),
        }
    }

    /// It can be reached.
    pub(crate) async fn reach(&self) -> Result<(), Error> {
        self.place.connect().await.map(drop)
    }

    /// Asks; the answer's body.
    pub(crate) async fn post(&self, path: &str, request: &Value) -> Result<Bytes, Error> {
        let text = Bytes::from(request.to_string());
        let (status, body) = self.send(Method::POST, path, text).await?;
        match status.is_success() {
            true => Ok(body),
            false => Err(refused(status, &body)),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), Error> {
        // A kept connection may have been closed meanwhile. What was never sent goes
        // again on a new one; what was sent does not: it may have been received.
        if let Some(mut kept) = self.kept()
            && kept.ready().await.is_ok()
        {
            let request = self.request(method.clone(), path, body.clone())?;
            match kept.try_send_request(request).await {
                Ok(response) => return self.read(response, kept).await,
                Err(mut failed) => {
                    if failed.take_message().is_none() {
                        return Err(unreachable(failed.into_error()));
                    }
                }
            }
        }
        let stream = self.place.connect().await?;
        let (mut fresh, connection) = Builder::new()
            .max_buf_size(limits::SERVICE_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(unreachable)?;
        tokio::spawn(connection);
        let request = self.request(method, path, body)?;
        let response = fresh.send_request(request).await.map_err(unreachable)?;
        self.read(response, fresh).await
    }

    fn kept(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(one) = idle.pop() {
            if !one.is_closed() {
                return Some(one);
            }
        }
        None
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Error> {
        let uri = &self.place.uri;
        let base = uri.path().trim_end_matches('/');
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{base}/{path}"))
            .header(header::HOST, authority)
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.clone()))
            .map_err(|error| Error::new("RemoteConfiguration", error.to_string()))?;
        let signed = sign::headers(&self.config.plugin, self.config.secret.as_deref(), &body);
        request.headers_mut().extend(signed);
        Ok(request)
    }

    async fn read(
        &self,
        response: http::Response<hyper::body::Incoming>,
        connection: SendRequest<Full<Bytes>>,
    ) -> Result<(StatusCode, Bytes), Error> {
        let status = response.status();
        let body = Limited::new(response.into_body(), MOST).collect().await.map_err(|error| {
            Error::new("InvalidResponse", format!("the remote plugin's answer: {error}"))
        })?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < KEPT {
            idle.push(connection);
        }
        Ok((status, body.to_bytes()))
    }
}

/// The error that a body tells, else the status.
fn refused(status: StatusCode, body: &[u8]) -> Error {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let kind = value.get("error_type").and_then(Value::as_str).map(str::to_owned);
    match value.get("error").or_else(|| value.get("detail")) {
        Some(error) if !error.is_null() => told(error, kind),
        _ => Error::new("RemoteError", format!("the remote plugin answered {status}")),
    }
}
