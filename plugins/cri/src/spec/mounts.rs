//! Owns mounts: the pod's files, volumes, and what of the default document they take the place of.
//!
//! Mounts are made from the top of the tree down, so that none hides another. A mount of the CRI goes before one of ours at
//! the same place, and both before the document's; with a /dev of its own a container has nothing of the default /dev.
//! A path of the host that is not there becomes a folder; a link there is followed, once, here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1 as cri;
use corten_protos::runtime::v1::{ContainerConfig, MountPropagation, NamespaceMode};
use corten_sys::mountinfo::{self, MountPoint};

use super::namespaces::mapping;
use super::oci;
use super::oci::Spec;
use super::process::ImageConfig;
use super::selinux::Selinux;
use super::{devices, paths};

const CGROUP: &str = "/sys/fs/cgroup";
const SHM: &str = "/dev/shm";
/// Bind options that a mount of the CRI may carry.
const MOUNT_OPTIONS: [&str; 3] = ["noexec", "nodev", "nosuid"];
/// Options of the host's cgroup v2 that a mount without a cgroup namespace would take from all others.
const CGROUP_SUPER: [&str; 2] = ["nsdelegate", "memory_recursiveprot"];

/// Files of a pod that its containers share. One that is not there is not mounted: its shim brings it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFiles {
    pub hostname: Option<PathBuf>,
    pub hosts: Option<PathBuf>,
    pub resolv_conf: Option<PathBuf>,
    pub shm: Option<PathBuf>,
}

/// What mounts depend on besides the container's config.
#[derive(Debug)]
pub(super) struct Surroundings<'a> {
    pub selinux: &'a Selinux,
    /// Label of the container's files.
    pub label: &'a str,
    /// The handler mounts trees read-only.
    pub rro: bool,
    pub cgroup_writable: bool,
}

/// The volumes that an image defines and the CRI does not: folders below the container's own.
pub fn volumes(root: &Path, config: &ContainerConfig, image: &ImageConfig) -> Vec<cri::Mount> {
    let (uid_mappings, gid_mappings) = maps(config);
    let wanted = image
        .volumes
        .iter()
        .filter(|path| !has(&config.mounts, path));
    wanted
        .map(|path| cri::Mount {
            container_path: absolute(path),
            host_path: paths::text(
                &root
                    .join("volumes")
                    .join(uuid::Uuid::new_v4().simple().to_string()),
            ),
            selinux_relabel: true,
            uid_mappings: uid_mappings.clone(),
            gid_mappings: gid_mappings.clone(),
            ..cri::Mount::default()
        })
        .collect()
}

/// The pod's files as mounts of a container that brings none at their places.
pub(super) fn of_pod(files: &PodFiles, config: &ContainerConfig) -> Vec<cri::Mount> {
    let security = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref());
    let readonly = security.is_some_and(|s| s.readonly_rootfs);
    let (uid_mappings, gid_mappings) = maps(config);
    let mut mounts = Vec::new();
    let plain = [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
    ];
    for (destination, source) in plain {
        if let Some(source) = source.as_deref().filter(|source| source.exists())
            && !has(&config.mounts, destination)
        {
            mounts.push(cri::Mount {
                container_path: destination.into(),
                host_path: paths::text(source),
                readonly,
                selinux_relabel: true,
                uid_mappings: uid_mappings.clone(),
                gid_mappings: gid_mappings.clone(),
                ..cri::Mount::default()
            });
        }
    }
    let options = security.and_then(|s| s.namespace_options.as_ref());
    let host_ipc = options.is_some_and(|ns| ns.ipc == NamespaceMode::Node as i32);
    let shm = match host_ipc {
        true => Some(Path::new(SHM)),
        false => files.shm.as_deref(),
    };
    if let Some(source) = shm.filter(|source| source.exists())
        && !has(&config.mounts, SHM)
    {
        // Not id-mapped: tmpfs learnt that late, and it is empty.
        mounts.push(cri::Mount {
            container_path: SHM.into(),
            host_path: paths::text(source),
            selinux_relabel: !host_ipc,
            ..cri::Mount::default()
        });
    }
    mounts
}

