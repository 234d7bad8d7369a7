//! Registries on loopback: Debian's docker-registry, plain or TLS, and [`Tiny`], a server of our
//! own for what a good registry does not do (tokens, wrong bytes, broken connections).

mod http;
mod tiny;

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

pub use tiny::{Tiny, Trick};

use crate::images::{Image, OCI_INDEX};
use crate::peers;
use crate::process::eventually;

/// A docker-registry; it and its storage go when dropped. Several of one directory share storage.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    dir: PathBuf,
    port: u16,
    /// The CA's certificate, if it speaks TLS.
    pub ca: Option<PathBuf>,
    /// Certificate and key of a client, if it wants to see one.
    pub client: Option<(PathBuf, PathBuf)>,
}

// === impl Registry ===

impl Registry {
    /// Speaks plain HTTP and keeps its files under `dir`.
    #[must_use]
    pub fn plain(dir: &Path) -> Self {
        Self::start(dir, None)
    }

    /// Speaks HTTPS with a certificate for 127.0.0.1 from a CA of its own.
    #[must_use]
    pub fn tls(dir: &Path) -> Self {
        Self::start(dir, Some(certificate(dir)))
    }

    /// Speaks HTTPS with those only who show a certificate of its CA.
    #[must_use]
    pub fn mutual_tls(dir: &Path) -> Self {
        let mut registry = Self::start_with(dir, Some(certificate(dir)), true);
        registry.client = Some(client_certificate(dir));
        registry
    }

    fn start(dir: &Path, tls: Option<(PathBuf, PathBuf, PathBuf)>) -> Self {
        Self::start_with(dir, tls, false)
    }

