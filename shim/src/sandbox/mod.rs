//! Owns the sandbox of this shim: a pod whose namespaces a holder keeps, a process without a program.
//!
//! ```text
//!  create            start           stop, or the holder is killed
//! --------> Created -------> Ready ------------------------------> Stopped --shutdown--> (nothing)
//! ```
//! No pause image, snapshot or exec: the holder is a clone of this process that drops its root, its capabilities and,
//! by seccomp, every system call but read, write and exit (`corten_oci::plan_holder`). It lives as long as the shim: what
//! is left of a dead shim are containers, which `delete` kills. Containers join by the paths that their documents give,
//! `/proc/<holder>/ns/*`. In a shared pid namespace it is pid 1, and keeps no zombies.
//!
//! The shim stays while there is a sandbox, with or without containers, and goes when ShutdownSandbox leaves none.

mod document;
mod files;

use std::cell::{Cell, RefCell};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use corten_oci::{Cgroup, Spec, cgroup};
use corten_protos::any;
use corten_protos::containerd::runtime::sandbox::v1::{CreateSandboxRequest, UpdateSandboxRequest};
use corten_protos::google::protobuf::Timestamp;
use corten_protos::runtime::v1::PodSandboxConfig;
use corten_protos::time;
use tokio::sync::watch;
use tokio::task::spawn_local;

use crate::bundle::{self, Exit};
use crate::error::{Context, Error, Result};
use crate::log;
use crate::reaper::Pidfd;
use crate::systemd;
use crate::task::Shim;
use crate::task::init::remove_cgroup;
use crate::task::launch::Child;
use crate::task::process::SIGKILL;
use files::Files;

pub(crate) use files::remove as remove_files;

/// What containerd gives to a pause process: the last one to be killed for memory.
const OOM_SCORE_ADJ: i32 = -998;
/// Under which a sandbox record carries the pod's new resources, as JSON of the CRI's own message.
const UPDATED_RESOURCES: &str = "updated-resources";
/// How long the holder's cgroup may stay busy after its end.
const CGROUP_PATIENCE: Duration = Duration::from_secs(5);

/// Where a sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Created,
    Ready,
    Stopped,
}

/// A sandbox.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) id: String,
    bundle: PathBuf,
    state: Cell<State>,
    pidfd: Pidfd,
    /// Its descriptors keep the holder alive.
    holder: RefCell<Option<Child>>,
    /// The holder's own; none when the pod names no parent.
    cgroup: Option<Cgroup>,
    /// What the pod's containers have in common, for metrics.
    pod_cgroup: Option<Cgroup>,
    files: RefCell<Option<Files>>,
    /// What UpdateSandbox said last of the pod's resources.
    resources: RefCell<serde_json::Value>,
    pub(crate) created_at: Timestamp,
    exit: watch::Sender<Option<Exit>>,
}

/// What has been made of a sandbox that is not one yet.
#[derive(Default)]
struct Draft {
    cgroup: Option<Cgroup>,
    child: Option<Child>,
    files: Option<Files>,
}

/// CreateSandbox: the holder exists afterwards.
pub(crate) async fn create(shim: &Rc<Shim>, request: CreateSandboxRequest) -> Result<()> {
    let CreateSandboxRequest {
        sandbox_id: id,
        bundle_path,
        ..
    } = &request;
    if id.is_empty() || bundle_path.is_empty() {
        return Err(Error::invalid(
            "create: sandbox_id and bundle_path are required",
        ));
    }
    let reservation = shim.reserve(id)?;
    if shim.sandbox().is_some() {
        return Err(Error::exists(format!("sandbox {id}")));
    }
    let bundle = PathBuf::from(bundle_path);
    let options = bundle::read_options(&bundle);
    let pod = pod_config(&request)?;
    let spec = describe(&request, pod.as_ref(), &bundle)?;
    let mut draft = Draft::default();
    let driver = cgroup::Options {
        systemd: options.systemd_cgroup,
    };
    let mut built = draft
        .build(shim, id, &bundle, spec, pod.as_ref(), &driver)
        .await;
    if reservation.is_cancelled() {
        let cancelled = || Error::unavailable("create was cancelled by a shutdown");
        built = built.and_then(|()| Err(cancelled()));
    }
    if let Err(e) = built {
        draft.undo(shim).await;
        return Err(e.context(format!("create sandbox {id}")));
    }
    let Some(child) = draft.child else {
        return Err(Error::unknown("no holder was made"));
    };
    let sandbox = Rc::new(Sandbox {
        id: id.clone(),
        bundle,
        state: Cell::new(State::Created),
        pidfd: child.pidfd.clone(),
        holder: RefCell::new(Some(child)),
        cgroup: draft.cgroup,
        pod_cgroup: pod.as_ref().and_then(pod_cgroup),
        files: RefCell::new(draft.files),
        resources: RefCell::default(),
        created_at: time::now(),
        exit: watch::Sender::default(),
    });
    shim.set_sandbox(Some(sandbox.clone()));
    spawn_local(watch_holder(shim.clone(), sandbox));
    log::info!("sandbox {id} created");
    Ok(())
}

