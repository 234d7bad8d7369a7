//! TLS of the streaming server: none, a certificate made at start, or one from files.

use std::path::PathBuf;
use std::sync::Arc;

use corten_core::{Error, Kind, Result};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

/// What the streaming server shows its clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP.
    #[default]
    Off,
    /// A certificate for these names and addresses, made now and signed by itself.
    SelfSigned(Vec<String>),
    /// PEM files.
    KeyPair { certificate: PathBuf, key: PathBuf },
}

impl Tls {
    /// What accepts connections; none for plain HTTP. Blocks while it reads files.
    ///
    /// # Errors
    /// InvalidArgument: the files are not a certificate and its key.
    pub fn acceptor(&self) -> Result<Option<TlsAcceptor>> {
        let (chain, key) = match self {
            Self::Off => return Ok(None),
            Self::SelfSigned(names) => {
                let made = rcgen::generate_simple_self_signed(names.clone())
                    .map_err(|e| bad("make a self-signed certificate", e))?;
                let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
                (vec![made.cert.der().clone()], PrivateKeyDer::from(key))
            }
            Self::KeyPair { certificate, key } => {
                let what = |p: &PathBuf| format!("read {}", p.display());
                let chain = CertificateDer::pem_file_iter(certificate)
                    .and_then(Iterator::collect::<std::result::Result<Vec<_>, _>>)
                    .map_err(|e| bad(&what(certificate), e))?;
                let key = PrivateKeyDer::from_pem_file(key).map_err(|e| bad(&what(key), e))?;
                (chain, key)
            }
        };
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|e| bad("set up TLS", e))?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| bad("set up TLS", e))?;
        Ok(Some(TlsAcceptor::from(Arc::new(config))))
    }
}

fn bad(what: &str, e: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(Kind::InvalidArgument, format!("streaming server: {what}")).with_source(e)
}
