//! Registries over TLS that ask for client certificates.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use corten_core::Digest;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

use super::{fetcher, layer, me, open};
use crate::fakes::Memory;

/// Requests in order: the first line, and whether a client certificate came with it.
type Log = Arc<Mutex<Vec<(String, bool)>>>;

/// Makes `ca.pem`, and `cert.pem` with `key.pem` for this machine's two names.
fn certificates(dir: &Path) {
    let openssl = |args: &str| {
        let done = Command::new("openssl")
            .args(args.split(' '))
            .current_dir(dir)
            .output()
            .expect("openssl runs");
        let error = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "openssl {args}: {error}");
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.pem -subj /CN=ca -days 2"
    ));
    openssl(&format!(
        "req {key} -keyout key.pem -out cert.csr -subj /CN=me"
    ));
    std::fs::write(
        dir.join("names"),
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
    )
    .unwrap();
    openssl(
        "x509 -req -in cert.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
    );
}

fn config(dir: &Path) -> Arc<ServerConfig> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(dir.join("cert.pem"))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("key.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_file(dir.join("ca.pem")).unwrap();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .allow_unauthenticated()
        .build()
        .unwrap();
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .unwrap();
    Arc::new(config)
}

/// A server on a thread of its own; each connection carries one request.
fn serve(
    config: Arc<ServerConfig>,
    answer: impl Fn(&str) -> String + Send + 'static,
) -> (u16, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let log = Log::default();
    let seen = log.clone();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let tls = ServerConnection::new(config.clone()).unwrap();
            let mut stream = StreamOwned::new(tls, socket.unwrap());
            let mut head = Vec::new();
            let mut byte = [0];
            // A client that only looks, or is refused, ends early.
            while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                head.push(byte[0]);
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let Some(first) = head.lines().next() else {
                continue;
            };
            let known = stream.conn.peer_certificates().is_some();
            seen.lock().push((first.to_owned(), known));
            let _ = stream.write_all(answer(&head).as_bytes());
            stream.conn.send_close_notify();
            let _ = stream.flush();
        }
    });
    (port, log)
}

fn plain(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n{body}"
    )
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_its_host_and_to_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    certificates(dir.path());
    let config = config(dir.path());
    let (elsewhere, stranger) = serve(config.clone(), |head| {
        match head.starts_with("POST /token ") {
            true => plain("200 OK", "", r#"{"token":"T"}"#),
            false => plain("200 OK", "", "blob"),
        }
    });
    let elsewhere = format!("https://localhost:{elsewhere}");
    let (port, own) = serve(config, move |head| {
        if head.contains("authorization: Bearer T") {
            return plain("307 X", &format!("location: {elsewhere}/blob\r\n"), "");
        }
        let challenge = format!("www-authenticate: Bearer realm=\"{elsewhere}/token\"\r\n");
        plain("401 Unauthorized", &challenge, "")
    });
    let host = format!("127.0.0.1:{port}");
    let folder = dir.path().join("hosts").join(&host);
    std::fs::create_dir_all(&folder).unwrap();
    let text = format!(
        "server = \"https://{host}\"\nca = \"../../ca.pem\"\n\
         client = [[\"../../cert.pem\", \"../../key.pem\"]]\n"
    );
    std::fs::write(folder.join("hosts.toml"), text).unwrap();
    let registry = open(&host, |o| {
        o.host_roots = vec![dir.path().join("hosts")];
        o.credentials = me();
    })
    .await;
    let store = Memory::default();
    let blob = fetcher(registry, &store).blob(&layer(b"blob")).await;
    blob.unwrap();
    assert!(store.bytes(&Digest::sha256(b"blob")).is_some());
    let lines = |log: &Log, known| {
        let log = log.lock();
        assert!(log.iter().all(|l| l.1 == known), "{log:?}");
        log.iter().map(|l| l.0.clone()).collect::<Vec<_>>()
    };
    assert_eq!(lines(&own, true).len(), 2);
    assert_eq!(
        lines(&stranger, false),
        ["POST /token HTTP/1.1", "GET /blob HTTP/1.1"]
    );
}