/// Adds the CRI's mounts, ours (`extra`) and that of the cgroups.
pub(super) fn add(
    spec: &mut Spec,
    config: &ContainerConfig,
    extra: &[cri::Mount],
    around: &Surroundings<'_>,
) -> Result<()> {
    let ours = extra
        .iter()
        .filter(|m| !has(&config.mounts, &m.container_path));
    let mut mounts: Vec<&cri::Mount> = config.mounts.iter().chain(ours).collect();
    mounts.sort_by_key(|m| paths::depth(&m.container_path));
    let cgroup = cgroup(spec, around.cgroup_writable)?;
    spec.mounts.push(cgroup);
    let over: Vec<String> = mounts
        .iter()
        .map(|m| paths::clean(&m.container_path))
        .collect();
    let own_dev = over.iter().any(|path| path == "/dev");
    spec.mounts.retain(|m| {
        let path = paths::clean(&m.destination);
        !(over.contains(&path) || own_dev && path.starts_with("/dev/"))
    });
    for mount in mounts {
        let mount = volume(spec, mount, around)?;
        spec.mounts.push(mount);
    }
    Ok(())
}

/// Lets the container write to the kernel's file systems of these kinds.
pub(super) fn open_kernel(spec: &mut Spec, kinds: &[&str]) {
    let kernel = spec.mounts.iter_mut();
    let kernel = kernel.filter(|m| kinds.contains(&m.kind.as_str()));
    for option in kernel.flat_map(|m| &mut m.options).filter(|o| *o == "ro") {
        "rw".clone_into(option);
    }
}

/// The cgroup file system, as the container may see it.
fn cgroup(spec: &Spec, writable: bool) -> Result<oci::Mount> {
    let access = if writable { "rw" } else { "ro" };
    let options = ["nosuid", "noexec", "nodev", "relatime", access];
    let mut mount = oci::Mount::new(CGROUP, "cgroup", "cgroup", &options);
    let linux = spec.linux.as_ref();
    let own = linux.is_some_and(|l| l.namespaces.iter().any(|ns| ns.kind == "cgroup"));
    if !own && let Some(host) = mount_of(Path::new(CGROUP))? {
        let kept = host
            .super_options
            .split(',')
            .filter(|o| CGROUP_SUPER.contains(o));
        mount.options.extend(kept.map(str::to_owned));
    }
    Ok(mount)
}

/// One mount of the CRI as the document has it; may set the rootfs's propagation.
fn volume(spec: &mut Spec, asked: &cri::Mount, around: &Surroundings<'_>) -> Result<oci::Mount> {
    let source = source(&asked.host_path)?;
    let mut options = vec!["rbind"];
    options.push(propagation(spec, asked, &source)?);
    options.push(access(asked, around.rro)?);
    for option in &asked.mount_options {
        let known = MOUNT_OPTIONS.iter().find(|known| *known == option);
        options.push(known.ok_or_else(|| {
            Error::invalid(format!(
                "mount option {option:?} (hostPath={:?})",
                asked.host_path
            ))
        })?);
    }
    if asked.selinux_relabel {
        around.selinux.relabel(Path::new(&source), around.label)?;
    }
    Ok(oci::Mount {
        uid_mappings: asked.uid_mappings.iter().map(mapping).collect(),
        gid_mappings: asked.gid_mappings.iter().map(mapping).collect(),
        ..oci::Mount::new(&asked.container_path, "bind", &source, &options)
    })
}

/// The path of the host, made if it is not there, followed if it is a link.
fn source(path: &str) -> Result<String> {
    if !path.starts_with('/') {
        return Err(Error::invalid(format!(
            "host path {path:?} of a mount is not absolute"
        )));
    }
    match fs::metadata(path) {
        Ok(_) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir_all(path)
            .map_err(Error::from)
            .context(format!("failed to mkdir {path:?}"))?,
        Err(e) => {
            return Err(Error::from(e).context(format!("failed to stat {path:?}")));
        }
    }
    devices::resolve(path)
}

