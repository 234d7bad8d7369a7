//! Owns the files of CDI: their schema (0.3.0 to 1.1.0), and which of them are not to be believed.

use std::collections::{BTreeMap, BTreeSet};

use corten_core::{Error, Result};
use serde::Deserialize;

/// Versions of the specification, oldest first. Each field says since when it is.
const VERSIONS: [&str; 10] = [
    "0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0",
];
/// The names of hooks.
const HOOKS: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];
/// A device whose cgroup rule allows nothing.
pub(super) const NO_ACCESS: &str = "none";

/// A description of devices of one vendor and class.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    cdi_version: String,
    /// `vendor.com/class`.
    pub kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub devices: Vec<Device>,
    #[serde(default)]
    pub container_edits: Edits,
}

/// One device.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub container_edits: Edits,
}

/// What changes in a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Edits {
    pub env: Vec<String>,
    pub device_nodes: Vec<Node>,
    pub net_devices: Vec<NetDevice>,
    pub hooks: Vec<Hook>,
    pub mounts: Vec<Mount>,
    pub intel_rdt: Option<IntelRdt>,
    pub additional_gids: Vec<u32>,
}

/// A device node.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Node {
    pub path: String,
    pub host_path: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub major: i64,
    pub minor: i64,
    pub file_mode: Option<u32>,
    pub permissions: String,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
}

/// An interface that moves into the container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NetDevice {
    pub host_interface_name: String,
    pub name: String,
}

/// A program to be run.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Hook {
    pub hook_name: String,
    pub path: String,
    pub args: Vec<String>,
    pub env: Vec<String>,
    pub timeout: Option<i64>,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct Mount {
    pub host_path: String,
    pub container_path: String,
    pub options: Vec<String>,
    #[serde(rename = "type")]
    pub kind: String,
}

/// A class of caches and memory bandwidth.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub clos_id: String,
    pub l3_cache_schema: String,
    pub mem_bw_schema: String,
    pub schemata: Option<Vec<String>>,
    pub enable_monitoring: bool,
}

/// Reads a file and checks it.
pub(super) fn parse(text: &[u8], yaml: bool) -> Result<File> {
    let wrong = |e: String| Error::invalid(format!("parse a CDI file: {e}"));
    let file: File = match yaml {
        true => serde_saphyr::from_slice(text).map_err(|e| wrong(e.to_string()))?,
        false => serde_json::from_slice(text).map_err(|e| wrong(e.to_string()))?,
    };
    file.check()?;
    Ok(file)
}

/// Whether a name is `vendor/class=device` with parts of their grammar.
pub(super) fn is_qualified(name: &str) -> bool {
    let Some((kind, device)) = name.split_once('=') else {
        return false;
    };
    !name.starts_with('/') && is_kind(kind) && is_device(device)
}

fn is_kind(kind: &str) -> bool {
    kind.split_once('/')
        .is_some_and(|(vendor, class)| is_label(vendor) && is_label(class))
}

