//! Owns restore: the start of a container whose first process is not executed but comes out of a checkpoint.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use corten_launch::{Fd, Op, Plan};
use corten_oci::{Place, Spec, Stdio, restore};
use corten_protos::corten::criu::v1::{
    CgroupRoot, External, Inherit, Join, Kind, Notify, Opts, Request,
};
use rustix::fs::{FileType, Gid, Uid, fchown, fstat};
use rustix::mount::{UnmountFlags, mount_bind_recursive, unmount};

use super::{Criu, DESCRIPTORS, Folders, LOG_LEVEL, NEWNET, SOCKET};
use crate::bundle;
use crate::engine::native;
use crate::error::{Context, Error, Result};
use crate::hooks::{self, Subject};
use crate::reaper::Pidfd;
use crate::systemd::Keeper;
use crate::task::launch::Child;
use crate::task::process::SIGKILL;
use crate::task::{Container, Shim};

const LOG: &str = "restore.log";
/// Names of descriptors are short.
const MAX_DESCRIPTORS: u64 = 64 << 10;

/// What Create leaves to Start.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) images: PathBuf,
    /// Where CRIU works; empty: in the bundle, for as long as it does.
    pub(crate) work: String,
    pub(crate) streams: Stdio,
    /// `None` when another runtime makes the cgroup.
    pub(crate) keeper: Option<Keeper>,
}

/// Where the rootfs is mounted for a restore.
pub(crate) fn root(bundle: &Path) -> PathBuf {
    bundle.join("criu-root")
}

/// The rootfs as CRIU wants it: a mount of its own, below nothing that hides it.
struct Root(PathBuf);

// === impl Root ===

impl Root {
    fn bind(spec: &Spec, bundle: &Path) -> Result<Self> {
        let rootfs = restore::rootfs_path(spec, bundle)?;
        let place = root(bundle);
        std::fs::create_dir_all(&place).context("make criu-root")?;
        let place = place.canonicalize().context("find criu-root")?;
        let root = Self(place);
        mount_bind_recursive(&rootfs, &root.0).context("bind the rootfs for CRIU")?;
        Ok(root)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // Left behind it would be a folder of the bundle, which is about to go.
        let _ = unmount(&self.0, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        let _ = std::fs::remove_dir(&self.0);
    }
}

/// Inodes of the pipes a process gets as streams; 0 for everything else.
pub(crate) fn pipes(streams: &Stdio) -> [u64; 3] {
    let inode = |fd: &OwnedFd| {
        fstat(fd)
            .ok()
            .filter(|st| FileType::from_raw_mode(st.st_mode) == FileType::Fifo)
            .map_or(0, |st| st.st_ino)
    };
    match streams {
        Stdio::Fds(stdin, stdout, stderr) => [inode(stdin), inode(stdout), inode(stderr)],
        Stdio::Terminal { .. } | Stdio::Null => [0; 3],
    }
}

/// Restores the container. Its first process runs then, and is followed.
pub(crate) async fn start(shim: &Shim, container: &Container, pending: Pending) -> Result<Pidfd> {
    let io = container.init.io.borrow().clone();
    let io = io.ok_or_else(|| Error::unknown("no streams to restore with"))?;
    let own = container.bundle.join("criu-work");
    let work = match pending.work.as_str() {
        "" => own.clone(),
        path => PathBuf::from(path),
    };
    let restored = match &container.binary {
        Some(binary) => {
            let (streams, images) = (pending.streams, &pending.images);
            binary.restore(images, &work, streams, &io).await
        }
        None => load(shim, container, pending, &work).await,
    };
    let _ = std::fs::remove_dir_all(own);
    let made = restored?;
    container.restored.set(true);
    Ok(made)
}

async fn load(shim: &Shim, container: &Container, pending: Pending, work: &Path) -> Result<Pidfd> {
    super::find()?;
    let spec = super::spec_of(shim, &container.bundle)?;
    let folders = Folders::open(&pending.images, work, LOG)?;
    make_mountpoints(shim, &spec, &container.bundle).await?;
    let root = Root::bind(&spec, &container.bundle)?;
    let terminal = matches!(pending.streams, Stdio::Terminal { .. });
    container.pipes.set(pipes(&pending.streams));
    let streams = match pending.streams {
        Stdio::Fds(stdin, stdout, stderr) => [stdin, stdout, stderr],
        _ => [super::null()?, super::null()?, super::null()?],
    };
    own_streams(&spec, &streams);
    let (mut opts, namespaces) = opts(container, &spec, &folders, &pending.images)?;
    opts.root = Some(root.0.to_string_lossy().into_owned());
    // Until it is adopted, nobody may collect the process: its number would be worth nothing.
    let _hold = shim.reaper.hold();
    let criu = Criu::start(shim, streams, namespaces, Some(&container.cgroup)).await?;
    let mut talk = Talk {
        shim,
        container,
        spec: &spec,
        terminal,
        made: None,
    };
    let done = match talk.run(&criu, opts).await {
        Ok(()) => criu.finish(shim).await,
        Err(e) => {
            criu.give_up(&shim.reaper).await;
            Err(e)
        }
    };
    let done = match done {
        Ok(()) => talk.settle(pending.keeper).await,
        Err(e) => Err(folders.explain(e, &container.bundle.join("criu-restore.log"))),
    };
    let made = talk.made.take();
    match (done, made) {
        (Ok(()), Some(made)) => Ok(made),
        (Ok(()), None) => Err(Error::unknown("criu restored no process")),
        (Err(e), made) => {
            // Both fail only when there is nothing left.
            let _ = container.cgroup.kill();
            if let Some(made) = made {
                let _ = made.signal(SIGKILL);
                let _ = shim.reaper.exit(&made).await;
            }
            Err(e)
        }
    }
}

/// One conversation.
struct Talk<'a> {
    shim: &'a Shim,
    container: &'a Container,
    spec: &'a Spec,
    /// A console is still to come.
    terminal: bool,
    made: Option<Pidfd>,
}