fn propagation(spec: &mut Spec, asked: &cri::Mount, source: &str) -> Result<&'static str> {
    let of_root = &mut spec.linux().rootfs_propagation;
    match MountPropagation::try_from(asked.propagation) {
        Ok(MountPropagation::PropagationBidirectional) => {
            require(source, &["shared:"], "shared mount")?;
            "rshared".clone_into(of_root);
            Ok("rshared")
        }
        Ok(MountPropagation::PropagationHostToContainer) => {
            require(source, &["shared:", "master:"], "shared or slave mount")?;
            if of_root != "rshared" {
                "rslave".clone_into(of_root);
            }
            Ok("rslave")
        }
        // An unknown word is the safest one.
        Ok(MountPropagation::PropagationPrivate) | Err(_) => Ok("rprivate"),
    }
}

/// The mount that `source` is on must be of such a kind.
fn require(source: &str, kinds: &[&str], name: &str) -> Result<()> {
    let on = mount_of(Path::new(source))?
        .ok_or_else(|| Error::not_found(format!("mount of path {source:?}")))?;
    let mut fields = on.optional.split(' ');
    if fields.any(|field| kinds.iter().any(|kind| field.starts_with(kind))) {
        return Ok(());
    }
    Err(Error::new(
        Kind::Unknown,
        format!(
            "path {source:?} is mounted on {:?} but it is not a {name}",
            paths::text(&on.path)
        ),
    ))
}

fn access(asked: &cri::Mount, rro: bool) -> Result<&'static str> {
    let of = format!("(hostPath={:?})", asked.host_path);
    match (asked.readonly, asked.recursive_read_only) {
        (true, false) => Ok("ro"),
        (false, false) => Ok("rw"),
        (false, true) => Err(Error::invalid(format!(
            "recursive read-only mount conflicts with RW mount {of}"
        ))),
        // The kubelet looks for the first word.
        (true, true) if !rro => Err(Error::new(
            Kind::Unknown,
            format!(
                "RROUnsupported: runtime handler does not support recursive read-only mounts {of}"
            ),
        )),
        (true, true) => match MountPropagation::try_from(asked.propagation) {
            Ok(MountPropagation::PropagationPrivate) => Ok("rro"),
            other => Err(Error::invalid(format!(
                "recursive read-only mount needs private propagation, got {:?} {of}",
                other.map_or("unknown", |p| p.as_str_name())
            ))),
        },
    }
}

/// The mount that `path` is on: of those with the longest path above it, the last.
fn mount_of(path: &Path) -> Result<Option<MountPoint>> {
    let mut on: Option<MountPoint> = None;
    for mount in mountinfo::all()? {
        let length = |m: &MountPoint| m.path.as_os_str().len();
        let nearer = on.as_ref().is_none_or(|on| length(&mount) >= length(on));
        if path.starts_with(&mount.path) && nearer {
            on = Some(mount);
        }
    }
    Ok(on)
}

/// Whether something is mounted at `path` already.
fn has(mounts: &[cri::Mount], path: &str) -> bool {
    let path = paths::clean(path);
    mounts
        .iter()
        .any(|m| paths::clean(&m.container_path) == path)
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') {
        return path.to_owned();
    }
    paths::join("/", path)
}

fn maps(config: &ContainerConfig) -> (Vec<cri::IdMapping>, Vec<cri::IdMapping>) {
    let security = config
        .linux
        .as_ref()
        .and_then(|l| l.security_context.as_ref());
    let options = security.and_then(|s| s.namespace_options.as_ref());
    let users = options.and_then(|ns| ns.userns_options.as_ref());
    users.map_or_else(Default::default, |u| (u.uids.clone(), u.gids.clone()))
}

#[cfg(test)]
mod tests;
