//! Owns what a checkpoint needs to know of a container's mounts: which come from outside, and where they go.
//!
//! CRIU saves file systems that live and die with the container. A mount of something of the host's is saved as a name
//! only, and whoever restores says what that name stands for. Here the name is the mount's destination as config.json
//! has it, so that nothing but config.json decides what is mounted: neither a link in the rootfs nor the checkpoint.

use crate::init::{MOUNT, ROOT, TARGET};
use crate::mounts::{MS_REC, MS_SLAVE, Options, clean};
use crate::namespaces::{Kinds, NEWCGROUP, NEWNS};
use crate::{Cgroup, Error, Result, Spec, rootfs};
use corten_launch::{Fd, Make, Op, Plan, cstr};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Devices that every container has; bound in a user namespace.
pub const DEVICES: [&str; 6] = crate::devices::NAMES;

/// A mount from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct External {
    /// Where config.json wants it, cleaned.
    pub name: String,
    pub source: PathBuf,
}

/// Absolute path of the root directory, free of links.
pub fn rootfs_path(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    rootfs::path(spec, bundle)
}

/// Every mount that comes from outside, in order: binds, and cgroups where they are shown by binds.
pub fn externals(spec: &Spec, bundle: &Path, cgroup: &Cgroup) -> Result<Vec<External>> {
    let kinds = Kinds::of(&spec.linux)?;
    if !kinds.has(NEWNS) {
        return Err(Error::unsupported(
            "checkpoint of a container without a mount namespace",
        ));
    }
    let mut found = Vec::new();
    for m in &spec.mounts {
        let dest = clean(&m.destination);
        if Options::parse(m)?.bind {
            let source = bundle.join(&m.source);
            found.push(External { name: dest, source });
        } else if matches!(m.kind.as_str(), "cgroup" | "cgroup2") && !kinds.has(NEWCGROUP) {
            let binds = crate::cgroup::mount::binds(cgroup, &dest)?;
            found.extend(
                binds
                    .into_iter()
                    .map(|(name, source)| External { name, source }),
            );
        }
    }
    Ok(found)
}

/// Plan of a process that makes what the mounts of a container need to be mounted on, as the container's first process
/// does, and stops at the gate: its binds are its own, and gone with it. What lies on a tmpfs comes with that.
pub fn plan_mountpoints(spec: &Spec, bundle: &Path) -> Result<Plan> {
    let mut plan = Plan {
        namespaces: NEWNS,
        ..Plan::default()
    };
    let resolve = |root, path, make, out| Op::Resolve {
        root,
        path,
        make,
        real: false,
        out,
    };
    let root = rootfs::path(spec, bundle)?;
    let path = cstr(root.as_os_str().as_bytes());
    let label = "prepare rootfs";
    let op = Op::Propagation {
        path: cstr("/"),
        flags: MS_SLAVE | MS_REC,
    };
    plan.push(op, "set propagation of /");
    let op = Op::CloneTree {
        path: path.clone(),
        recursive: true,
        out: MOUNT,
    };
    plan.push(op, label);
    let mount = Fd::Slot(MOUNT);
    plan.push(Op::AttachAt { mount, path }, label);
    plan.push(resolve(mount, cstr("."), Make::Nothing, 0), label);
    let mut volatile: Vec<String> = Vec::new();
    for m in &spec.mounts {
        let dest = clean(&m.destination);
        let label = format!("make the mount point {dest:?}");
        if volatile.iter().any(|dir| dest.starts_with(dir.as_str())) {
            continue;
        }
        if !Options::parse(m)?.bind {
            plan.push(resolve(ROOT, cstr(&dest), Make::Dir, TARGET), label);
            // Cgroups lie on a tmpfs, or on sysfs, which no place is made on.
            volatile.push(format!("{dest}/"));
            continue;
        }
        let source = bundle.join(&m.source);
        let op = Op::CloneTree {
            path: cstr(source.as_os_str().as_bytes()),
            recursive: true,
            out: MOUNT,
        };
        plan.push(op, label.clone());
        let op = resolve(ROOT, cstr(&dest), Make::Like(mount), TARGET);
        plan.push(op, label.clone());
        let to = Fd::Slot(TARGET);
        plan.push(Op::Attach { mount, to }, label);
    }
    plan.push(Op::Gate, "wait");
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_config_json() {
        let spec = br#"{"ociVersion":"1.2.0","root":{"path":"rootfs"},"mounts":[
            {"destination":"/proc","type":"proc","source":"proc"},
            {"destination":"/dev","type":"tmpfs","source":"tmpfs"},
            {"destination":"/dev/shm","type":"bind","source":"shm","options":["rbind"]},
            {"destination":"/a/../data/","type":"none","source":"/srv","options":["bind","ro"]}],
            "linux":{"namespaces":[{"type":"mount"},{"type":"cgroup"}]}}"#;
        let spec = Spec::parse(spec).unwrap();
        let bundle = Path::new("/b");
        let external = |name: &str, source: &str| External {
            name: name.into(),
            source: source.into(),
        };
        assert_eq!(
            externals(&spec, bundle, &Cgroup::none()).unwrap(),
            [external("/dev/shm", "/b/shm"), external("/data", "/srv")]
        );
        let bundle = std::env::temp_dir().join(format!("corten-places-{}", std::process::id()));
        std::fs::create_dir_all(bundle.join("rootfs")).unwrap();
        let plan = plan_mountpoints(&spec, &bundle).unwrap();
        let made: Vec<String> = plan
            .ops()
            .filter_map(|op| match op {
                Op::Resolve { root, path, .. } if *root == ROOT => Some(path),
                _ => None,
            })
            .map(|path| path.to_string_lossy().into_owned())
            .collect();
        // /dev/shm lies on a tmpfs.
        assert_eq!(made, ["/proc", "/dev", "/data"]);
        std::fs::remove_dir_all(bundle).unwrap();
        let mut bare = spec;
        bare.linux.namespaces.clear();
        assert!(externals(&bare, Path::new("/b"), &Cgroup::none()).is_err());
    }
}
