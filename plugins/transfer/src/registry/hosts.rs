//! Where the images of a registry host come from: `hosts.toml` in a folder of the host, docker style certificate
//! folders, and the defaults when there is neither (containerd: core/remotes/docker/config).
//!
//! Looked up as `<root>/HOST_PORT_`, `<root>/HOST[:PORT]`, `<root>/_default`, and read anew for each transfer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_core::{Context, Error, Kind, Result};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::de::{DeTable, DeValue};

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
}

impl Capabilities {
    const ALL: Self = Self {
        pull: true,
        resolve: true,
        push: true,
    };
    const NONE: Self = Self {
        pull: false,
        resolve: false,
        push: false,
    };
}

/// One place to ask, in the order of the list it is in.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// `http` or `https`; empty until [`complete`] sets the defaults.
    pub scheme: String,
    /// `name[:port]`.
    pub host: String,
    /// Prefix of all API paths, usually `/v2`.
    pub path: String,
    pub capabilities: Capabilities,
    pub ca: Vec<PathBuf>,
    /// Certificate and key files; the key may be in the certificate's file.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    pub skip_verify: Option<bool>,
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
}

impl Host {
    fn empty() -> Self {
        Self {
            scheme: String::new(),
            host: String::new(),
            path: String::new(),
            capabilities: Capabilities::ALL,
            ca: Vec::new(),
            client: Vec::new(),
            skip_verify: None,
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }

    /// Whether the file says anything about TLS.
    pub fn has_tls(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }
}

/// The hosts for images of registry `host`, the last one being the registry itself unless a file says otherwise.
/// `roots` are folders as in `config_path`; the first that knows the host wins. Blocking.
///
/// # Errors
/// A folder or certificate folder that cannot be read. A hosts.toml that cannot be decoded is logged and ignored,
/// as stock does.
pub fn load(host: &str, roots: &[PathBuf], default_scheme: &str) -> Result<Vec<Host>> {
    let mut hosts = match roots.iter().find_map(|r| folder(r, host)) {
        Some(dir) => load_folder(&dir)?,
        None => vec![Host::empty()],
    };
    if let Some(last) = hosts.last_mut()
        && last.host.is_empty()
    {
        complete(last, host, default_scheme);
    }
    Ok(hosts)
}

/// Whether `host[:port]` names this machine literally.
pub fn is_localhost(host: &str) -> bool {
    let name = split_port(host).0;
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || name
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback())
}

/// `name` and `port` of `name[:port]`, where the name may be a bracketed address.
pub fn split_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    }
}

// Sets what the file left open for the registry's own entry.
fn complete(entry: &mut Host, host: &str, default_scheme: &str) {
    let scheme = |fallback: &str| match default_scheme {
        "" => fallback.to_owned(),
        s => s.to_owned(),
    };
    if host == "docker.io" {
        entry.scheme = "https".into();
        entry.host = "registry-1.docker.io".into();
    } else if is_localhost(host) && default_scheme.is_empty() {
        let port = split_port(host).1;
        entry.scheme = if matches!(port, None | Some("443")) {
            "https"
        } else {
            "http"
        }
        .into();
        entry.host = host.into();
        if port != Some("80") {
            entry.skip_verify = Some(true);
        }
    } else {
        entry.scheme = scheme(if is_localhost(host) { "http" } else { "https" });
        entry.host = host.into();
    }
    entry.path = "/v2".into();
    entry.capabilities = Capabilities::ALL;
}

fn folder(root: &Path, host: &str) -> Option<PathBuf> {
    // The host is a part of an image name that a client sent: never let it leave the root.
    if host.is_empty() || host.contains('/') || host == "." || host == ".." {
        return None;
    }
    let mut names = Vec::new();
    if let Some((name, port)) = host.rsplit_once(':') {
        names.push(format!("{name}_{port}_"));
    }
    names.extend([host.to_owned(), "_default".to_owned()]);
    names.iter().map(|n| root.join(n)).find(|p| p.exists())
}

fn load_folder(dir: &Path) -> Result<Vec<Host>> {
    let file = dir.join("hosts.toml");
    let text = match std::fs::read_to_string(&file) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(e).with_context(|| format!("read {}", file.display())),
    };
    if text.is_empty() {
        return Ok(vec![certificates(dir)?]);
    }
    match parse(&text, dir) {
        Ok(hosts) => Ok(hosts),
        Err(error) => {
            tracing::error!(%error, file = %file.display(), "decode hosts file");
            Ok(vec![certificates(dir)?])
        }
    }
}

// Docker's layout: *.crt are CAs, *.cert with *.key are client certificates.
fn certificates(dir: &Path) -> Result<Host> {
    let mut host = Host::empty();
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(host),
        Err(e) => return Err(e).with_context(|| format!("read {}", dir.display())),
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths.into_iter().filter(|p| p.is_file()) {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => host.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                host.client.push((path, key.exists().then_some(key)));
            }
            _ => {}
        }
    }
    Ok(host)
}