/// A vendor or class: begins with a letter, ends with a letter or digit.
fn is_label(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

/// A device: may begin with a digit and have colons.
fn is_device(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}

// === impl File ===

impl File {
    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::invalid(what));
        if !is_kind(&self.kind) {
            return wrong(format!("kind {:?} is not vendor/class", self.kind));
        }
        self.check_version()?;
        self.container_edits.check()?;
        let mut names = BTreeSet::new();
        for device in &self.devices {
            let name = &device.name;
            if !is_device(name) {
                return wrong(format!("device name {name:?}"));
            }
            if !names.insert(name) {
                return wrong(format!("invalid spec, multiple device {name:?}"));
            }
            if device.container_edits == Edits::default() {
                return wrong(format!("device {name:?} changes nothing"));
            }
            device.container_edits.check()?;
        }
        if names.is_empty() {
            return wrong("invalid spec, no devices".into());
        }
        Ok(())
    }

    /// The version must be known, and as new as what the file uses.
    fn check_version(&self) -> Result<()> {
        let text = self.cdi_version.as_str();
        let said = text.strip_prefix('v').unwrap_or(text);
        let place = |version: &str| VERSIONS.iter().position(|v| *v == version);
        let needed = self.needed();
        match place(said) {
            None => Err(Error::invalid(format!("invalid version {text:?}"))),
            Some(said) if Some(said) < place(needed) => Err(Error::invalid(format!(
                "the spec version must be at least v{needed}"
            ))),
            Some(_) => Ok(()),
        }
    }

    fn needed(&self) -> &'static str {
        let devices = self.devices.iter();
        let all: Vec<&Edits> = devices
            .clone()
            .map(|d| &d.container_edits)
            .chain([&self.container_edits])
            .collect();
        let any = |uses: fn(&Edits) -> bool| all.iter().any(|edits| uses(edits));
        let class = self.kind.split('/').nth(1).unwrap_or_default();
        if any(|e| {
            let newer = |r: &IntelRdt| r.schemata.is_some() || r.enable_monitoring;
            !e.net_devices.is_empty() || e.intel_rdt.as_ref().is_some_and(newer)
        }) {
            "1.1.0"
        } else if any(|e| e.intel_rdt.is_some() || !e.additional_gids.is_empty()) {
            "0.7.0"
        } else if class.contains('.')
            || !self.annotations.is_empty()
            || devices.clone().any(|d| !d.annotations.is_empty())
        {
            "0.6.0"
        } else if devices
            .clone()
            .any(|d| d.name.starts_with(|c: char| c.is_ascii_digit()))
            || any(|e| e.device_nodes.iter().any(|node| !node.host_path.is_empty()))
        {
            "0.5.0"
        } else if any(|e| e.mounts.iter().any(|mount| !mount.kind.is_empty())) {
            "0.4.0"
        } else {
            "0.3.0"
        }
    }
}

// === impl Edits ===

impl Edits {
    /// Adds what another device changes. The last class wins.
    pub(super) fn append(&mut self, more: &Self) {
        self.env.extend_from_slice(&more.env);
        self.device_nodes.extend_from_slice(&more.device_nodes);
        self.net_devices.extend_from_slice(&more.net_devices);
        self.hooks.extend_from_slice(&more.hooks);
        self.mounts.extend_from_slice(&more.mounts);
        if more.intel_rdt.is_some() {
            self.intel_rdt.clone_from(&more.intel_rdt);
        }
        self.additional_gids
            .extend_from_slice(&more.additional_gids);
    }

    fn check(&self) -> Result<()> {
        let wrong = |what: String| Err(Error::invalid(what));
        check_env(&self.env)?;
        for node in &self.device_nodes {
            if node.path.is_empty() {
                return wrong("invalid (empty) device path".into());
            }
            if !["", "b", "c", "u", "p"].contains(&node.kind.as_str()) {
                return wrong(format!(
                    "device {:?}: invalid type {:?}",
                    node.path, node.kind
                ));
            }
            let access = &node.permissions;
            if access != NO_ACCESS && access.chars().any(|c| !"rwm".contains(c)) {
                return wrong(format!(
                    "device {:?}: invalid permissions {access:?}",
                    node.path
                ));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return wrong(format!("invalid hook name {:?}", hook.hook_name));
            }
            if hook.path.is_empty() {
                return wrong(format!("invalid hook {:?} with empty path", hook.hook_name));
            }
            check_env(&hook.env)?;
        }
        let half = |m: &Mount| m.host_path.is_empty() || m.container_path.is_empty();
        if self.mounts.iter().any(half) {
            return wrong("invalid mount, an empty path".into());
        }
        let clos = self
            .intel_rdt
            .as_ref()
            .map_or("", |rdt| rdt.clos_id.as_str());
        let file_name =
            clos.len() < 4096 && ![".", ".."].contains(&clos) && !clos.contains(['/', '\n']);
        if clos != "/" && !file_name {
            return wrong("invalid ClosID".into());
        }
        let (mut hosts, mut names) = (BTreeSet::new(), BTreeSet::new());
        for device in &self.net_devices {
            let (host, name) = (&device.host_interface_name, &device.name);
            if host.is_empty() || name.is_empty() || !hosts.insert(host) || !names.insert(name) {
                return wrong(format!("invalid linux net device {host:?}, name {name:?}"));
            }
        }
        Ok(())
    }
}

fn check_env(env: &[String]) -> Result<()> {
    match env
        .iter()
        .find(|entry| entry.find('=').is_none_or(|at| at == 0))
    {
        Some(entry) => Err(Error::invalid(format!(
            "invalid environment variable {entry:?}"
        ))),
        None => Ok(()),
    }
}
