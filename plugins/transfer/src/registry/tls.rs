//! HTTP clients with the TLS settings of one host, and the words for what goes wrong below HTTP.

use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use corten_core::transfer::Unreachable;
use corten_core::{Context, Error, Kind, Result};
use reqwest::Client;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts::{Host, is_localhost};

const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// No byte for so long ends a response (containerd: image_pull_progress_timeout).
const STALL_TIMEOUT: Duration = Duration::from_secs(300);

/// A client for `host`; redirects are not followed, that is the caller's decision. Blocking.
///
/// # Errors
/// Certificate files that cannot be read or understood.
pub(super) fn client(host: &Host) -> Result<Client> {
    let mut builder = Client::builder()
        .tls_backend_preconfigured(config(host)?)
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(host.dial_timeout.unwrap_or(DIAL_TIMEOUT))
        .read_timeout(STALL_TIMEOUT)
        .referer(false);
    if is_localhost(&host.host) {
        builder = builder.no_proxy();
    }
    builder
        .build()
        .map_err(|e| Error::internal(format!("build HTTP client: {e}")))
}

fn config(host: &Host) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("TLS versions: {e}")))?;
    let builder = if host.skip_verify == Some(true) {
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
    } else {
        builder.with_root_certificates(roots(&host.ca)?)
    };
    let mut config = match host.client.first() {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let (chain, key) = pair(cert, key.as_deref())?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| Error::invalid(format!("failed to load X509 key pair: {e}")))?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn roots(files: &[PathBuf]) -> Result<RootCertStore> {
    static NATIVE: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    let native = NATIVE.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::warn!(%error, "load system certificates");
        }
        found.certs
    });
    let mut store = RootCertStore::empty();
    store.add_parsable_certificates(native.iter().cloned());
    for file in files {
        let certs = certificates(file)
            .with_context(|| format!("unable to read CA cert {:?}", file.display().to_string()))?;
        let (added, _) = store.add_parsable_certificates(certs);
        if added == 0 {
            return Err(Error::invalid(format!(
                "unable to load CA cert {:?}",
                file.display().to_string()
            )));
        }
    }
    Ok(store)
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let data = std::fs::read(file)?;
    CertificateDer::pem_slice_iter(&data)
        .collect::<std::result::Result<_, _>>()
        .map_err(|e| Error::invalid(e.to_string()))
}

fn pair(
    cert: &Path,
    key: Option<&Path>,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = certificates(cert)
        .with_context(|| format!("unable to read CERT file {:?}", cert.display().to_string()))?;
    let key = key.unwrap_or(cert);
    let data = std::fs::read(key)
        .with_context(|| format!("unable to read CERT file {:?}", key.display().to_string()))?;
    let key = PrivateKeyDer::from_pem_slice(&data)
        .map_err(|e| Error::invalid(format!("failed to load X509 key pair: {e}")))?;
    Ok((chain, key))
}

/// Trusts every certificate: `skip_verify = true`. Signatures are still checked, so the peer owns its key.
#[derive(Debug)]
struct Anyone(Arc<CryptoProvider>);

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            dss,
            &self.0.signature_verification_algorithms,
        )
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The peer of a TLS connection does not speak TLS.
pub(super) fn speaks_plain_http(e: &reqwest::Error) -> bool {
    matches!(tls_error(e), Some(rustls::Error::InvalidMessage(_)))
}

/// The connection was refused or timed out before it stood.
pub(super) fn is_dial_error(e: &reqwest::Error) -> bool {
    e.is_connect() && tls_error(e).is_none()
}

/// Worth another try on the same host.
pub(super) fn is_transient(e: &reqwest::Error) -> bool {
    if e.is_timeout() || e.is_body() {
        return true;
    }
    io_error(e).is_some_and(|io| {
        use std::io::ErrorKind as K;
        matches!(
            io,
            K::UnexpectedEof | K::ConnectionReset | K::BrokenPipe | K::TimedOut
        )
    }) || e
        .to_string()
        .contains("connection closed before message completed")
}

/// `failed to do request: Head "https://…": dial tcp …`, as Go clients are used to. `url` must hold no secrets.
pub(super) fn request_error(
    e: &reqwest::Error,
    method: &reqwest::Method,
    url: &str,
    host: &str,
) -> Error {
    let mut verb = method.as_str().to_lowercase();
    if let Some(first) = verb.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    let kind = if e.is_timeout() {
        Kind::DeadlineExceeded
    } else {
        Kind::Unknown
    };
    let error = Error::new(kind, format!("failed to do request: {verb} {url:?}"));
    let why = cause(e, host);
    if e.is_timeout() || is_dial_error(e) {
        error.with_source(Unreachable(why))
    } else {
        error.with_source(why)
    }
}

fn cause(e: &reqwest::Error, host: &str) -> String {
    match tls_error(e) {
        Some(rustls::Error::InvalidMessage(_)) => {
            return "http: server gave HTTP response to HTTPS client".into();
        }
        Some(rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer)) => {
            return "tls: failed to verify certificate: x509: certificate signed by unknown authority"
                .into();
        }
        Some(rustls::Error::InvalidCertificate(why)) => {
            return format!("tls: failed to verify certificate: x509: {why}");
        }
        Some(other) => return format!("tls: {other}"),
        None => {}
    }
    if !e.is_connect() {
        return deepest(e);
    }
    let (name, _) = super::hosts::split_port(host);
    match io_error(e) {
        Some(std::io::ErrorKind::ConnectionRefused) => {
            format!("dial tcp {host}: connect: connection refused")
        }
        Some(std::io::ErrorKind::TimedOut) => format!("dial tcp {host}: i/o timeout"),
        Some(_) if chain(e).any(|c| c.to_string().contains("dns error")) => {
            format!("dial tcp: lookup {name}: no such host")
        }
        _ if e.is_timeout() => format!("dial tcp {host}: i/o timeout"),
        _ => format!("dial tcp {host}: {}", deepest(e)),
    }
}

fn chain(e: &reqwest::Error) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(e.source(), |e: &&(dyn std::error::Error + 'static)| {
        (*e).source()
    })
}

fn deepest(e: &reqwest::Error) -> String {
    // A truncated response is Go's io.ErrUnexpectedEOF.
    if io_error(e) == Some(std::io::ErrorKind::UnexpectedEof) {
        return "unexpected EOF".into();
    }
    chain(e)
        .last()
        .map_or_else(|| "unknown error".into(), ToString::to_string)
}

fn io_error(e: &reqwest::Error) -> Option<std::io::ErrorKind> {
    chain(e)
        .filter_map(|c| c.downcast_ref::<std::io::Error>())
        .last()
        .map(std::io::Error::kind)
}

// rustls hides its error in io::Errors, whose inner errors are not in the chain.
fn tls_error(e: &reqwest::Error) -> Option<&rustls::Error> {
    chain(e).find_map(|mut c| {
        loop {
            if let Some(found) = c.downcast_ref::<rustls::Error>() {
                return Some(found);
            }
            c = c.downcast_ref::<std::io::Error>()?.get_ref()?;
        }
    })
}