/// ShutdownSandbox: nothing is left of it, and the shim goes once it serves no container. Fine without a sandbox.
pub(crate) async fn shutdown(shim: &Rc<Shim>, id: &str) -> Result<()> {
    // Of a daemon that did not wait for its create.
    shim.cancel_create(id).await;
    if let Some(sandbox) = shim.sandbox() {
        if sandbox.id != id {
            return Err(unknown(id));
        }
        sandbox.stop().await?;
        shim.set_sandbox(None);
        log::info!("sandbox {id} shut down");
    }
    shim.finish();
    Ok(())
}

/// containerd's answer to an id that is not ours.
pub(crate) fn unknown(id: &str) -> Error {
    Error::not_found(format!("sandbox {id:?}"))
}

/// Follows the holder to its end.
async fn watch_holder(shim: Rc<Shim>, sandbox: Rc<Sandbox>) {
    let status = match shim.reaper.exit(&sandbox.pidfd).await {
        Ok(exit) => exit.code,
        Err(e) => {
            log::failure!("sandbox {}: collect the holder: {e}", sandbox.id);
            255
        }
    };
    let exit = Exit {
        pid: sandbox.pid(),
        status,
        at: time::now(),
    };
    sandbox.holder.borrow_mut().take();
    if let Err(e) = bundle::write_exit(&sandbox.bundle, &exit) {
        log::warning!("sandbox {}: {e}", sandbox.id);
    }
    if let Some(cgroup) = &sandbox.cgroup
        && let Err(e) = remove_cgroup(cgroup, CGROUP_PATIENCE).await
    {
        log::warning!("sandbox {}: {e}", sandbox.id);
    }
    sandbox.state.set(State::Stopped);
    sandbox.exit.send_replace(Some(exit));
}

fn pod_config(request: &CreateSandboxRequest) -> Result<Option<PodSandboxConfig>> {
    let options = request.options.as_ref();
    let Some(options) = options.filter(|any| !any.type_url.is_empty()) else {
        return Ok(None);
    };
    if !any::is::<PodSandboxConfig>(options) {
        log::warning!(
            "sandbox options of type {:?} are not used",
            options.type_url
        );
        return Ok(None);
    }
    any::unpack(options)
        .map(Some)
        .map_err(|e| Error::invalid(e.to_string()))
}

/// The holder's document, which is in the bundle afterwards.
fn describe(
    request: &CreateSandboxRequest,
    pod: Option<&PodSandboxConfig>,
    bundle: &Path,
) -> Result<Spec> {
    if !request.rootfs.is_empty() {
        log::warning!("the rootfs of a sandbox is not used: nothing is executed in it");
    }
    let text = bundle::read_config(bundle)?.unwrap_or_default();
    let document = match pod {
        Some(pod) if text.is_empty() => Some(document::of_pod(
            &request.sandbox_id,
            pod,
            &request.netns_path,
        )?),
        _ => document::of_client(&request.sandbox_id, &text, &request.netns_path)?,
    };
    let Some(document) = document else {
        return Ok(Spec::parse(&text)?);
    };
    let text = document.to_string();
    bundle::write_config(bundle, text.as_bytes())?;
    Ok(Spec::parse(text.as_bytes())?)
}

/// A network namespace made inside a user namespace names the one to join. The descriptor must live until the plan has
/// opened its path.
fn join_owner(spec: &mut Spec) -> Result<Option<OwnedFd>> {
    let path = spec.linux.namespaces.iter().find(|ns| ns.kind == "network");
    let path = path.map(|ns| ns.path.clone()).unwrap_or_default();
    let own = |ns: &&mut corten_oci::spec::Namespace| ns.kind == "user" && ns.path.is_empty();
    let Some(user) = spec.linux.namespaces.iter_mut().find(own) else {
        return Ok(None);
    };
    if path.is_empty() {
        return Ok(None);
    }
    let network = std::fs::File::open(&path).context(format!("open network namespace {path}"))?;
    let owner = corten_launch::owner_of(network.as_fd())
        .context(format!("find the owner of network namespace {path}"))?;
    user.path = format!("/proc/self/fd/{}", owner.as_raw_fd());
    Ok(Some(owner))
}

fn pod_cgroup(pod: &PodSandboxConfig) -> Option<Cgroup> {
    let parent = document::cgroup_parent(pod);
    if parent.is_empty() {
        return None;
    }
    let mut spec = Spec::default();
    parent.clone_into(&mut spec.linux.cgroups_path);
    Cgroup::open(&spec, "", &cgroup::Options::default()).ok()
}

// === impl Draft ===

