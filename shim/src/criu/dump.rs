//! Owns checkpoint: what CRIU is told of a running container, and what is kept beside its images.

use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use corten_oci::{Spec, restore};
use corten_protos::containerd::runc::v1::CheckpointOptions;
use corten_protos::corten::criu::v1::{External, Kind, Opts, Request};
use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::{Criu, DESCRIPTORS, Folders, LOG_LEVEL, NEWNET};
use crate::error::{Context, Error, Result};
use crate::log;
use crate::task::{Container, Shim};

const LOG: &str = "dump.log";

/// Saves a container into the folder `images`. Hold the lock of its first process: its exit must wait.
pub(crate) async fn checkpoint(
    shim: &Shim,
    container: &Container,
    images: &Path,
    options: &CheckpointOptions,
) -> Result<()> {
    if !images.is_absolute() {
        return Err(Error::invalid("checkpoint: no path to save it to"));
    }
    let own = container.bundle.join("criu-work");
    let work = match options.work_path.as_str() {
        "" => own.clone(),
        path => PathBuf::from(path),
    };
    let saved = match &container.binary {
        Some(binary) => {
            let saved = binary.checkpoint(images, &work, options).await;
            let kept = kept(&container.bundle);
            saved.map_err(|e| match std::fs::copy(work.join(LOG), &kept) {
                Ok(_) => Error::unknown(format!("{e} path= {}", kept.display())),
                Err(_) => e,
            })
        }
        None => save(shim, container, images, &work, options).await,
    };
    // Made by ourselves or not at all.
    let _ = std::fs::remove_dir_all(own);
    saved?;
    if options.exit {
        // What was frozen by cgroup v1 dies when it thaws.
        let _ = container.cgroup.thaw();
    }
    log::info!("container {} saved to {}", container.id, images.display());
    Ok(())
}

/// Where a log of CRIU's stays when it failed.
fn kept(bundle: &Path) -> PathBuf {
    bundle.join("criu-dump.log")
}

async fn save(
    shim: &Shim,
    container: &Container,
    images: &Path,
    work: &Path,
    options: &CheckpointOptions,
) -> Result<()> {
    super::find()?;
    let spec = super::spec_of(shim, &container.bundle)?;
    let folders = Folders::open(images, work, LOG)?;
    let opts = opts(container, &spec, &folders, options)?;
    let names = container.pipes.get().map(|inode| match inode {
        0 => "/dev/null".to_owned(),
        inode => format!("pipe:[{inode}]"),
    });
    let text = serde_json::to_vec(&names).map_err(|e| Error::unknown(e.to_string()))?;
    std::fs::write(images.join(DESCRIPTORS), text).context("write descriptors.json")?;
    let streams = [super::null()?, super::null()?, super::null()?];
    let criu = Criu::start(shim, streams, Vec::new(), None).await?;
    let done = talk(&criu, opts).await;
    let done = match done {
        Ok(()) => criu.finish(shim).await,
        Err(e) => {
            criu.give_up(&shim.reaper).await;
            Err(e)
        }
    };
    done.map_err(|e| folders.explain(e, &kept(&container.bundle)))
}

async fn talk(criu: &Criu, opts: Opts) -> Result<()> {
    criu.send(&Request {
        r#type: Kind::Dump.into(),
        opts: Some(opts),
        notify_success: None,
    })?;
    loop {
        let (response, _) = criu.receive().await?;
        match Kind::try_from(response.r#type) {
            // Nothing of ours depends on how far it is.
            Ok(Kind::Notify) => criu.proceed()?,
            Ok(Kind::Dump) => return Ok(()),
            _ => return Err(Error::unknown("an answer of CRIU that nobody expects")),
        }
    }
}