// === impl Talk ===

impl Talk<'_> {
    async fn run(&mut self, criu: &Criu, mut opts: Opts) -> Result<()> {
        opts.cg_root = cgroup_roots(criu.child.pidfd.pid())?;
        criu.send(&Request {
            r#type: Kind::Restore.into(),
            opts: Some(opts),
            notify_success: None,
        })?;
        loop {
            let (response, fd) = criu.receive().await?;
            match Kind::try_from(response.r#type) {
                Ok(Kind::Notify) => {
                    self.hear(response.notify.unwrap_or_default(), fd).await?;
                    criu.proceed()?;
                }
                Ok(Kind::Restore) if self.terminal => {
                    return Err(Error::unknown("the checkpoint has no terminal"));
                }
                Ok(Kind::Restore) => return Ok(()),
                _ => return Err(Error::unknown("an answer of CRIU that nobody expects")),
            }
        }
    }

    async fn hear(&mut self, notify: Notify, fd: Option<OwnedFd>) -> Result<()> {
        let pid = notify.pid.unwrap_or(0);
        match notify.script.as_deref().unwrap_or_default() {
            "setup-namespaces" => self.run_hooks(pid).await,
            // It exists, and waits for our answer.
            "post-restore" => {
                let made = self.shim.reaper.adopt(pid).context("follow the process")?;
                let made = self.made.insert(made);
                bundle::write_pid(&self.container.bundle, "", pid)?;
                native::join_rdt(self.spec, &self.container.id, pid)?;
                let new =
                    |ns: &&corten_oci::spec::Namespace| ns.kind == "network" && ns.path.is_empty();
                match self.spec.linux.namespaces.iter().find(new) {
                    Some(_) => bring_loopback_up(self.shim, made).await,
                    None => Ok(()),
                }
            }
            "orphan-pts-master" => {
                let master = fd.ok_or_else(|| Error::unknown("a terminal that was not sent"))?;
                let io = self.container.init.io.borrow().clone();
                let io = io.ok_or_else(|| Error::unknown("no streams to restore with"))?;
                io.attach_console(master)
                    .context("failed to start console copy")?;
                self.terminal = false;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn run_hooks(&self, pid: i32) -> Result<()> {
        let subject = Subject {
            spec: self.spec,
            id: &self.container.id,
            bundle: &self.container.bundle,
            pid,
            status: "creating",
        };
        let lists = [
            ("prestart", &self.spec.hooks.prestart),
            ("createRuntime", &self.spec.hooks.create_runtime),
        ];
        for (name, list) in lists {
            hooks::run(&self.shim.reaper, subject, name, list, Place::Runtime).await?;
        }
        Ok(())
    }

    /// What is left to do once the process runs.
    async fn settle(&self, keeper: Option<Keeper>) -> Result<()> {
        match keeper {
            Some(keeper) => keeper.release(&self.container.cgroup, self.spec).await,
            None => Ok(()),
        }
    }
}

/// Makes the places that mounts need, by a process in a mount namespace of its own.
async fn make_mountpoints(shim: &Shim, spec: &Spec, bundle: &Path) -> Result<()> {
    let plan = restore::plan_mountpoints(spec, bundle)?;
    run_to_gate(shim, plan).await.context("make mount points")
}

/// A new network namespace begins without any interface that is up, and CRIU restores none.
async fn bring_loopback_up(shim: &Shim, made: &Pidfd) -> Result<()> {
    let mut plan = Plan::default();
    let pidfd = made.as_fd().try_clone_to_owned();
    let ns: Fd = plan.give(pidfd.context("duplicate a pidfd")?);
    let flags = NEWNET;
    plan.push(Op::SetNs { ns, flags }, "join the network namespace");
    plan.push(Op::LoopbackUp, "bring up loopback");
    plan.push(Op::Gate, "wait");
    run_to_gate(shim, plan).await
}

/// Runs a plan that has nothing to execute.
async fn run_to_gate(shim: &Shim, plan: Plan) -> Result<()> {
    let mut child = Child::spawn(&shim.reaper, &plan)?;
    drop(plan);
    let done = child.at_gate().await;
    child.destroy(&shim.reaper).await;
    done
}

/// The streams of a process that is not root must be openable by it, as those of a new one are.
fn own_streams(spec: &Spec, streams: &[OwnedFd; 3]) {
    let uid = spec.process.as_ref().map_or(0, |p| p.user.uid);
    if uid == 0 || !spec.linux.uid_mappings.is_empty() {
        return;
    }
    let is_pipe = |fd: &&OwnedFd| {
        fstat(fd).is_ok_and(|st| FileType::from_raw_mode(st.st_mode) == FileType::Fifo)
    };
    for fd in streams.iter().filter(is_pipe) {
        let _ = fchown(fd, Some(Uid::from_raw(uid)), None::<Gid>);
    }
}

/// The request, and the namespaces that go with it as descriptors.
fn opts(
    container: &Container,
    spec: &Spec,
    folders: &Folders,
    images: &Path,
) -> Result<(Opts, Vec<OwnedFd>)> {
    let mut inherit = streams_of(images)?;
    let (joins, namespaces) = namespaces(spec, &mut inherit)?;
    let opts = Opts {
        images_dir_fd: folders.images.as_raw_fd(),
        work_dir_fd: Some(folders.work.as_raw_fd()),
        log_level: Some(LOG_LEVEL),
        log_file: Some(LOG.to_owned()),
        evasive_devices: Some(true),
        rst_sibling: Some(true),
        notify_scripts: Some(true),
        orphan_pts_master: Some(true),
        manage_cgroups: Some(true),
        manage_cgroups_mode: Some(super::cgroup_mode("")?.into()),
        // What the checkpoint holds was allowed when it was made; containerd does not say again.
        tcp_established: Some(true),
        ext_unix_sk: Some(true),
        file_locks: Some(true),
        empty_ns: Some(NEWNET),
        inherit_fd: inherit,
        join_ns: joins,
        ext_mnt: mounts(container, spec)?,
        config_file: super::config_file(spec),
        ..Opts::default()
    };
    Ok((opts, namespaces))
}

/// Pipes of the saved first process, which our streams replace.
fn streams_of(images: &Path) -> Result<Vec<Inherit>> {
    use std::io::Read;
    let what = || format!("read {DESCRIPTORS} of the checkpoint");
    let file = std::fs::File::open(images.join(DESCRIPTORS)).context(what())?;
    let mut text = Vec::new();
    let read = file.take(MAX_DESCRIPTORS).read_to_end(&mut text);
    read.context(what())?;
    let names: Vec<String> = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid(e.to_string()))
        .context(what())?;
    let mut list: Vec<Inherit> = Vec::new();
    for (fd, key) in (0..3).zip(names) {
        // Of one pipe behind several descriptors the first counts.
        if key.starts_with("pipe:[") && !list.iter().any(|i| i.key == key) {
            list.push(Inherit { key, fd });
        }
    }
    Ok(list)
}

fn namespaces(spec: &Spec, inherit: &mut Vec<Inherit>) -> Result<(Vec<Join>, Vec<OwnedFd>)> {
    let (mut joins, mut files) = (Vec::new(), Vec::new());
    let mut next = i32::from(SOCKET) + 1;
    for ns in spec
        .linux
        .namespaces
        .iter()
        .filter(|ns| !ns.path.is_empty())
    {
        if let Some((_, key)) = super::outside(&ns.kind) {
            let file = std::fs::File::open(&ns.path);
            files.push(
                file.context(format!("open {} namespace {}", ns.kind, ns.path))?
                    .into(),
            );
            inherit.push(Inherit {
                key: key.to_owned(),
                fd: next,
            });
            next += 1;
            continue;
        }
        let name = match ns.kind.as_str() {
            "cgroup" | "mount" => {
                let text = format!("restore into a {} namespace by path", ns.kind);
                return Err(Error::unimplemented(text));
            }
            kind => kind,
        };
        joins.push(Join {
            ns: name.to_owned(),
            ns_file: ns.path.clone(),
        });
    }
    Ok((joins, files))
}

/// What the names of mounts stand for. Only config.json is asked.
fn mounts(container: &Container, spec: &Spec) -> Result<Vec<External>> {
    let mut list = Vec::new();
    for mount in restore::externals(spec, &container.bundle, &container.cgroup)? {
        list.push(super::external(
            &mount.name,
            &mount.source.to_string_lossy(),
        )?);
    }
    if !spec.linux.masked_paths.is_empty() {
        list.push(super::external("/dev/null", "/dev/null")?);
    }
    for device in restore::DEVICES
        .iter()
        .copied()
        .chain(spec.linux.devices.iter().map(|d| d.path.as_str()))
    {
        list.push(super::external(device, device)?);
    }
    Ok(list)
}

/// Where the cgroups of the checkpoint are to be made: at those of CRIU, which was put into the container's.
fn cgroup_roots(pid: i32) -> Result<Vec<CgroupRoot>> {
    let file = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&file).context(format!("read {file}"))?;
    Ok(roots(&text))
}

