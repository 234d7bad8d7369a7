//! Attachments on disk: what was attached, how, and what the plugins said.
//!
//! The folder and the form are libcni's (`<dir>/results/<network>-<container>-<interface>`, kind `cniCacheV1`), so
//! that pods that stock containerd attached can be detached here and the other way round. An entry without a result
//! is one whose ADD did not end: its plugins may hold addresses all the same.
//!
//! Entries appear and change by rename, after their bytes are on disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use corten_core::{Context, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tracing::warn;

use crate::config::NetworkList;
use crate::result::NetworkResult;
use crate::{Capabilities, Version, names};

/// Largest entry that is read.
pub const MAX_ENTRY: u64 = 4 * 1024 * 1024;

const KIND: &str = "cniCacheV1";
/// Prefix of files that are not yet entries.
const DRAFT: &str = ".corten-";

/// One container's interface in one network.
#[derive(Debug, Clone)]
pub struct Attachment {
    pub container: String,
    pub interface: String,
    pub network: String,
    pub netns: String,
    pub args: Vec<(String, String)>,
    pub capabilities: Capabilities,
    /// The whole configuration it was made with.
    pub config: Vec<u8>,
    /// None: ADD did not end.
    pub result: Option<NetworkResult>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    kind: String,
    #[serde(rename = "containerId")]
    container: String,
    /// base64
    #[serde(default)]
    config: Option<String>,
    #[serde(rename = "ifName", default)]
    interface: String,
    #[serde(rename = "networkName", default)]
    network: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(rename = "cniArgs", default, skip_serializing_if = "Option::is_none")]
    args: Option<Vec<(String, String)>>,
    #[serde(
        rename = "capabilityArgs",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    capabilities: Option<BTreeMap<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result: Option<Map<String, Value>>,
}

/// The folder.
#[derive(Debug)]
pub struct Cache {
    results: PathBuf,
    drafts: AtomicU64,
}

// === impl Cache ===