fn opts(
    container: &Container,
    spec: &Spec,
    folders: &Folders,
    options: &CheckpointOptions,
) -> Result<Opts> {
    let pid = container.init.pidfd.get().map(|fd| fd.pid());
    let pid = pid.ok_or_else(|| Error::unknown("cannot checkpoint a task in created state"))?;
    let root = restore::rootfs_path(spec, &container.bundle)?;
    let freezer = container.cgroup.freezer_dir();
    if let Some(other) = options.empty_namespaces.iter().find(|ns| *ns != "network") {
        return Err(Error::unknown(format!(
            "namespace {other:?} is not supported"
        )));
    }
    let parent = (!options.parent_path.is_empty()).then(|| options.parent_path.clone());
    Ok(Opts {
        images_dir_fd: folders.images.as_raw_fd(),
        work_dir_fd: Some(folders.work.as_raw_fd()),
        log_level: Some(LOG_LEVEL),
        log_file: Some(LOG.to_owned()),
        pid: Some(pid),
        root: Some(root.to_string_lossy().into_owned()),
        leave_running: Some(!options.exit),
        tcp_established: Some(options.open_tcp),
        ext_unix_sk: Some(options.external_unix_sockets),
        shell_job: Some(options.terminal),
        file_locks: Some(options.file_locks),
        track_mem: parent.as_ref().map(|_| true),
        parent_img: parent,
        // Interfaces are somebody else's, who makes them again.
        empty_ns: Some(NEWNET),
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(super::cgroup_mode(&options.cgroups_mode)?.into()),
        freeze_cgroup: freezer.map(|dir| dir.to_string_lossy().into_owned()),
        notify_scripts: Some(true),
        orphan_pts_master: Some(true),
        external: namespaces(spec)?,
        ext_mnt: mounts(container, spec, pid)?,
        config_file: super::config_file(spec),
        ..Opts::default()
    })
}

/// Namespaces that were joined by path and are not to be saved.
fn namespaces(spec: &Spec) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for ns in spec
        .linux
        .namespaces
        .iter()
        .filter(|ns| !ns.path.is_empty())
    {
        let Some((kind, key)) = super::outside(&ns.kind) else {
            continue;
        };
        let inode = std::fs::metadata(&ns.path).context(format!("look at {}", ns.path))?;
        names.push(format!("{kind}[{}]:{key}", inode.ino()));
    }
    Ok(names)
}

/// Mounts that are saved as names: those of config.json that are still there, masked files, and bound devices.
fn mounts(container: &Container, spec: &Spec, pid: i32) -> Result<Vec<External>> {
    let table = format!("/proc/{pid}/mountinfo");
    let table = std::fs::read_to_string(&table).context(format!("read {table}"))?;
    let places: Vec<String> = table.lines().filter_map(mount_point).collect();
    let root = format!("/proc/{pid}/root");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(&root, flags, Mode::empty()).context(format!("open {root}"))?;
    let find = |path: &str| -> Option<(String, bool)> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let found = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve).ok()?;
        let name = std::fs::read_link(format!("/proc/self/fd/{}", found.as_raw_fd())).ok()?;
        let name = name.into_os_string().into_string().ok()?;
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found).ok()?.st_mode);
        let is_dir = kind == rustix::fs::FileType::Directory;
        places.contains(&name).then_some((name, is_dir))
    };
    let mut list = Vec::new();
    for mount in restore::externals(spec, &container.bundle, &container.cgroup)? {
        if let Some((place, _)) = find(&mount.name) {
            list.push(super::external(&place, &mount.name)?);
        }
    }
    for path in &spec.linux.masked_paths {
        if let Some((place, false)) = find(path) {
            list.push(super::external(&place, "/dev/null")?);
        }
    }
    for device in restore::DEVICES
        .iter()
        .copied()
        .chain(spec.linux.devices.iter().map(|d| d.path.as_str()))
    {
        if let Some((place, false)) = find(device) {
            list.push(super::external(&place, device)?);
        }
    }
    Ok(list)
}

/// The place of a line of mountinfo, whose blanks, newlines and backslashes are octal.
fn mount_point(line: &str) -> Option<String> {
    let text = line.split(' ').nth(4)?;
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let plain = |text: String, (from, to): (&str, &str)| text.replace(from, to);
    Some(escapes.into_iter().fold(text.to_owned(), plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_a_mount_table() {
        let line = "36 35 98:0 /mnt1 /a\\040b\\134c rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line).as_deref(), Some("/a b\\c"));
        assert_eq!(mount_point("36 35"), None);
    }

    #[test]
    fn joined_namespaces_stay_outside() {
        let spec = br#"{"ociVersion":"1.2.0","linux":{"namespaces":[
            {"type":"network","path":"/proc/self/ns/net"},{"type":"pid"},
            {"type":"ipc","path":"/proc/self/ns/ipc"}]}}"#;
        let spec = Spec::parse(spec).unwrap();
        let inode = std::fs::metadata("/proc/self/ns/net").unwrap().ino();
        let names = namespaces(&spec).unwrap();
        assert_eq!(names, [format!("net[{inode}]:extRootNetNS")]);
    }
}
