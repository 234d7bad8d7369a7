//! URLs, HTTP and TLS.

use std::sync::Arc;

use corten_core::Kind;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{request, websocket};
use super::fixture::{exec, forward, serve};
use crate::streaming::server::{MAX_CONNECTIONS, MAX_HEAD};
use crate::streaming::{Config, Tls};

#[tokio::test]
async fn a_url_is_good_once_for_what_it_was_given_for() {
    let served = serve(Config::default()).await;
    let url = served.urls.exec(exec(&["exit", "0"], false)).unwrap();
    assert!(url.starts_with("http://127.0.0.1:"), "{url}");
    let refused = async |url: &str, method: &str| {
        let (answer, _) = request(url, method, "Content-Length: 0\r\n").await;
        answer.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(refused(&url, "DELETE").await, "405");
    // Not upgraded: the token is used up all the same.
    assert_eq!(refused(&url, "GET").await, "400");
    assert_eq!(refused(&url, "GET").await, "404");
    let url = served.urls.exec(exec(&["cat"], false)).unwrap();
    assert_eq!(
        refused(&url.replace("/exec/", "/attach/"), "POST").await,
        "404"
    );
    assert_eq!(refused(&url, "POST").await, "404");
    for path in ["/exec/", "/exec/../exec/x", "/", "/x/y/z", "/exec/00000000"] {
        let base = url.split("/exec/").next().unwrap();
        assert_eq!(
            refused(&format!("{base}{path}"), "GET").await,
            "404",
            "{path}"
        );
    }
    let url = served.urls.exec(exec(&["cat"], false)).unwrap();
    assert!(websocket(&url, "v9.channel.k8s.io").await.is_err());
}

#[tokio::test]
async fn requests_are_checked() {
    let served = serve(Config::default()).await;
    let kind = |e: corten_core::Error| (e.kind(), e.to_string());
    let mut r = exec(&["x"], true);
    r.stderr = true;
    let both = (
        Kind::InvalidArgument,
        "tty and stderr cannot both be true".to_owned(),
    );
    assert_eq!(kind(served.urls.exec(r.clone()).unwrap_err()), both);
    (r.stdin, r.stdout, r.stderr) = (false, false, false);
    assert_eq!(
        kind(served.urls.exec(r.clone()).unwrap_err()).0,
        Kind::InvalidArgument
    );
    r.stdout = true;
    r.container_id.clear();
    assert_eq!(
        kind(served.urls.exec(r).unwrap_err()).0,
        Kind::InvalidArgument
    );
    for port in [0, -1, 65536] {
        assert_eq!(
            kind(served.urls.port_forward(forward(&[port])).unwrap_err()).0,
            Kind::InvalidArgument
        );
    }
}

#[tokio::test]
async fn a_head_is_as_long_as_it_may_be() {
    let served = serve(Config::default()).await;
    let url = served.urls.exec(exec(&["cat"], false)).unwrap();
    let (host, path) = url
        .strip_prefix("http://")
        .unwrap()
        .split_once('/')
        .unwrap();
    let bare = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nX: \r\n\r\n").len();
    let head = |length: usize| format!("X: {}\r\n", "x".repeat(length - bare));
    // No upgrade is asked for, and after that there is no token.
    for (length, code) in [
        (MAX_HEAD - 1, "400"),
        (MAX_HEAD, "404"),
        (MAX_HEAD + 1, "431"),
    ] {
        let (answer, _) = request(&url, "GET", &head(length)).await;
        assert_eq!(answer.split(' ').nth(1), Some(code), "{length}: {answer}");
    }
    // Each request of a connection is measured for itself.
    let text = |length| {
        format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\n{}\r\n",
            head(length)
        )
    };
    let (_, mut socket) = request(&url, "GET", &head(MAX_HEAD)).await;
    for (length, code) in [(MAX_HEAD, "404"), (MAX_HEAD + 1, "431")] {
        // The body of the answer before comes first.
        socket.write_all(text(length).as_bytes()).await.unwrap();
        let mut answer = String::new();
        while !answer.contains(&format!("HTTP/1.1 {code}")) {
            answer.push(char::from(socket.read_u8().await.unwrap()));
        }
    }
}

#[tokio::test]
async fn connections_that_are_too_many_wait() {
    const MOST: usize = 3;
    assert_eq!(Config::default().connections, MAX_CONNECTIONS);
    let config = Config {
        connections: MOST,
        ..Config::default()
    };
    let served = serve(config).await;
    let url = served.urls.exec(exec(&["cat"], false)).unwrap();
    let path = url.rsplit_once("/exec/").unwrap().0.to_owned() + "/nothing";
    let mut held = Vec::new();
    for _ in 0..MOST {
        held.push(request(&path, "GET", "").await.1);
    }
    let host = path.split('/').nth(2).unwrap();
    let mut late = TcpStream::connect(host).await.unwrap();
    let head = format!("GET /nothing HTTP/1.1\r\nHost: {host}\r\n\r\n");
    late.write_all(head.as_bytes()).await.unwrap();
    // All others are answered meanwhile.
    for socket in &mut held {
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 9];
        socket.read_exact(&mut answer).await.unwrap();
    }
    let early = late.try_read(&mut [0; 1]).unwrap_err();
    assert_eq!(early.kind(), std::io::ErrorKind::WouldBlock);
    held.pop();
    let mut answer = [0; 12];
    late.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 404");
}

#[derive(Debug)]
struct Anyone(rustls::crypto::CryptoProvider);

impl rustls::client::danger::ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &rustls::pki_types::CertificateDer<'_>,
        _: &[rustls::pki_types::CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &rustls::pki_types::CertificateDer<'_>,
        d: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &rustls::pki_types::CertificateDer<'_>,
        d: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(m, c, d, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn tls_is_served_with_a_certificate_made_or_given() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let bad = Tls::KeyPair {
        certificate: key.clone(),
        key: certificate.clone(),
    };
    assert_eq!(bad.acceptor().err().unwrap().kind(), Kind::InvalidArgument);
    for tls in [
        Tls::SelfSigned(vec!["localhost".into(), "127.0.0.1".into()]),
        Tls::KeyPair { certificate, key },
    ] {
        let served = serve(Config {
            tls,
            ..Config::default()
        })
        .await;
        let url = served.urls.exec(exec(&["cat"], false)).unwrap();
        let (host, path) = url
            .strip_prefix("https://")
            .unwrap()
            .split_once('/')
            .unwrap();
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider.clone()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anyone(provider)))
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let socket = TcpStream::connect(host).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut socket = connector.connect(name, socket).await.unwrap();
        let head = format!(
            "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n"
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        socket.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 101");
    }
}
