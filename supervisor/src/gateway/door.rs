//! Who may come in by which door, before anything is read of the request:
//! Host and Origin on the port (a browser must not be talked into calling us).
//! The socket is guarded by its mode; its peer's uid is only taken down.

use std::sync::Arc;

use crate::config::{Role, Token, token_digest};

use axum::http::{HeaderMap, Request, header};

/// By which door a request came; an extension of every request.
#[derive(Clone, Debug)]
pub(crate) enum Caller {
    /// The unix socket; who, for the log.
    Socket(Arc<str>),
    /// The port, without a token: read and call only.
    Port,
    /// The port, with this token.
    Token(Arc<str>, Role),
}

/// What a request for an admin action on the port is told.
pub(crate) const NOT_HERE: &str = "admin actions need the unix socket (the stockade command on \
                                   the host) or a token with the role admin";

impl Caller {
    /// Who it is, for the log, if it may act as an operator.
    pub(crate) fn admin(&self) -> Option<String> {
        match self {
            Caller::Socket(who) => Some(who.to_string()),
            Caller::Token(name, Role::Admin) => Some(format!("token {name}")),
            Caller::Token(..) | Caller::Port => None,
        }
    }
}

/// Who sends this request by the port. Without tokens in the configuration the
/// port is open (to this machine: it is loopback).
pub(super) fn identify<B>(request: &Request<B>, tokens: &[Token]) -> Result<Caller, NoToken> {
    if tokens.is_empty() {
        return Ok(Caller::Port);
    }
    let header = request.headers().get(header::AUTHORIZATION);
    let text = header.and_then(|header| header.to_str().ok()).and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
    });
    let Some(text) = text else {
        let message = "a token is needed: send `Authorization: Bearer TOKEN` (`stockade token` \
                       makes one)";
        return Err(NoToken::Unknown(message.to_owned()));
    };
    let digest = token_digest(text);
    // Every token is looked at: the time tells nothing.
    let found = tokens.iter().fold(None, |found, token| match token.fits(&digest) {
        true => Some(token),
        false => found,
    });
    let Some(token) = found else {
        return Err(NoToken::Unknown("this token is not known here".to_owned()));
    };
    let needed = needed(request.uri().path());
    if token.role < needed {
        return Err(NoToken::Forbidden(format!(
            "token {} has the role {}; this needs {}",
            token.name,
            token.role.as_str(),
            needed.as_str()
        )));
    }
    Ok(Caller::Token(token.name.as_str().into(), token.role))
}

/// Why a request with or without a token is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoToken {
    /// 401: say who you are.
    Unknown(String),
    /// 403: you may not.
    Forbidden(String),
}

/// What a path asks for: everything that is not known to be less is admin.
fn needed(path: &str) -> Role {
    let reads =
        ["/stockade.v1.Plugins/", "/stockade.v1.Events/", "/grpc.health.v1.", "/grpc.reflection."];
    if path == "/stockade.v1.Extensions/ListExtensions" {
        return Role::Read;
    }
    let calls = ["/stockade.v1.Tools/", "/stockade.v1.Extensions/"];
    if calls.iter().any(|known| path.starts_with(known)) {
        return Role::Call;
    }
    if reads.iter().any(|known| path.starts_with(known)) {
        return Role::Read;
    }
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["v1", "plugins", _, "tools", _, "run"]
        | ["v1", "conditions", "evaluate"]
        | ["v1", "effects", "apply"]
        | ["v1", "simulation-config", "build"] => Role::Call,
        ["v1", "plugins"]
        | ["v1", "extensions"]
        | ["v1", "plugins", _, "health" | "manifest" | "tools"]
        | ["v1", "events"]
        | ["healthz" | "readyz"] => Role::Read,
        _ => Role::Admin,
    }
}

/// Why a request is not let in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused(pub(super) String);

/// Checks a request of the port. A probe comes by any name; it learns only that somebody
/// answers.
pub(super) fn check<B>(request: &Request<B>, allowed: &[String]) -> Result<(), Refused> {
    if request.uri().path() == "/healthz" {
        return Ok(());
    }
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
    fn each_path_needs_its_role() {
        for (path, role) in [
            ("/v1/plugins", Role::Read),
            ("/v1/plugins/", Role::Read),
            ("/v1/plugins/x/health", Role::Read),
            ("/healthz", Role::Read),
            ("/stockade.v1.Plugins/ListPlugins", Role::Read),
            ("/stockade.v1.Tools/Call", Role::Call),
            ("/v1/plugins/x/tools/t/run", Role::Call),
            ("/v1/plugins/x/restart", Role::Admin),
            ("/v1/plugins/reload", Role::Admin),
            ("/stockade.v1.Admin/StopPlugin", Role::Admin),
            ("/v1/plugins/x/tools/t/run/more", Role::Admin),
            ("/anything", Role::Admin),
            ("/v1/conditions/evaluate", Role::Call),
            ("/v1/simulation-config/build", Role::Call),
            ("/stockade.v1.Extensions/ApplyEffect", Role::Call),
            ("/stockade.v1.Extensions/ListExtensions", Role::Read),
            ("/stockade.v1.Data/ListValues", Role::Admin),
            ("/stockade.v1.Hosting/ServeProviders", Role::Admin),
            ("/stockade.v1.Workspaces/GetWorkspace", Role::Admin),
            ("/v1/kv/x", Role::Admin),
            ("/admin/plugins/list", Role::Admin),
        ] {
            assert_eq!(needed(path), role, "{path}");
        }
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
