//! TLS on the port: the server's certificate, and client certificates when a
//! certificate authority for them is named.

use std::{io, path::Path, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::ring,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
        server::WebPkiClientVerifier,
    },
};

use crate::Config;

/// What accepts TLS connections; None when the configuration names no
/// certificate.
///
/// # Errors
/// A file cannot be read, or holds not what it must; the text says which.
pub(super) fn acceptor(config: &Config) -> io::Result<Option<TlsAcceptor>> {
    let (Some(certificate), Some(key)) = (&config.tls_cert, &config.tls_key) else {
        return Ok(None);
    };
    let chain = certificates(certificate, "tls_cert")?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong("tls_key", key, &error))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("tls_cert", certificate, &error))?;
    let builder = match &config.tls_client_ca {
        None => builder.with_no_client_auth(),
        Some(file) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(file, "tls_client_ca")? {
                roots.add(root).map_err(|error| wrong("tls_client_ca", file, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .map_err(|error| wrong("tls_client_ca", file, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut server = builder
        .with_single_cert(chain, key)
        .map_err(|error| wrong("tls_cert or tls_key", certificate, &error))?;
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}

fn certificates(file: &Path, key: &str) -> io::Result<Vec<CertificateDer<'static>>> {
    let read = CertificateDer::pem_file_iter(file).map_err(|error| wrong(key, file, &error))?;
    let list: Result<Vec<_>, _> = read.collect();
    let list = list.map_err(|error| wrong(key, file, &error))?;
    if list.is_empty() {
        return Err(wrong(key, file, &"there is no certificate in it"));
    }
    Ok(list)
}

fn wrong(key: &str, file: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("{key} = {}: {error}; it must be a PEM file", file.display()),
    )
}