impl Draft {
    async fn build(
        &mut self,
        shim: &Shim,
        id: &str,
        bundle: &Path,
        mut spec: Spec,
        pod: Option<&PodSandboxConfig>,
        driver: &cgroup::Options,
    ) -> Result<()> {
        let mut keeper = None;
        if !spec.linux.cgroups_path.is_empty() {
            let (cgroup, made) = systemd::create(&shim.reaper, &spec, id, driver).await?;
            self.cgroup = Some(cgroup);
            keeper = Some(made);
        }
        if let Some(pod) = pod {
            let own_ipc = spec.linux.namespaces.iter().any(|ns| ns.kind == "ipc");
            self.files = Some(Files::create(bundle, pod, own_ipc)?);
        }
        let owner = join_owner(&mut spec)?;
        let score = pod.is_some().then_some(OOM_SCORE_ADJ);
        let plan = corten_oci::plan_holder(&spec, self.cgroup.as_ref(), score)?;
        drop(owner);
        let child = self.child.insert(Child::spawn(&shim.reaper, &plan)?);
        drop(plan);
        child.at_gate().await?;
        if let Some((keeper, cgroup)) = keeper.zip(self.cgroup.as_ref()) {
            keeper.release(cgroup, &spec).await?;
        }
        for warning in child.take_warnings() {
            log::warning!("sandbox {id}: {warning}");
        }
        bundle::write_pid(bundle, "", child.pidfd.pid())
    }

    async fn undo(self, shim: &Shim) {
        if let Some(child) = &self.child {
            child.destroy(&shim.reaper).await;
        }
        if let Some(cgroup) = &self.cgroup
            && let Err(e) = remove_cgroup(cgroup, CGROUP_PATIENCE).await
        {
            log::warning!("undo create of a sandbox: {e}");
        }
        if let Some(files) = self.files {
            files.remove();
        }
    }
}

// === impl Sandbox ===

impl Sandbox {
    pub(crate) fn pid(&self) -> u32 {
        u32::try_from(self.pidfd.pid()).unwrap_or(0)
    }

    /// Makes it ready for containers; the document it was made from is the answer.
    pub(crate) fn start(&self) -> Result<Vec<u8>> {
        if self.state.get() != State::Created {
            return Err(Error::precondition(format!(
                "sandbox {:?} was started already",
                self.id
            )));
        }
        let text = bundle::read_config(&self.bundle)?.unwrap_or_default();
        self.state.set(State::Ready);
        Ok(text)
    }

    /// Ends the holder and what only the pod's containers needed.
    pub(crate) async fn stop(&self) -> Result<()> {
        if self.exit().is_none() {
            // Fails only when it is gone already.
            let _ = self.pidfd.signal(SIGKILL);
        }
        self.wait().await?;
        if let Some(files) = self.files.borrow_mut().take() {
            files.remove();
        }
        Ok(())
    }

    pub(crate) fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the holder's end. Cancel-safe.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut exit = self.exit.subscribe();
        let exit = exit.wait_for(Option::is_some).await;
        exit.ok()
            .and_then(|exit| *exit)
            .ok_or_else(|| Error::unavailable("the shim is going away"))
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.state.get() == State::Ready
    }

    /// Numbers of the pod's cgroup, or of the holder's where the pod has none.
    pub(crate) fn stats(&self) -> Result<cgroup::Stats> {
        let cgroup = self.pod_cgroup.as_ref().or(self.cgroup.as_ref());
        let cgroup = cgroup
            .ok_or_else(|| Error::unknown(format!("sandbox {:?} has no cgroup parent", self.id)))?;
        Ok(cgroup.stats()?)
    }

    /// Takes note of the pod's new resources, for `info`. Whoever changes them has set the limits of the pod's cgroup:
    /// it is the kubelet's, and may be systemd's. Records of earlier daemons carry none.
    pub(crate) fn update(&self, request: &UpdateSandboxRequest) -> Result<()> {
        let record = request.sandbox.as_ref();
        if let Some(said) = record.and_then(|record| record.extensions.get(UPDATED_RESOURCES)) {
            let said = serde_json::from_slice(&said.value)
                .map_err(|e| Error::invalid(format!("parse {UPDATED_RESOURCES}: {e}")))?;
            *self.resources.borrow_mut() = said;
        }
        Ok(())
    }

    /// Details for people, as the CRI shows them.
    pub(crate) fn info(&self) -> String {
        let text = bundle::read_config(&self.bundle).ok().flatten();
        let spec = text.and_then(|text| serde_json::from_slice(&text).ok());
        serde_json::json!({
            "pid": self.pid(),
            "processStatus": match self.state.get() {
                State::Created => "created",
                State::Ready => "running",
                State::Stopped => "deleted",
            },
            "netNamespaceClosed": self.state.get() == State::Stopped,
            "runtimeType": crate::info::RUNTIME,
            "runtimeSpec": spec.unwrap_or(serde_json::Value::Null),
            "updatedResources": *self.resources.borrow(),
        })
        .to_string()
    }

    /// Gives a container of this pod the files that pods share.
    pub(crate) fn furnish(&self, spec: &mut Spec) {
        let pod = spec.annotations.get("io.kubernetes.cri.sandbox-id");
        if pod == Some(&self.id)
            && let Some(files) = self.files.borrow().as_ref()
        {
            files.furnish(spec);
        }
    }
}