fn invalid(why: impl std::fmt::Display) -> Error {
    Error::new(Kind::InvalidArgument, why.to_string())
}

/// Parses a hosts.toml of folder `dir`: its `[host."…"]` tables in file order, then the server.
///
/// # Errors
/// InvalidArgument with what is wrong.
pub fn parse(text: &str, dir: &Path) -> Result<Vec<Host>> {
    let table = DeTable::parse(text).map_err(|e| invalid(e.message()))?;
    let table = table.get_ref();
    let mut out = Vec::new();
    if let Some(hosts) = table.get("host") {
        let DeValue::Table(hosts) = hosts.get_ref() else {
            return Err(invalid("\"host\" is not a table"));
        };
        let mut ordered: Vec<_> = hosts.iter().collect();
        ordered.sort_by_key(|(name, _)| name.span().start);
        for (name, config) in ordered {
            let DeValue::Table(config) = config.get_ref() else {
                return Err(invalid(format!("host {:?} is not a table", name.get_ref())));
            };
            out.push(entry(name.get_ref(), config, dir)?);
        }
    }
    let server = match table.get("server") {
        Some(v) => text_of(v.get_ref(), "server")?,
        None => String::new(),
    };
    out.push(entry(&server, table, dir)?);
    Ok(out)
}

fn entry(server: &str, config: &DeTable<'_>, dir: &Path) -> Result<Host> {
    let mut out = Host::empty();
    let override_path = matches!(
        config.get("override_path").map(|v| v.get_ref()),
        Some(DeValue::Boolean(true))
    );
    if !server.is_empty() {
        set_server(&mut out, server, override_path)?;
    }
    if let Some(list) = config.get("capabilities") {
        let list = strings(list.get_ref(), "capabilities")?;
        if !list.is_empty() {
            out.capabilities = capabilities(&list)?;
        }
    }
    let absolute = |p: String| dir.join(p);
    if let Some(ca) = config.get("ca") {
        out.ca = strings(ca.get_ref(), "ca")?
            .into_iter()
            .map(absolute)
            .collect();
    }
    match config.get("client").map(|v| v.get_ref()) {
        None => {}
        Some(DeValue::Array(pairs)) => {
            for pair in pairs.iter() {
                match strings(pair.get_ref(), "client")?.as_slice() {
                    [one] => out.client.push((dir.join(one), None)),
                    [cert, key] if matches!(pair.get_ref(), DeValue::Array(_)) => {
                        out.client.push((dir.join(cert), Some(dir.join(key))));
                    }
                    _ => return Err(invalid("invalid pair for \"client\"")),
                }
            }
        }
        Some(one) => out.client.push((dir.join(text_of(one, "client")?), None)),
    }
    match config.get("skip_verify").map(|v| v.get_ref()) {
        None => {}
        Some(DeValue::Boolean(b)) => out.skip_verify = Some(*b),
        Some(_) => return Err(invalid("invalid type for \"skip_verify\"")),
    }
    if let Some(headers) = config.get("header") {
        out.headers = headers_of(headers.get_ref())?;
    }
    if let Some(timeout) = config.get("dial_timeout") {
        let text = text_of(timeout.get_ref(), "dial_timeout")?;
        if !text.is_empty() {
            let parsed = corten_core::duration::parse(&text)
                .ok_or_else(|| invalid(format!("time: invalid duration {text:?}")))?;
            out.dial_timeout = Some(parsed);
        }
    }
    Ok(out)
}

fn set_server(out: &mut Host, server: &str, override_path: bool) -> Result<()> {
    let server = match server.starts_with("http") {
        true => server.to_owned(),
        false => format!("https://{server}"),
    };
    let url = reqwest::Url::parse(&server)
        .map_err(|e| invalid(format!("unable to parse server {server}: {e}")))?;
    let name = url
        .host_str()
        .ok_or_else(|| invalid(format!("no host in server {server}")))?;
    out.scheme = url.scheme().to_owned();
    out.host = match url.port() {
        Some(port) => format!("{name}:{port}"),
        None => name.to_owned(),
    };
    let path = url.path().trim_end_matches('/');
    out.path = path.to_owned();
    if !override_path && !path.ends_with("/v2") {
        out.path.push_str("/v2");
    }
    Ok(())
}

fn capabilities(list: &[String]) -> Result<Capabilities> {
    let mut out = Capabilities::NONE;
    for c in list {
        match c.to_lowercase().as_str() {
            "pull" => out.pull = true,
            "resolve" => out.resolve = true,
            "push" => out.push = true,
            "referrers" => {}
            _ => return Err(invalid(format!("unknown capability {c}"))),
        }
    }
    Ok(out)
}

fn headers_of(value: &DeValue<'_>) -> Result<HeaderMap> {
    let DeValue::Table(table) = value else {
        return Err(invalid("invalid type for \"header\""));
    };
    let mut out = HeaderMap::new();
    for (name, value) in table.iter() {
        let bad = || invalid(format!("invalid header {:?}", name.get_ref()));
        let key = HeaderName::from_bytes(name.get_ref().as_bytes()).map_err(|_| bad())?;
        for text in strings(value.get_ref(), name.get_ref())? {
            let mut value = HeaderValue::from_str(&text).map_err(|_| bad())?;
            value.set_sensitive(true);
            out.append(key.clone(), value);
        }
    }
    Ok(out)
}