    fn start_with(dir: &Path, tls: Option<(PathBuf, PathBuf, PathBuf)>, mutual: bool) -> Self {
        let dir = dir.join("registry");
        fs::create_dir_all(&dir).unwrap();
        let encryption = tls.as_ref().map_or_else(String::new, |(ca, cert, key)| {
            let clients = if mutual {
                format!("    clientcas:\n      - {}\n", ca.display())
            } else {
                String::new()
            };
            format!(
                "  tls:\n    certificate: {}\n    key: {}\n{clients}",
                cert.display(),
                key.display()
            )
        });
        let ca = tls.map(|(ca, ..)| ca);
        // Another process may take the port between our look and the registry's start.
        for _ in 0..5 {
            let port = free_port();
            let config = format!(
                "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: \
                 {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp:\n  \
                 addr: 127.0.0.1:{port}\n{encryption}",
                dir.display()
            );
            let file = dir.join(format!("config-{port}.yml"));
            fs::write(&file, config).unwrap();
            let mut child = spawn(&file, &dir.join("log"));
            let up = eventually(Duration::from_secs(15), || {
                if child.try_wait().is_ok_and(|ended| ended.is_some()) {
                    return Some(false);
                }
                TcpStream::connect(("127.0.0.1", port)).ok().map(|_| true)
            });
            if up == Some(true) && child.try_wait().is_ok_and(|ended| ended.is_none()) {
                return Self {
                    child,
                    dir,
                    port,
                    ca,
                    client: None,
                };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        let log = fs::read_to_string(dir.join("log")).unwrap_or_default();
        panic!("docker-registry does not start: {log}");
    }

    /// `host:port`.
    #[must_use]
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The reference under which `image` is found here.
    #[must_use]
    pub fn reference(&self, image: &Image) -> String {
        let (path, tag) = image.repository();
        format!("{}/{path}:{tag}", self.host())
    }

    /// Puts an image into a registry that speaks plain HTTP and gives its reference.
    pub fn push(&self, image: &Image) -> String {
        push(&self.host(), image);
        self.reference(image)
    }

    /// A hosts directory that tells clients how to reach this registry.
    #[must_use]
    pub fn hosts_dir(&self) -> PathBuf {
        let hosts = self.dir.join("hosts");
        // containerd looks for `host_port_` as well as for `host:port`.
        let dir = hosts.join(self.host());
        fs::create_dir_all(&dir).unwrap();
        let toml = match &self.ca {
            Some(ca) => format!(
                "server = \"https://{0}\"\n[host.\"https://{0}\"]\n  \
                 capabilities = [\"pull\", \"resolve\", \"push\"]\n  ca = \"{1}\"\n",
                self.host(),
                ca.display()
            ),
            None => format!(
                "server = \"http://{0}\"\n[host.\"http://{0}\"]\n  \
                 capabilities = [\"pull\", \"resolve\", \"push\"]\n",
                self.host()
            ),
        };
        let client = self
            .client
            .as_ref()
            .map_or_else(String::new, |(cert, key)| {
                format!(
                    "  client = [[\"{}\", \"{}\"]]\n",
                    cert.display(),
                    key.display()
                )
            });
        fs::write(dir.join("hosts.toml"), toml + &client).unwrap();
        hosts
    }

    /// A hosts directory that says no more than that this registry speaks HTTPS.
    #[must_use]
    pub fn bare_hosts_dir(&self) -> PathBuf {
        let hosts = self.dir.join("bare");
        let dir = hosts.join(self.host());
        fs::create_dir_all(&dir).unwrap();
        let toml = format!(
            "server = \"https://{0}\"\n[host.\"https://{0}\"]\n",
            self.host()
        );
        fs::write(dir.join("hosts.toml"), toml).unwrap();
        hosts
    }

    /// A hosts directory in which this registry is the mirror of `name`.
    #[must_use]
    pub fn mirror_dir(&self, name: &str) -> PathBuf {
        let hosts = self.dir.join("mirrors");
        let dir = hosts.join(name);
        fs::create_dir_all(&dir).unwrap();
        let toml = format!(
            "server = \"https://{name}\"\n[host.\"http://{}\"]\n  \
             capabilities = [\"pull\", \"resolve\"]\n",
            self.host()
        );
        fs::write(dir.join("hosts.toml"), toml).unwrap();
        hosts
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Puts an image into the registry at `host`, which speaks plain HTTP, under its path and tag.
pub fn push(host: &str, image: &Image) {
    let (path, tag) = image.repository();
    let mut manifests = Vec::new();
    for (digest, blob) in &image.blobs {
        if blob.media_type.contains("manifest") || blob.media_type == OCI_INDEX {
            manifests.push((digest, blob));
            continue;
        }
        let begun = http::request(
            host,
            "POST",
            &format!("/v2/{path}/blobs/uploads/"),
            &[],
            b"",
        );
        let location = begun.header("location").expect("an upload has a place");
        let place = location.split_once(host).map_or(location, |(_, rest)| rest);
        let sign = if place.contains('?') { '&' } else { '?' };
        let target = format!("{place}{sign}digest={digest}");
        let kind = ("Content-Type", "application/octet-stream");
        let put = http::request(host, "PUT", &target, &[kind], &blob.bytes);
        assert!(put.status == 201, "push a blob: {put:?}");
    }
    // The registry wants an index's members before the index.
    manifests.sort_by_key(|(digest, _)| **digest == image.digest);
    for (digest, blob) in manifests {
        let name = if *digest == image.digest { tag } else { digest };
        let target = format!("/v2/{path}/manifests/{name}");
        let kind = ("Content-Type", blob.media_type.as_str());
        let put = http::request(host, "PUT", &target, &[kind], &blob.bytes);
        assert!(put.status == 201, "push a manifest: {put:?}");
    }
}

fn spawn(config: &Path, log: &Path) -> Child {
    let log = fs::File::options()
        .create(true)
        .append(true)
        .open(log)
        .unwrap();
    Command::new(peers::debian("docker-registry"))
        .arg("serve")
        .arg(config)
        .env("OTEL_TRACES_EXPORTER", "none")
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("docker-registry starts")
}

/// A port that nobody listens on.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has free ports");
    listener.local_addr().expect("it is bound").port()
}

fn openssl(dir: &Path, args: &str) {
    let output = Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .expect("openssl runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {args}: {error}");
}

/// A client's certificate and key, from the CA of the registry that was started in `dir`.
fn client_certificate(dir: &Path) -> (PathBuf, PathBuf) {
    fs::write(dir.join("client.ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(
        dir,
        &format!("req {key} -keyout client.key -out client.csr -subj /CN=test-client"),
    );
    openssl(
        dir,
        "x509 -req -in client.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
         -extfile client.ext -out client.crt",
    );
    (dir.join("client.crt"), dir.join("client.key"))
}

/// A CA and a certificate for 127.0.0.1: paths of the CA's and the server's certificate and key.
fn certificate(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let openssl = |args: &str| openssl(dir, args);
    let extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n\
                      extendedKeyUsage=serverAuth\n";
    fs::write(dir.join("san.ext"), extensions).unwrap();
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    openssl(&format!(
        "req -x509 {key} -keyout ca.key -out ca.crt -days 30 -subj /CN=test-ca"
    ));
    openssl(&format!(
        "req {key} -keyout server.key -out server.csr -subj /CN=test-registry"
    ));
    openssl(
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 30 \
         -extfile san.ext -out server.crt",
    );
    (
        dir.join("ca.crt"),
        dir.join("server.crt"),
        dir.join("server.key"),
    )
}
