//! How registries are reached: the `registry` table, made into what the transfer plugin takes.
//!
//! `config_path` goes there as it is. The deprecated tables are translated once, at start: `mirrors` (and the TLS of
//! `configs`) into folders of hosts.toml below the plugin's state, `auths` and the credentials of `configs` into a
//! table by host. There is one way to pull, not a second one for old configurations.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use corten_core::warnings::{
    CRI_REGISTRY_AUTHS, CRI_REGISTRY_CONFIGS, CRI_REGISTRY_MIRRORS, Deprecation,
};
use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::AuthConfig;

use super::auth::of_config;
use crate::config::{Registry, RegistryTls};

/// Where hosts.toml is looked for when nothing is configured.
pub const DEFAULT_CONFIG_PATH: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

/// What the `registry` table says.
#[derive(Default)]
pub(super) struct Registries {
    /// Folders of hosts.toml, separated by `:`.
    pub config_path: String,
    /// Of each request to a registry.
    pub headers: BTreeMap<String, String>,
    /// Configured credentials, by host.
    pub auths: BTreeMap<String, AuthConfig>,
    /// The deprecation warnings that this configuration earns.
    pub deprecated: Vec<Deprecation>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Headers and credentials may be secrets.
        f.debug_struct("Registries")
            .field("config_path", &self.config_path)
            .finish_non_exhaustive()
    }
}

/// Reads the table; `dir` is made anew where mirrors have to be written.
///
/// # Errors
/// InvalidArgument: mirrors together with a config_path, an endpoint or registry that is no URL; those of writing.
pub(super) fn read(config: &Registry, dir: &Path) -> Result<Registries> {
    let mut out = Registries {
        config_path: config.config_path.clone(),
        ..Registries::default()
    };
    if !config.mirrors.is_empty() {
        if !config.config_path.is_empty() {
            return Err(Error::new(
                Kind::InvalidArgument,
                "invalid cri image config: `mirrors` cannot be set when `config_path` is provided",
            ));
        }
        out.deprecated.push(CRI_REGISTRY_MIRRORS);
    }
    if !config.configs.is_empty() {
        out.deprecated.push(CRI_REGISTRY_CONFIGS);
    }
    if !config.auths.is_empty() {
        out.deprecated.push(CRI_REGISTRY_AUTHS);
    }
    let tls = |host: &str| config.configs.get(host).and_then(|c| c.tls.as_ref());
    let has_tls = config.configs.values().any(|c| c.tls.is_some());
    if config.config_path.is_empty() {
        out.config_path = match config.mirrors.is_empty() && !has_tls {
            true => DEFAULT_CONFIG_PATH.into(),
            false => {
                write_hosts(config, &tls, dir)?;
                dir.to_string_lossy().into_owned()
            }
        };
    }
    for (name, values) in &config.headers {
        out.headers.insert(name.clone(), values.join(", "));
    }
    for (host, registry) in &config.configs {
        if let Some(auth) = &registry.auth {
            out.auths.insert(host.clone(), of_config(auth));
        }
    }
    for (endpoint, auth) in &config.auths {
        out.auths
            .insert(host_of(endpoint).to_owned(), of_config(auth));
    }
    Ok(out)
}

// One folder for each host with mirrors or TLS of its own; `*` is `_default`.
fn write_hosts<'a>(
    config: &'a Registry,
    tls: &dyn Fn(&str) -> Option<&'a RegistryTls>,
    dir: &Path,
) -> Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("remove {}", dir.display()));
        }
        _ => {}
    }
    let with_tls = config.configs.iter().filter(|(_, c)| c.tls.is_some());
    let hosts: BTreeSet<&String> = config
        .mirrors
        .keys()
        .chain(with_tls.map(|(host, _)| host))
        .collect();
    for host in hosts {
        if host.contains('/') || matches!(host.as_str(), "" | "." | "..") {
            return Err(Error::invalid(format!("registry host {host:?}")));
        }
        let endpoints = config
            .mirrors
            .get(host)
            .or_else(|| config.mirrors.get("*"))
            .map(|m| m.endpoint.as_slice())
            .unwrap_or_default();
        let text = hosts_toml(host, endpoints, tls)?;
        let folder = dir.join(if host == "*" { "_default" } else { host });
        std::fs::create_dir_all(&folder)
            .and_then(|()| std::fs::write(folder.join("hosts.toml"), text))
            .with_context(|| format!("write {}", folder.display()))?;
    }
    Ok(())
}

