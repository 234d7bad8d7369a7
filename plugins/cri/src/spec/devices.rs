//! Owns devices: nodes of the host that a container gets, with the rules of its device cgroup.
//!
//! A folder stands for all nodes in it, at the same places below the container's path. Links of the host are followed
//! once, at the path that was given; inside a folder they are no devices.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use corten_core::{Context, Error, Result};
use corten_protos::runtime::v1 as cri;
use rustix::fs::{major, minor};

use super::defaults::RWM;
use super::oci::{self, DeviceRule, Spec};
use super::paths;

const DEV: &str = "/dev";
/// Folders of /dev that a container has of its own, and two of managers that keep nodes for themselves.
const SKIPPED: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];
/// Each container has its own.
const CONSOLE: &str = "console";
/// Folders in folders that are looked into.
const MAX_DEPTH: usize = 16;

/// Adds the devices that were asked for. `owner` are user and group that get them, where not 0.
pub(super) fn add(spec: &mut Spec, asked: &[cri::Device], owner: Option<(u32, u32)>) -> Result<()> {
    for device in asked {
        let path = resolve(&device.host_path)?;
        let found = find(Path::new(&path), &device.container_path)
            .map_err(|e| explain(e, &path, &device.container_path))?;
        for mut node in found {
            if let Some((uid, gid)) = owner {
                node.uid = if uid == 0 { node.uid } else { Some(uid) };
                node.gid = if gid == 0 { node.gid } else { Some(gid) };
            }
            let rule = DeviceRule {
                allow: true,
                kind: node.kind.clone(),
                major: Some(node.major),
                minor: Some(node.minor),
                access: device.permissions.clone(),
                ..DeviceRule::default()
            };
            spec.resources().devices.push(rule);
            spec.linux().devices.push(node);
        }
    }
    Ok(())
}

/// Adds all nodes of the host.
pub(super) fn add_all(spec: &mut Spec) -> Result<()> {
    let all = find(Path::new(DEV), "").map_err(|e| explain(e, DEV, ""))?;
    spec.linux().devices.extend(all);
    Ok(())
}

/// Allows every device there is.
pub(super) fn allow_all(spec: &mut Spec) {
    spec.resources().devices = vec![DeviceRule {
        allow: true,
        access: RWM.into(),
        ..DeviceRule::default()
    }];
}

/// The node at `path`, as the document writes it; `None` when it is something else.
pub(super) fn node(path: &Path) -> io::Result<Option<oci::Device>> {
    let stat = fs::symlink_metadata(path)?;
    let kind = stat.file_type();
    let kind = match () {
        () if kind.is_block_device() => "b",
        () if kind.is_char_device() => "c",
        () if kind.is_fifo() => "p",
        () => return Ok(None),
    };
    let number = stat.rdev();
    Ok(Some(oci::Device {
        path: paths::text(path),
        kind: kind.into(),
        major: major(number).into(),
        minor: minor(number).into(),
        file_mode: Some(stat.mode() & 0o7777),
        uid: Some(stat.uid()),
        gid: Some(stat.gid()),
        ..oci::Device::default()
    }))
}

/// The path itself, or where it links to.
pub(super) fn resolve(path: &str) -> Result<String> {
    let what = || format!("failed to resolve symlink {path:?}");
    let stat = fs::symlink_metadata(path)
        .map_err(Error::from)
        .context(what())?;
    if !stat.is_symlink() {
        return Ok(path.to_owned());
    }
    let real = fs::canonicalize(path)
        .map_err(Error::from)
        .context(what())?;
    Ok(paths::text(&real))
}

/// The node at `path`, or all nodes below it; in the container at `at`, or at the same path.
fn find(path: &Path, at: &str) -> io::Result<Vec<oci::Device>> {
    if fs::metadata(path)?.is_dir() {
        let mut found = Vec::new();
        walk(path, at, MAX_DEPTH, &mut found)?;
        return Ok(found);
    }
    let mut one = node(path)?.ok_or_else(|| io::Error::other("not a device node"))?;
    if !at.is_empty() {
        at.clone_into(&mut one.path);
    }
    Ok(vec![one])
}

