//! Owns CDI, the Container Device Interface: devices by name, which vendors describe in files.
//!
//! Names (`vendor.com/class=name`) come in the CRI's field and in annotations `cdi.k8s.io/*`; one that is named twice
//! is given once. Folders are read whenever a container asks for devices, later folders before earlier ones; a file
//! that does not parse spoils its own devices only, and two files of one folder that describe the same device spoil
//! that device. A device that nobody describes fails the container.
//!
//! Own code because the official crate brings 45 others into the daemon, two argument parsers among them.

mod edits;
mod format;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use corten_core::{Error, Kind, Result};
use corten_protos::runtime::v1::CdiDevice;
use tracing::warn;

use self::format::{Edits, File};
use super::oci::Spec;

const ANNOTATION: &str = "cdi.k8s.io/";

/// The folders of descriptions.
#[derive(Debug)]
pub(super) struct Registry {
    folders: Vec<PathBuf>,
}

/// A described device: what it changes, and what every device of its file changes.
struct Described {
    folder: usize,
    path: PathBuf,
    file: usize,
    edits: Edits,
}

/// Everything that is described now.
#[derive(Default)]
struct Inventory {
    /// What any device of a file brings along.
    common: Vec<Edits>,
    devices: BTreeMap<String, Described>,
}

// === impl Registry ===

impl Registry {
    pub(super) fn new(folders: &[PathBuf]) -> Self {
        Self {
            folders: folders.to_vec(),
        }
    }

    /// Gives a container the devices it names.
    pub(super) fn inject(
        &self,
        spec: &mut Spec,
        asked: &[CdiDevice],
        annotations: &BTreeMap<String, String>,
    ) -> Result<()> {
        let names = names(asked, annotations)?;
        if names.is_empty() {
            return Ok(());
        }
        let inventory = Inventory::read(&self.folders);
        let missing: Vec<&str> = names
            .iter()
            .filter(|name| !inventory.devices.contains_key(*name))
            .map(String::as_str)
            .collect();
        if !missing.is_empty() {
            return Err(Error::new(
                Kind::NotFound,
                format!(
                    "CDI device injection failed: unresolvable CDI devices {}",
                    missing.join(", ")
                ),
            ));
        }
        let mut all = Edits::default();
        let mut seen = BTreeSet::new();
        for device in names.iter().filter_map(|name| inventory.devices.get(name)) {
            if seen.insert(device.file) {
                all.append(&inventory.common[device.file]);
            }
            all.append(&device.edits);
        }
        edits::apply(spec, all)
            .map_err(|e| e.context("CDI device injection failed: failed to inject devices"))
    }
}

// === impl Inventory ===

impl Inventory {
    fn read(folders: &[PathBuf]) -> Self {
        let mut inventory = Self::default();
        let mut spoilt = BTreeSet::new();
        for (folder, path) in folders.iter().enumerate() {
            for path in files(path) {
                match read(&path).and_then(|(text, yaml)| format::parse(&text, yaml)) {
                    Ok(file) => inventory.add(folder, &path, file, &mut spoilt),
                    Err(error) => {
                        warn!(path = %path.display(), %error, "a CDI file is not used");
                    }
                }
            }
        }
        inventory.devices.retain(|name, _| !spoilt.contains(name));
        inventory
    }

    fn add(&mut self, folder: usize, path: &Path, file: File, spoilt: &mut BTreeSet<String>) {
        let number = self.common.len();
        for device in file.devices {
            let name = format!("{}={}", file.kind, device.name);
            if let Some(other) = self.devices.get(&name)
                && other.folder == folder
            {
                warn!(
                    device.name = %name, path = %path.display(), other = %other.path.display(),
                    "two CDI files describe the same device"
                );
                spoilt.insert(name);
                continue;
            }
            // What an earlier folder said, or quarrelled about, counts no more.
            spoilt.remove(&name);
            let described = Described {
                folder,
                path: path.to_owned(),
                file: number,
                edits: device.container_edits,
            };
            self.devices.insert(name, described);
        }
        self.common.push(file.container_edits);
    }
}

/// The descriptions in a folder, by name.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            warn!(path = %folder.display(), %error, "a folder of CDI files is not readable");
            return Vec::new();
        }
    };
    let described = |path: &PathBuf| {
        let extension = path.extension().and_then(|e| e.to_str());
        matches!(extension, Some("json" | "yaml")) && !path.is_dir()
    };
    let paths = entries.filter_map(|entry| entry.ok().map(|e| e.path()));
    let mut files: Vec<PathBuf> = paths.filter(described).collect();
    files.sort();
    files
}

fn read(path: &Path) -> Result<(Vec<u8>, bool)> {
    let text = super::file::read(path)?;
    Ok((text, path.extension().is_some_and(|e| e == "yaml")))
}

/// The names of all devices that were asked for, each once.
fn names(asked: &[CdiDevice], annotations: &BTreeMap<String, String>) -> Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut add = |name: &str| {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    };
    for device in asked {
        add(&device.name);
    }
    let ours = annotations
        .iter()
        .filter(|(key, _)| key.starts_with(ANNOTATION));
    for name in ours.flat_map(|(_, value)| value.split(',')) {
        if !format::is_qualified(name) {
            return Err(Error::invalid(format!(
                "failed to parse CDI device annotations: invalid CDI device name {name:?}"
            )));
        }
        add(name);
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