fn text_of(value: &DeValue<'_>, name: &str) -> Result<String> {
    match value {
        DeValue::String(s) => Ok(s.to_string()),
        _ => Err(invalid(format!("invalid type for {name:?}"))),
    }
}

// One string or a list of strings.
fn strings(value: &DeValue<'_>, name: &str) -> Result<Vec<String>> {
    match value {
        DeValue::Array(list) => list.iter().map(|v| text_of(v.get_ref(), name)).collect(),
        one => Ok(vec![text_of(one, name)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn urls(hosts: &[Host]) -> Vec<String> {
        hosts
            .iter()
            .map(|h| format!("{}://{}{}", h.scheme, h.host, h.path))
            .collect()
    }

    #[test]
    fn defaults_without_a_file() {
        for (host, scheme, want, skip) in [
            ("docker.io", "", "https://registry-1.docker.io/v2", None),
            ("quay.io", "", "https://quay.io/v2", None),
            ("quay.io", "http", "http://quay.io/v2", None),
            ("localhost", "", "https://localhost/v2", Some(true)),
            ("localhost:5000", "", "http://localhost:5000/v2", Some(true)),
            ("127.0.0.1:80", "", "http://127.0.0.1:80/v2", None),
            ("[::1]:5000", "", "http://[::1]:5000/v2", Some(true)),
            ("localhost:5000", "http", "http://localhost:5000/v2", None),
        ] {
            let hosts = load(host, &[], scheme).unwrap();
            assert_eq!(urls(&hosts), [want], "{host} {scheme}");
            assert_eq!(hosts[0].skip_verify, skip, "{host} {scheme}");
        }
    }

    #[test]
    fn file_order_paths_and_all_keys() {
        let text = r#"
server = "https://up.example"
capabilities = ["pull"]
[host."https://zeta.example"]
  capabilities = ["pull", "resolve"]
  ca = "ca.pem"
  client = [["c.pem", "k.pem"], "both.pem"]
  dial_timeout = "1m30s"
[host."https://zeta.example".header]
  X-Custom = ["a", "b"]
[host."http://alpha.example:5000/proxy"]
  skip_verify = true
[host."beta.example/exact"]
  override_path = true
  ca = ["/abs.pem", "rel.pem"]
"#;
        let hosts = parse(text, Path::new("/d")).unwrap();
        assert_eq!(
            urls(&hosts),
            [
                "https://zeta.example/v2",
                "http://alpha.example:5000/proxy/v2",
                "https://beta.example/exact",
                "https://up.example/v2"
            ]
        );
        let zeta = &hosts[0];
        assert!(!zeta.capabilities.push && zeta.capabilities.resolve);
        assert_eq!(zeta.ca, [PathBuf::from("/d/ca.pem")]);
        assert_eq!(zeta.client[0], ("/d/c.pem".into(), Some("/d/k.pem".into())));
        assert_eq!(zeta.client[1], ("/d/both.pem".into(), None));
        assert_eq!(zeta.dial_timeout, Some(Duration::from_secs(90)));
        assert_eq!(zeta.headers.get_all("x-custom").iter().count(), 2);
        assert_eq!(hosts[1].skip_verify, Some(true));
        assert_eq!(
            hosts[2].ca,
            [PathBuf::from("/abs.pem"), PathBuf::from("/d/rel.pem")]
        );
        assert!(!hosts[3].capabilities.resolve);
    }

    #[test]
    fn folders_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, host: &str| {
            let d = dir.path().join(name);
            std::fs::create_dir_all(&d).unwrap();
            std::fs::write(d.join("hosts.toml"), format!("[host.\"https://{host}\"]\n")).unwrap();
        };
        let first = |host: &str| {
            load(host, &[dir.path().to_owned()], "").unwrap()[0]
                .host
                .clone()
        };
        assert_eq!(first("r.example:5000"), "r.example:5000");
        put("_default", "d");
        assert_eq!(first("r.example:5000"), "d");
        put("r.example:5000", "c");
        assert_eq!(first("r.example:5000"), "c");
        put("r.example_5000_", "b");
        assert_eq!(first("r.example:5000"), "b");
        let all = load("r.example:5000", &[dir.path().to_owned()], "").unwrap();
        assert_eq!(urls(&all), ["https://b/v2", "https://r.example:5000/v2"]);
        std::fs::write(dir.path().join("r.example_5000_/hosts.toml"), "no = [toml").unwrap();
        std::fs::write(dir.path().join("r.example_5000_/ca.crt"), "x").unwrap();
        let all = load("r.example:5000", &[dir.path().to_owned()], "").unwrap();
        assert_eq!((all.len(), all[0].ca.len()), (1, 1));
    }
}
