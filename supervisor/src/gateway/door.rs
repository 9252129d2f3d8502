//! Who may come in by which door, before anything is read of the request:
//! Host and Origin on the port (a browser must not be talked into calling us).
//! The socket is guarded by its mode; its peer's uid is only taken down.

use std::sync::Arc;

use axum::http::{HeaderMap, Request, header};

/// By which door a request came; an extension of every request.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// The unix socket; who, for the log.
    Socket(Arc<str>),
    /// The port: read and call only.
    Port,
}

/// What a request for an admin action on the port is told.
pub(crate) const NOT_HERE: &str =
    "admin actions are served on the unix socket only; use the stockade command on the host";

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) String);

/// Checks a request of the port.
pub(super) fn check<B>(request: &Request<B>, allowed: &[String]) -> Result<(), Refused> {
    let host = request
        .uri()
        .authority()
        .map(|authority| authority.as_str())
        .or_else(|| request.headers().get(header::HOST)?.to_str().ok())
        .unwrap_or_default();
    if !known(host, allowed) {
        return Err(Refused(format!(
            "Host {host:?} is not one of this server's names; use 127.0.0.1 or localhost, or add \
             it to allowed_hosts"
        )));
    }
    check_origin(request.headers(), allowed)
}

/// Requests that a foreign web page makes a browser send.
fn check_origin(headers: &HeaderMap, allowed: &[String]) -> Result<(), Refused> {
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let host = origin.split_once("://").map_or("", |(_, host)| host);
        if !known(host, allowed) {
            return Err(Refused(format!("Origin {origin:?} is foreign to this server")));
        }
    }
    match headers.get("sec-fetch-site").map(|site| site.as_bytes()) {
        Some(b"cross-site" | b"same-site") => {
            Err(Refused("a page of another site may not call this server".to_owned()))
        }
        _ => Ok(()),
    }
}

/// Loopback by name or number, or one of the operator's names; any port.
fn known(host: &str, allowed: &[String]) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.to_ascii_lowercase();
    let loopback = name == "localhost"
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    loopback || allowed.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: &str, more: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("/v1/plugins").header("host", host);
        for (name, value) in more {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    #[test]
    fn only_our_names_and_our_pages_come_in() {
        let allowed = ["gpu1.lan".to_owned()];
        for host in ["127.0.0.1:7077", "localhost", "[::1]:7077", "GPU1.lan:80", "127.0.0.2"] {
            assert_eq!(check(&request(host, &[]), &allowed), Ok(()), "{host}");
        }
        for host in ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil:7077"] {
            assert!(check(&request(host, &[]), &allowed).is_err(), "{host}");
        }
        let ours = request("localhost", &[("origin", "http://localhost:7077")]);
        assert_eq!(check(&ours, &allowed), Ok(()));
        for foreign in [
            ("origin", "http://evil.example"),
            ("origin", "null"),
            ("sec-fetch-site", "cross-site"),
        ] {
            assert!(check(&request("localhost", &[foreign]), &allowed).is_err(), "{foreign:?}");
        }
    }
}
