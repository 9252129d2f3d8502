//! A connection to the service: only to addresses that it may have, with TLS where
//! its URL says so. The address that was looked at is the one that is used.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
};

use http::Uri;
use stockade_plugin_sdk::Error;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{
        ClientConfig, RootCertStore,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use crate::config::Config;

/// Where the service is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) uri: Uri,
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    allow: Vec<Network>,
}

/// A stream of bytes, with TLS or without.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection.
pub(crate) type Connection = Pin<Box<dyn Stream>>;

/// The service cannot be reached: not the caller's fault, and worth a retry.
pub(crate) fn unreachable(what: impl std::fmt::Display) -> Error {
    Error::new("RemoteUnreachable", what.to_string())
}

impl Place {
    /// Reads the URL and the certificates. `alpn` is what is spoken over TLS.
    pub(crate) fn of(config: &Config, alpn: &[u8]) -> Result<Self, Error> {
        let wrong = |what: String| Error::new("RemoteConfiguration", what);
        let uri: Uri = config
            .endpoint
            .parse()
            .map_err(|error| wrong(format!("endpoint {}: {error}", config.endpoint)))?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let secure = matches!(uri.scheme_str(), Some("https" | "wss"));
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let tls = match secure {
            true => Some(Arc::new(tls(config, alpn).map_err(wrong)?)),
            false => None,
        };
        let allow = config.allow.iter().filter_map(|text| Network::parse(text)).collect();
        Ok(Place { uri, host, port, tls, allow })
    }

    /// Connects to the first address that answers and may be had.
    pub(crate) async fn connect(&self) -> Result<Connection, Error> {
        let Place { host, port, .. } = self;
        let found = tokio::net::lookup_host((host.as_str(), *port)).await;
        let found = found.map_err(|error| unreachable(format!("{host}: {error}")))?;
        let mut last = unreachable(format!("{host} has no address"));
        for address in found {
            if let Err(why) = self.may(address.ip()) {
                last = why;
                continue;
            }
            match self.open(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => {
                    last = unreachable(format!("cannot connect to {host} ({address}): {error}"));
                }
            }
        }
        Err(last)
    }

    async fn open(&self, address: SocketAddr) -> io::Result<Connection> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Some(tls) = &self.tls else { return Ok(Box::pin(stream)) };
        let name = ServerName::try_from(self.host.clone()).map_err(io::Error::other)?;
        let stream = TlsConnector::from(tls.clone()).connect(name, stream).await?;
        Ok(Box::pin(stream))
    }

    /// Public addresses, and those that the operator allows.
    fn may(&self, address: IpAddr) -> Result<(), Error> {
        let address = address.to_canonical();
        if is_public(address) || self.allow.iter().any(|network| network.holds(address)) {
            return Ok(());
        }
        let what = format!("leave to connect to {} ({address}, a private address)", self.host);
        let fix = format!("allow it with `[remote] allow = [\"{address}\"]` in stockade.toml");
        Err(Error::missing(what, fix))
    }
}

fn tls(config: &Config, alpn: &[u8]) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    if let Some(path) = &config.ca {
        let failed = |error: &dyn std::fmt::Display| format!("ca {}: {error}", path.display());
        let found = CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))?;
        for certificate in found {
            let certificate = certificate.map_err(|error| failed(&error))?;
            roots.add(certificate).map_err(|error| failed(&error))?;
        }
    }
    let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![alpn.to_vec()];
    Ok(tls)
}

/// Neither this machine's nor a private, link-local or reserved network's.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_multicast()
                || v4.is_unspecified()
                || v4.is_documentation()
                || a == 0
                || a >= 240
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && (18..20).contains(&b)))
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            // Global unicast, without what embeds an IPv4 address or is reserved.
            let global = first & 0xe000 == 0x2000;
            let embeds = first == 0x2002 || (first == 0x2001 && v6.segments()[1] < 0x200);
            let documents = first == 0x2001 && v6.segments()[1] == 0xdb8;
            global && !embeds && !documents
        }
    }
}

/// `10.0.0.0/8`
#[derive(Clone, Copy, Debug)]
struct Network {
    address: IpAddr,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/').unwrap_or((text, ""));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = if bits.is_empty() { most } else { bits.parse().ok()? };
        (bits <= most).then_some(Network { address, bits })
    }

    fn holds(&self, address: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let shift = width - self.bits;
            shift >= 128 || (a >> shift) == (b >> shift)
        };
        match (self.address, address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                same(u128::from(a.to_bits()), u128::from(b.to_bits()), 32)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.to_bits(), b.to_bits(), 128),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn private_and_local_addresses_are_not_public() {
        for public in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1"] {
            assert!(is_public(ip(public)), "{public}");
        }
        for local in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "100.64.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "fd00::1",
            "::",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "2001:db8::1",
            "192.0.0.1",
            "198.18.0.1",
        ] {
            assert!(!is_public(ip(local)), "{local}");
        }
        assert!(!is_public(ip("::ffff:127.0.0.1").to_canonical()));
    }

    #[test]
    fn a_network_holds_its_addresses() {
        let network = |text: &str| Network::parse(text).unwrap();
        assert!(network("10.0.0.0/8").holds(ip("10.9.9.9")));
        assert!(!network("10.0.0.0/8").holds(ip("11.0.0.1")));
        assert!(network("127.0.0.1").holds(ip("127.0.0.1")));
        assert!(!network("127.0.0.1").holds(ip("127.0.0.2")));
        assert!(
            network("0.0.0.0/0").holds(ip("1.2.3.4")) && !network("0.0.0.0/0").holds(ip("::1"))
        );
        assert!(network("fd00::/8").holds(ip("fd12::1")) && network("::/0").holds(ip("::1")));
        assert!(Network::parse("10.0.0.0/33").is_none());
    }
}