fn roots(text: &str) -> Vec<CgroupRoot> {
    let mut list = Vec::new();
    for line in text.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(names), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        list.extend(names.split(',').map(|name| CgroupRoot {
            ctrl: Some(name.to_owned()),
            path: path.to_owned(),
        }));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_controller_has_its_root() {
        let all = roots("9:name=systemd:/s\n4:cpu,cpuacct:/a:b\n0::/u\n");
        let all: Vec<_> = all
            .iter()
            .map(|r| (r.ctrl.as_deref().unwrap(), r.path.as_str()))
            .collect();
        let want = [
            ("name=systemd", "/s"),
            ("cpu", "/a:b"),
            ("cpuacct", "/a:b"),
            ("", "/u"),
        ];
        assert_eq!(all, want);
    }

    #[test]
    fn pipes_of_a_checkpoint_are_replaced() {
        let dir = std::env::temp_dir().join(format!("corten-streams-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        assert!(streams_of(&dir).is_err());
        let text = r#"["/dev/null","pipe:[7]","pipe:[7]","pipe:[9]"]"#;
        std::fs::write(dir.join(DESCRIPTORS), text).unwrap();
        let found = streams_of(&dir).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].key.as_str(), found[0].fd), ("pipe:[7]", 1));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn a_pod_s_namespaces_are_joined() {
        let spec = br#"{"ociVersion":"1.2.0","linux":{"namespaces":[
            {"type":"uts","path":"/proc/self/ns/uts"},
            {"type":"network","path":"/proc/self/ns/net"},{"type":"pid"}]}}"#;
        let mut spec = Spec::parse(spec).unwrap();
        let mut inherit = Vec::new();
        let (joins, files) = namespaces(&spec, &mut inherit).unwrap();
        assert_eq!((joins.len(), joins[0].ns.as_str()), (1, "uts"));
        assert_eq!((files.len(), inherit[0].fd), (1, 4));
        spec.linux.namespaces[0].kind = "cgroup".into();
        assert!(namespaces(&spec, &mut Vec::new()).is_err());
    }
}
