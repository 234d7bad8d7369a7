//! ContainerStatus.

use std::collections::BTreeMap;
use std::sync::Arc;

use corten_core::{Any, Result};
use corten_protos::any;
use corten_protos::containerd::runc::v1::Options;
use corten_protos::runtime::v1::{
    ContainerConfig, ContainerState, ContainerStatus, ContainerStatusRequest,
    ContainerStatusResponse, ContainerUser, ImageSpec, LinuxContainerUser,
};
use corten_protos::runtimeoptions::v1::Options as OtherOptions;
use corten_protos::time;
use serde::Serialize;
use serde_json::{Value, json};
use tracing::debug;

use super::{record, signal, state};
use crate::cri::Cri;
use crate::store::Container;

/// What verbose answers add, in containerd's names.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    #[serde(rename = "sandboxID")]
    sandbox_id: String,
    pid: u32,
    removing: bool,
    snapshot_key: String,
    snapshotter: String,
    runtime_type: String,
    runtime_options: Value,
    config: ContainerConfig,
    runtime_spec: Value,
}

impl Cri {
    /// # Errors
    /// NotFound.
    pub async fn container_status(
        &self,
        r: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse> {
        let container = self.containers.get(&r.container_id)?;
        let status = self.status_of(&container).await;
        let info = match r.verbose {
            true => self.container_info(&container).await?,
            false => BTreeMap::new(),
        };
        Ok(ContainerStatusResponse {
            status: Some(status),
            info,
        })
    }

    /// The statuses of all containers of a pod.
    pub(crate) async fn container_statuses(&self, sandbox: &str) -> Vec<ContainerStatus> {
        let mut out = Vec::new();
        for container in self.containers.list() {
            if container.sandbox_id == sandbox {
                out.push(self.status_of(&container).await);
            }
        }
        out
    }

    async fn status_of(&self, container: &Arc<Container>) -> ContainerStatus {
        let record = self.record(&container.id).await;
        let user = match record.as_ref().map(record::parse) {
            Ok(Ok(spec)) => user(&spec),
            _ => {
                debug!(container.id = %container.id, "no specification to tell the user from");
                ContainerUser::default()
            }
        };
        let metadata = container.metadata.read().clone();
        let config = metadata.config;
        let status = container.status.read().clone();
        let now = status.state();
        let (image, image_ref) = self.image_of(&config, &metadata.image_ref);
        let created_at = match status.created_at {
            // The CRI does not allow 0.
            0 => record
                .ok()
                .and_then(|r| r.created_at)
                .map_or(0, |at| time::unix_nanos(&at)),
            at => at,
        };
        let (started_at, finished_at) = match now {
            ContainerState::ContainerCreated => (0, 0),
            ContainerState::ContainerRunning => (status.started_at, 0),
            _ => (status.started_at, status.finished_at),
        };
        let reason = match (status.reason.as_str(), now, status.exit_code) {
            ("", ContainerState::ContainerExited, 0) => state::COMPLETED.to_owned(),
            ("", ContainerState::ContainerExited, _) => state::ERROR.to_owned(),
            _ => status.reason,
        };
        let stop_signal = match config.stop_signal {
            0 => signal::shown(&metadata.stop_signal) as i32,
            asked => asked,
        };
        ContainerStatus {
            id: metadata.id,
            metadata: config.metadata,
            state: now as i32,
            created_at,
            started_at,
            finished_at,
            exit_code: status.exit_code,
            image,
            image_ref,
            image_id: metadata.image_ref,
            reason,
            message: status.message,
            labels: config.labels,
            annotations: config.annotations,
            mounts: config.mounts,
            log_path: metadata.log_path,
            resources: status.resources,
            user: Some(user),
            stop_signal,
        }
    }

    /// A tag of the image, else what was asked for; its repository's digest, else its id.
    fn image_of(&self, config: &ContainerConfig, id: &str) -> (Option<ImageSpec>, String) {
        let (mut image, mut image_ref) = (config.image.clone(), id.to_owned());
        if let Some(found) = self.images.resolve(id) {
            if let Some(tag) = found.repo_tags().into_iter().next() {
                image = Some(ImageSpec {
                    image: tag,
                    ..ImageSpec::default()
                });
            }
            if let Some(digest) = found.repo_digests().into_iter().next() {
                image_ref = digest;
            }
        }
        (image, image_ref)
    }

    async fn container_info(&self, container: &Container) -> Result<BTreeMap<String, String>> {
        let record = self.record(&container.id).await?;
        let (pid, removing) = {
            let status = container.status.read();
            (status.pid, status.removing)
        };
        let runtime_spec = record::parse(&record)?;
        let runtime = record.runtime.unwrap_or_default();
        let info = Info {
            sandbox_id: container.sandbox_id.clone(),
            pid,
            removing,
            snapshot_key: record.snapshot_key,
            snapshotter: record.snapshotter,
            runtime_type: runtime.name,
            runtime_options: runtime.options.map_or(Value::Null, |o| options(&o)),
            config: container.metadata.read().config.clone(),
            runtime_spec,
        };
        let text = serde_json::to_string(&info).map_err(|e| {
            corten_core::Error::internal("failed to marshal container info").with_source(e)
        })?;
        Ok(BTreeMap::from([("info".to_owned(), text)]))
    }
}

/// The options of a runtime as Go prints them: empty ones left out.
fn options(options: &Any) -> Value {
    let mut shown = if let Ok(o) = any::unpack::<Options>(options) {
        json!({
            "no_pivot_root": o.no_pivot_root, "no_new_keyring": o.no_new_keyring,
            "shim_cgroup": o.shim_cgroup, "io_uid": o.io_uid, "io_gid": o.io_gid,
            "binary_name": o.binary_name, "root": o.root, "systemd_cgroup": o.systemd_cgroup,
            "criu_image_path": o.criu_image_path, "criu_work_path": o.criu_work_path,
        })
    } else if let Ok(o) = any::unpack::<OtherOptions>(options) {
        json!({
            "type_url": o.type_url, "config_path": o.config_path,
            "config_body": String::from_utf8_lossy(&o.config_body),
        })
    } else {
        return Value::Null;
    };
    if let Some(fields) = shown.as_object_mut() {
        fields.retain(|_, v| *v != json!("") && *v != json!(0) && *v != json!(false));
    }
    shown
}

fn user(spec: &Value) -> ContainerUser {
    let number = |v: &Value| v.as_i64().unwrap_or_default();
    let Some(user) = spec.pointer("/process/user") else {
        return ContainerUser::default();
    };
    let groups = user.get("additionalGids").and_then(Value::as_array);
    ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.get("uid").map_or(0, number),
            gid: user.get("gid").map_or(0, number),
            supplemental_groups: groups.into_iter().flatten().map(number).collect(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_shown_as_go_prints_them() {
        let runc = any::pack(&Options {
            systemd_cgroup: true,
            root: "/r".into(),
            ..Options::default()
        });
        assert_eq!(
            options(&runc),
            json!({"systemd_cgroup": true, "root": "/r"})
        );
        assert_eq!(options(&any::pack(&Options::default())), json!({}));
        assert_eq!(options(&Any::default()), Value::Null);
    }

    #[test]
    fn the_user_is_that_of_the_process() {
        let spec = json!({"process": {"user": {"uid": 1, "gid": 2, "additionalGids": [2, 3]}}});
        let linux = user(&spec).linux.unwrap();
        assert_eq!((linux.uid, linux.gid), (1, 2));
        assert_eq!(linux.supplemental_groups, [2, 3]);
        assert!(user(&json!({})).linux.is_none());
    }
}