fn hosts_toml<'a>(
    host: &str,
    endpoints: &[String],
    tls: &dyn Fn(&str) -> Option<&'a RegistryTls>,
) -> Result<String> {
    let mut out = String::new();
    let line = |out: &mut String, key: &str, value: toml::Value| {
        let _ = writeln!(out, "{key} = {value}");
    };
    if let Some(own) = tls(host) {
        write_tls(&mut out, own, &line);
    }
    for endpoint in endpoints {
        let url = match endpoint.contains("://") {
            true => endpoint.clone(),
            false => format!("{}://{endpoint}", default_scheme(host_of(endpoint))),
        };
        let rest = url.split_once("://").map_or("", |(_, rest)| rest);
        if host_of(&url).is_empty() {
            return Err(Error::invalid(format!("parse endpoint url {endpoint:?}")));
        }
        let path = rest.split_once('/').map_or("", |(_, path)| path);
        let name = toml::Value::String(url.trim_end_matches('/').to_owned());
        let _ = writeln!(out, "[host.{name}]");
        let capabilities = ["pull", "resolve"].map(|c| toml::Value::String(c.into()));
        line(
            &mut out,
            "capabilities",
            toml::Value::Array(capabilities.into()),
        );
        if !path.is_empty() {
            // The endpoint says where the API is.
            line(&mut out, "override_path", true.into());
        }
        if let Some(own) = tls(host_of(&url)) {
            write_tls(&mut out, own, &line);
        }
    }
    Ok(out)
}

fn write_tls(out: &mut String, tls: &RegistryTls, line: &dyn Fn(&mut String, &str, toml::Value)) {
    if tls.insecure_skip_verify {
        line(out, "skip_verify", true.into());
    }
    if !tls.ca_file.is_empty() {
        line(out, "ca", tls.ca_file.clone().into());
    }
    if !tls.cert_file.is_empty() {
        let pair = vec![
            toml::Value::from(tls.cert_file.clone()),
            tls.key_file.clone().into(),
        ];
        line(out, "client", toml::Value::Array(vec![pair.into()]));
    }
}

fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default()
}

fn default_scheme(host: &str) -> &'static str {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    match name {
        "localhost" | "[::1]" | "::1" => "http",
        name if name.starts_with("127.") => "http",
        _ => "https",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Auth, Mirror, RegistryConfig};

    #[test]
    fn an_empty_table_looks_in_the_usual_places() {
        let out = read(&Registry::default(), Path::new("/nonexistent")).unwrap();
        assert_eq!(out.config_path, DEFAULT_CONFIG_PATH);
        assert!(out.deprecated.is_empty());
    }

    #[test]
    fn old_tables_become_hosts_files_and_credentials() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("hosts");
        let mirror = |endpoints: &[&str]| Mirror {
            endpoint: endpoints.iter().map(|e| (*e).to_owned()).collect(),
            ..Mirror::default()
        };
        let auth = |user: &str| Auth {
            username: user.into(),
            ..Auth::default()
        };
        let mut config = Registry {
            headers: BTreeMap::from([("X-A".to_owned(), vec!["1".to_owned(), "2".to_owned()])]),
            mirrors: BTreeMap::from([
                (
                    "docker.io".to_owned(),
                    mirror(&["localhost:5000", "https://m.io/v2/hub"]),
                ),
                ("*".to_owned(), mirror(&["http://any"])),
            ]),
            configs: BTreeMap::from([(
                "m.io".to_owned(),
                RegistryConfig {
                    auth: Some(auth("m")),
                    tls: Some(RegistryTls {
                        insecure_skip_verify: true,
                        ..RegistryTls::default()
                    }),
                },
            )]),
            auths: BTreeMap::from([("https://a.io/v1/".to_owned(), auth("a"))]),
            ..Registry::default()
        };
        let out = read(&config, &at).unwrap();
        assert_eq!(out.config_path, at.to_string_lossy());
        assert_eq!(out.headers["X-A"], "1, 2");
        assert_eq!(out.auths["m.io"].username, "m");
        assert_eq!(out.auths["a.io"].username, "a");
        assert_eq!(out.deprecated.len(), 3);
        let text = |host: &str| std::fs::read_to_string(at.join(host).join("hosts.toml")).unwrap();
        let hub = text("docker.io");
        assert!(
            hub.contains(
                "[host.\"http://localhost:5000\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
            ),
            "{hub}"
        );
        assert!(hub.ends_with("[host.\"https://m.io/v2/hub\"]\ncapabilities = [\"pull\", \"resolve\"]\noverride_path = true\nskip_verify = true\n"), "{hub}");
        assert!(text("_default").contains("[host.\"http://any\"]"));
        assert!(text("m.io").starts_with("skip_verify = true\n[host.\"http://any\"]"));
        assert!(hub.parse::<toml::Table>().is_ok());
        config.config_path = "/x".into();
        assert_eq!(
            read(&config, &at).unwrap_err().kind(),
            Kind::InvalidArgument
        );
        config.config_path = String::new();
        config.mirrors.insert("../x".into(), Mirror::default());
        assert!(read(&config, &at).is_err());
    }
}