impl Cache {
    /// The cache in `dir`, which need not exist yet; drafts of a daemon that died are swept. Blocks, as all of this.
    ///
    /// # Errors
    /// Of making the folder.
    pub fn open(dir: &Path) -> Result<Self> {
        let results = dir.join("results");
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700)
            .recursive(true)
            .create(&results)
            .with_context(|| format!("make {}", results.display()))?;
        for name in entries(&results)? {
            if name.starts_with(DRAFT) {
                let _ = std::fs::remove_file(results.join(name));
            }
        }
        Ok(Self {
            results,
            drafts: AtomicU64::new(0),
        })
    }

    /// Records an attachment; durable when it returns.
    ///
    /// # Errors
    /// Of writing it.
    pub fn put(&self, attachment: &Attachment) -> Result<()> {
        let path = self.path(attachment)?;
        let bytes = attachment.to_bytes()?;
        let n = self.drafts.fetch_add(1, Ordering::Relaxed);
        let draft = self
            .results
            .join(format!("{DRAFT}{}-{n}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = std::os::unix::fs::OpenOptionsExt::mode(
                File::options().write(true).create_new(true),
                0o600,
            )
            .open(&draft)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            std::fs::rename(&draft, &path)?;
            File::open(&self.results)?.sync_all()
        };
        write()
            .inspect_err(|_| _ = std::fs::remove_file(&draft))
            .with_context(|| format!("write {}", path.display()))
    }

    /// Forgets an attachment; one that is not there is forgotten already.
    ///
    /// # Errors
    /// Of removing it.
    pub fn remove(&self, attachment: &Attachment) -> Result<()> {
        let path = self.path(attachment)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// All attachments of a container, or all there are, in the order of their interfaces and networks. What cannot
    /// be read is logged and left alone: it may be another program's.
    ///
    /// # Errors
    /// Of reading the folder.
    pub fn list(&self, container: Option<&str>) -> Result<Vec<Attachment>> {
        let mut found = Vec::new();
        for name in entries(&self.results)? {
            let other = container.is_some_and(|id| !name.contains(&format!("-{id}-")));
            if other || name.starts_with(DRAFT) {
                continue;
            }
            match self.read(&name) {
                Ok(Some(a)) if container.is_none_or(|id| a.container == id) => found.push(a),
                Ok(_) => {}
                Err(error) => warn!(%error, "a CNI cache entry is not usable"),
            }
        }
        found.sort_by(|a, b| (&a.interface, &a.network).cmp(&(&b.interface, &b.network)));
        Ok(found)
    }

    fn read(&self, name: &str) -> Result<Option<Attachment>> {
        let path = self.results.join(name);
        let read = || -> Result<Option<Attachment>> {
            let mut bytes = Vec::new();
            let file = match File::open(&path) {
                // Removed since the folder was listed.
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            file.take(MAX_ENTRY + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > MAX_ENTRY {
                return Err(Error::invalid(format!("more than {MAX_ENTRY} bytes")));
            }
            Attachment::from_bytes(&bytes).map(Some)
        };
        read().with_context(|| format!("read {}", path.display()))
    }

    fn path(&self, a: &Attachment) -> Result<PathBuf> {
        names::check("network name", &a.network)?;
        names::check("container id", &a.container)?;
        names::check_interface(&a.interface)?;
        let name = format!("{}-{}-{}", a.network, a.container, a.interface);
        Ok(self.results.join(name))
    }
}

fn entries(dir: &Path) -> Result<Vec<String>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))?;
    let mut names = Vec::new();
    for entry in list {
        let entry = entry.with_context(|| format!("read {}", dir.display()))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

// === impl Attachment ===

impl Attachment {
    /// The network it was made with.
    ///
    /// # Errors
    /// InvalidArgument: what was recorded is no configuration.
    pub fn network_list(&self) -> Result<NetworkList> {
        NetworkList::parse(&self.config)
            .or_else(|e| NetworkList::parse_single(&self.config).map_err(|_| e))
            .with_context(|| format!("recorded configuration of network {:?}", self.network))
    }

    fn to_bytes(&self) -> Result<Vec<u8>> {
        let result = match &self.result {
            Some(r) => r.to_value(r.version())?.as_object().cloned(),
            None => None,
        };
        let entry = Entry {
            kind: KIND.to_owned(),
            container: self.container.clone(),
            config: Some(BASE64.encode(&self.config)),
            interface: self.interface.clone(),
            network: self.network.clone(),
            netns: self.netns.clone(),
            args: (!self.args.is_empty()).then(|| self.args.clone()),
            capabilities: Some(self.capabilities.as_map().clone()).filter(|c| !c.is_empty()),
            result,
        };
        serde_json::to_vec(&entry).map_err(|e| Error::internal(format!("write CNI cache: {e}")))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let bad = |e: &dyn std::fmt::Display| Error::invalid(format!("CNI cache entry: {e}"));
        let entry: Entry = serde_json::from_slice(bytes).map_err(|e| bad(&e))?;
        if entry.kind != KIND {
            return Err(bad(&format!("kind {:?}", entry.kind)));
        }
        let config = BASE64
            .decode(entry.config.unwrap_or_default())
            .map_err(|e| bad(&e))?;
        Ok(Self {
            container: entry.container,
            interface: entry.interface,
            network: entry.network,
            netns: entry.netns,
            args: entry.args.unwrap_or_default(),
            capabilities: entry.capabilities.unwrap_or_default().into(),
            config,
            result: match entry.result {
                Some(r) => Some(NetworkResult::from_value(r, Version::V0_1_0)?),
                None => None,
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn attachment(container: &str, network: &str) -> Attachment {
        let config = r#"{"name":"net","cniVersion":"1.0.0","plugins":[{"type":"x"}]}"#;
        Attachment {
            container: container.into(),
            interface: "eth0".into(),
            network: network.into(),
            netns: "/ns".into(),
            args: vec![("K8S_POD_NAME".into(), "p".into())],
            capabilities: Capabilities::new().mac("aa"),
            config: config.into(),
            result: None,
        }
    }

    #[test]
    fn what_is_put_is_found_by_container_until_removed() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let mut a = attachment("c1", "net");
        cache.put(&a).unwrap();
        // A name that is another's prefix, and one that contains another.
        cache.put(&attachment("c1-x", "net")).unwrap();
        cache.put(&attachment("c11", "net-c1-b")).unwrap();
        let found = cache.list(Some("c1")).unwrap();
        assert_eq!(found.len(), 1);
        assert!(found[0].result.is_none());
        assert_eq!(found[0].args, a.args);
        assert_eq!(found[0].capabilities, a.capabilities);
        assert_eq!(found[0].network_list().unwrap().plugins[0].kind, "x");

        let result = json!({"ips": [{"address": "10.0.0.1/8"}]}).to_string();
        a.result = Some(NetworkResult::parse(result.as_bytes(), Version::V1_0_0).unwrap());
        cache.put(&a).unwrap();
        assert_eq!(cache.list(Some("c1")).unwrap()[0].result, a.result);
        assert_eq!(cache.list(None).unwrap().len(), 3);
        cache.remove(&a).unwrap();
        cache.remove(&a).unwrap();
        assert!(cache.list(Some("c1")).unwrap().is_empty());
    }

    #[test]
    fn libcnis_entries_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let entry = json!({
            "kind": "cniCacheV1", "containerId": "c", "ifName": "eth0", "networkName": "net",
            "config": BASE64.encode(r#"{"name":"net","cniVersion":"0.3.1","plugins":[{"type":"x"}]}"#),
            "cniArgs": [["IgnoreUnknown", "1"]], "capabilityArgs": {"mac": "aa"},
            "result": {"cniVersion": "0.3.1", "ips": [{"version": "4", "address": "10.0.0.2/8"}], "dns": {}},
        });
        let path = dir.path().join("results/net-c-eth0");
        std::fs::write(&path, entry.to_string()).unwrap();
        let found = cache.list(Some("c")).unwrap();
        assert_eq!(
            found[0].args,
            [("IgnoreUnknown".to_owned(), "1".to_owned())]
        );
        assert_eq!(found[0].result.as_ref().unwrap().version(), Version::V0_3_1);
        cache.put(&found[0]).unwrap();
        let back: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(back["result"]["ips"], entry["result"]["ips"]);
        assert_eq!(back["cniArgs"], entry["cniArgs"]);
    }

    #[test]
    fn strangers_and_drafts_do_no_harm() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("results");
        std::fs::create_dir(&results).unwrap();
        std::fs::write(results.join(".corten-1-1"), "{").unwrap();
        std::fs::write(results.join("net-c-eth0"), "{\"kind\":").unwrap();
        std::fs::write(results.join("net-d-eth0"), r#"{"cniVersion":"0.2.0"}"#).unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        assert!(!results.join(".corten-1-1").exists());
        assert!(cache.list(None).unwrap().is_empty());
        assert!(results.join("net-c-eth0").exists());
        let mut bad = attachment("../c", "net");
        cache.put(&bad).unwrap_err();
        bad.container = "c".into();
        bad.network = "../n".into();
        cache.put(&bad).unwrap_err();
    }
}
