//! PodSandboxStatus: what is known here, and what the controller says.

use std::sync::Arc;

use corten_core::sandbox::READY;
use corten_core::{Context, Kind, Result, sandbox};
use corten_protos::runtime::v1::{
    ContainerResources, LinuxContainerResources, LinuxPodSandboxStatus, Namespace, PodIp,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus, PodSandboxStatusRequest,
    PodSandboxStatusResponse,
};
use corten_protos::time;
use serde_json::{Map, Value, json};

use super::{controller, network, request};
use crate::Cri;
use crate::store::pod::{Pod, State};

impl Cri {
    /// # Errors
    /// NotFound; those of the controller.
    pub async fn pod_sandbox_status(
        self: &Arc<Self>,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse> {
        let pod = self.pods.get(&request.pod_sandbox_id)?;
        let at = time::unix_nanos(&time::now());
        let said = ask(self, &pod, request.verbose).await?;
        let status = status(&pod, &said, closed(&pod).await?);
        let mut info = std::collections::BTreeMap::new();
        if request.verbose {
            info.insert("info".to_owned(), verbose(self, &pod, said).await?);
        }
        Ok(PodSandboxStatusResponse {
            status: Some(status),
            info,
            containers_statuses: self.container_statuses(&pod.id).await,
            timestamp: at,
        })
    }
}

/// The status of a pod, as events carry it.
///
/// # Errors
/// Of the controller, but for NotFound.
pub async fn status_of(cri: &Cri, pod: &Pod) -> Result<PodSandboxStatus> {
    let said = ask(cri, pod, false).await?;
    Ok(status(pod, &said, closed(pod).await?))
}

/// What the controller says. One that knows nothing of a pod has lost it.
async fn ask(cri: &Cri, pod: &Pod, verbose: bool) -> Result<sandbox::Status> {
    let keeper = controller(cri, &pod.sandboxer)?;
    match keeper.status(&cri.ns, &pod.id, verbose).await {
        Err(e) if e.kind() == Kind::NotFound => Ok(sandbox::Status::default()),
        other => other.context("failed to query controller status"),
    }
}

async fn closed(pod: &Pod) -> Result<bool> {
    let metadata = pod.metadata.read().clone();
    network::is_closed(&metadata).await
}

fn status(pod: &Pod, said: &sandbox::Status, closed: bool) -> PodSandboxStatus {
    let (metadata, known) = (pod.metadata.read(), pod.status.read());
    let ready = said.state == READY && known.state == State::Ready;
    let (ip, others) = if closed {
        (String::new(), Vec::new())
    } else {
        let others = metadata.additional_ips.clone();
        (metadata.ip.clone(), others.unwrap_or_default())
    };
    let created = said
        .created_at
        .as_ref()
        .filter(|at| !time::is_unset(Some(at)));
    PodSandboxStatus {
        id: pod.id.clone(),
        metadata: metadata.config.metadata.clone(),
        state: if ready {
            PodSandboxState::SandboxReady
        } else {
            PodSandboxState::SandboxNotready
        } as i32,
        created_at: created.map_or(known.created_at, time::unix_nanos),
        network: Some(PodSandboxNetworkStatus {
            ip,
            additional_ips: others.into_iter().map(|ip| PodIp { ip }).collect(),
        }),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace {
                options: request::security(&metadata.config)
                    .and_then(|s| s.namespace_options.clone()),
            }),
        }),
        labels: metadata.config.labels.clone(),
        annotations: metadata.config.annotations.clone(),
        runtime_handler: metadata.runtime_handler.clone(),
    }
}

/// containerd's `info`: what the controller tells, completed by what is known here.
async fn verbose(cri: &Cri, pod: &Pod, said: sandbox::Status) -> Result<String> {
    let told = said.info.get("info").map_or("{}", String::as_str);
    let mut info: Map<String, Value> = serde_json::from_str(told).unwrap_or_default();
    let closed = closed(pod).await?;
    let record = cri.metadata.sandboxes().get(&cri.ns, &pod.id).await.ok();
    let (metadata, status) = (pod.metadata.read(), pod.status.read());
    let mut default = |key: &str, value: Value| {
        info.entry(key.to_owned()).or_insert(value);
    };
    default("pid", json!(status.pid));
    let ended = status.state == State::NotReady;
    default("processStatus", json!("deleted"));
    for key in ["image", "snapshotKey", "snapshotter"] {
        default(key, json!(""));
    }
    default("runtimeType", json!(pod.runtime));
    let options = record.and_then(|r| r.runtime?.options);
    default("runtimeOptions", runtime_options(options.as_ref()));
    default("runtimeSpec", Value::Null);
    if ended {
        info.insert("pid".into(), json!(0));
    }
    info.insert("netNamespaceClosed".into(), json!(closed));
    info.insert("runtimeHandler".into(), json!(metadata.runtime_handler));
    info.insert("config".into(), json!(metadata.config));
    info.insert("cniResult".into(), metadata.cni_result.clone());
    info.insert(
        "sandboxMetadata".into(),
        json!({"Version": "v1", "Metadata": &*metadata}),
    );
    info.remove("updatedResources");
    let resources = |linux: &Option<LinuxContainerResources>| {
        linux.clone().map(|linux| ContainerResources {
            linux: Some(linux),
            ..ContainerResources::default()
        })
    };
    if let Some(overhead) = resources(&status.overhead) {
        info.insert("overhead".into(), json!(overhead));
    }
    if let Some(resources) = resources(&status.resources) {
        info.insert("resources".into(), json!(resources));
    }
    Ok(Value::Object(info).to_string())
}

/// runc's options by the names that containerd shows; others as their type.
fn runtime_options(options: Option<&corten_core::Any>) -> Value {
    let Some(options) = options else {
        return Value::Null;
    };
    match corten_protos::any::unpack::<corten_protos::containerd::runc::v1::Options>(options) {
        Err(_) => json!({"type_url": options.type_url}),
        Ok(runc) => {
            let shown = [
                ("no_pivot_root", json!(runc.no_pivot_root)),
                ("no_new_keyring", json!(runc.no_new_keyring)),
                ("shim_cgroup", json!(runc.shim_cgroup)),
                ("io_uid", json!(runc.io_uid)),
                ("io_gid", json!(runc.io_gid)),
                ("binary_name", json!(runc.binary_name)),
                ("root", json!(runc.root)),
                ("systemd_cgroup", json!(runc.systemd_cgroup)),
                ("criu_image_path", json!(runc.criu_image_path)),
                ("criu_work_path", json!(runc.criu_work_path)),
            ];
            let empty = |v: &Value| *v == json!("") || *v == json!(false) || *v == json!(0);
            let set = shown.into_iter().filter(|(_, v)| !empty(v));
            Value::Object(set.map(|(k, v)| (k.to_owned(), v)).collect())
        }
    }
}