fn walk(folder: &Path, at: &str, depth: usize, found: &mut Vec<oci::Device>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let inside = match at {
            "" => String::new(),
            at => paths::join(at, &name),
        };
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            if depth > 0 && !SKIPPED.contains(&name.as_ref()) {
                ignore(walk(&path, &inside, depth - 1, found))?;
            }
            continue;
        }
        if name == CONSOLE {
            continue;
        }
        // A FIFO is no device of the host's.
        let Some(mut device) = ignore(node(&path))?.flatten().filter(|d| d.kind != "p") else {
            continue;
        };
        if !inside.is_empty() {
            device.path = inside;
        }
        found.push(device);
    }
    Ok(())
}

/// What went away meanwhile, and what a daemon in a user namespace may not see, is left out.
fn ignore<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Ok(done) => Ok(Some(done)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e)
            if e.kind() == io::ErrorKind::PermissionDenied
                && corten_sys::userns::running_in_user_ns() =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

fn explain(e: io::Error, path: &str, at: &str) -> Error {
    Error::from(e).context(format!("get device path: {path:?} containerPath: {at:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn asked(host: &Path, container: &str) -> cri::Device {
        cri::Device {
            host_path: paths::text(host),
            container_path: container.into(),
            permissions: "rw".into(),
        }
    }

    #[test]
    fn nodes_come_with_a_rule() {
        let mut spec = Spec::default();
        let null = Path::new("/dev/null");
        add(&mut spec, &[asked(null, "/dev/nothing")], Some((7, 0))).unwrap();
        let linux = spec.linux();
        let device = &linux.devices[0];
        assert_eq!(
            (device.path.as_str(), device.kind.as_str()),
            ("/dev/nothing", "c")
        );
        assert_eq!((device.major, device.minor), (1, 3));
        assert_eq!((device.uid, device.gid), (Some(7), Some(0)));
        let rule = &spec.resources().devices[0];
        assert_eq!(
            (rule.allow, rule.access.as_str(), rule.major),
            (true, "rw", Some(1))
        );
    }

    #[test]
    fn links_are_followed_at_the_top_only() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        symlink("/dev/null", &link).unwrap();
        let mut spec = Spec::default();
        add(&mut spec, &[asked(&link, "")], None).unwrap();
        assert_eq!(spec.linux().devices[0].path, "/dev/null");
        // The folder holds a link only.
        let mut spec = Spec::default();
        add(&mut spec, &[asked(dir.path(), "/dev/x")], None).unwrap();
        assert!(spec.linux().devices.is_empty());
    }

    #[test]
    fn folders_are_looked_into_so_deep() {
        let dir = tempfile::tempdir().unwrap();
        let at = |depth: usize| (0..depth).fold(dir.path().to_owned(), |path, _| path.join("d"));
        fs::create_dir_all(at(MAX_DEPTH + 1)).unwrap();
        let node = |depth: usize| {
            let mode = rustix::fs::Mode::from_raw_mode(0o600);
            let kind = rustix::fs::FileType::CharacterDevice;
            let null = rustix::fs::makedev(1, 3);
            rustix::fs::mknodat(rustix::fs::CWD, at(depth).join("n"), kind, mode, null)
        };
        let count = || {
            let mut spec = Spec::default();
            add(&mut spec, &[asked(dir.path(), "/dev/x")], None).unwrap();
            spec.linux().devices.len()
        };
        // Only root makes device nodes.
        if node(MAX_DEPTH).is_err() {
            return;
        }
        assert_eq!(count(), 1);
        node(MAX_DEPTH + 1).unwrap();
        assert_eq!(count(), 1);
    }

    #[test]
    fn what_is_no_device_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let e = add(&mut Spec::default(), &[asked(&file, "/dev/x")], None).unwrap_err();
        assert!(e.to_string().contains("not a device node"), "{e}");
        let none = dir.path().join("none");
        assert!(add(&mut Spec::default(), &[asked(&none, "")], None).is_err());
    }

    #[test]
    fn all_of_the_host_s_are_found() {
        let mut spec = Spec::default();
        add_all(&mut spec).unwrap();
        allow_all(&mut spec);
        let paths: Vec<&str> = spec
            .linux()
            .devices
            .iter()
            .map(|d| d.path.as_str())
            .collect();
        assert!(paths.contains(&"/dev/null"), "{paths:?}");
        assert!(
            !paths
                .iter()
                .any(|p| p.starts_with("/dev/pts/") || *p == "/dev/console")
        );
        assert_eq!(spec.resources().devices.len(), 1);
    }
}
