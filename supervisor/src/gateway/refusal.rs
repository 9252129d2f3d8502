//! Requests that are refused before anything of their bodies is read.

use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use tonic::body::Body;

use super::status;
use crate::capacity::limits;

/// Why a request with these headers is not read, if it is not.
pub(super) fn of_head(headers: &HeaderMap, is_grpc: bool) -> Option<Response<Body>> {
    let size: usize = headers.iter().map(|(key, value)| key.as_str().len() + value.len()).sum();
    if size > limits::HEADERS {
        let why = format!("the headers have {size} bytes; {} are allowed", limits::HEADERS);
        return Some(refuse(is_grpc, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &why));
    }
    // As HTTP/1's own reader has it.
    if headers.len() > limits::HEADER_LINES {
        let why = format!("{} headers; {} are allowed", headers.len(), limits::HEADER_LINES);
        return Some(refuse(is_grpc, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &why));
    }
    encoded(headers, is_grpc).map(|encoding| unknown_encoding(is_grpc, &encoding))
}

/// How a body is compressed, if it is.
fn encoded(headers: &HeaderMap, is_grpc: bool) -> Option<String> {
    let name = if is_grpc { "grpc-encoding" } else { "content-encoding" };
    let all = headers.get_all(name).iter();
    let mut all = all.map(|encoding| String::from_utf8_lossy(encoding.as_bytes()));
    let encoding = all.find(|encoding| !encoding.eq_ignore_ascii_case("identity"))?;
    Some(limits::cut(&encoding, limits::NAME))
}

/// Nothing is unpacked here: a few bytes can become any number.
fn unknown_encoding(is_grpc: bool, encoding: &str) -> Response<Body> {
    let why = format!("bodies compressed with {encoding} are not read; send them as they are");
    let mut response = match is_grpc {
        true => tonic::Status::unimplemented(why).into_http(),
        false => refuse(false, StatusCode::UNSUPPORTED_MEDIA_TYPE, &why),
    };
    let name = if is_grpc { "grpc-accept-encoding" } else { "accept-encoding" };
    response.headers_mut().insert(name, HeaderValue::from_static("identity"));
    response
}

/// As the protocol of the request says it.
pub(super) fn refuse(is_grpc: bool, code: StatusCode, why: &str) -> Response<Body> {
    if is_grpc {
        let refused = match code {
            StatusCode::UNAUTHORIZED => tonic::Status::unauthenticated(why),
            StatusCode::SERVICE_UNAVAILABLE => status::overloaded(why),
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => status::too_large(why),
            _ => tonic::Status::permission_denied(why),
        };
        return refused.into_http();
    }
    let body = serde_json::json!({ "detail": why }).to_string();
    let mut response = Response::new(Body::new(axum::body::Body::from(body)));
    *response.status_mut() = code;
    if code == StatusCode::UNAUTHORIZED {
        let bearer = HeaderValue::from_static("Bearer realm=\"stockade\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, bearer);
    }
    if code == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
