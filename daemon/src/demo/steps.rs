//! The demo's calls, in the order in which `ctr run` makes them.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use corten_core::scope::{LEASE_HEADER, NAMESPACE_HEADER};
use corten_protos::any::{OCI_SPEC, pack_json};
use corten_protos::containerd::services::containers::v1::container::Runtime;
use corten_protos::containerd::services::containers::v1::containers_client::ContainersClient;
use corten_protos::containerd::services::containers::v1::{
    Container, CreateContainerRequest, DeleteContainerRequest,
};
use corten_protos::containerd::services::content::v1::content_client::ContentClient;
use corten_protos::containerd::services::content::v1::{WriteAction, WriteContentRequest};
use corten_protos::containerd::services::diff::v1::ApplyRequest;
use corten_protos::containerd::services::diff::v1::diff_client::DiffClient;
use corten_protos::containerd::services::images::v1::images_client::ImagesClient;
use corten_protos::containerd::services::images::v1::{
    CreateImageRequest, DeleteImageRequest, Image as ImageRecord,
};
use corten_protos::containerd::services::leases::v1::leases_client::LeasesClient;
use corten_protos::containerd::services::leases::v1::{
    CreateRequest as CreateLeaseRequest, DeleteRequest as DeleteLeaseRequest,
};
use corten_protos::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use corten_protos::containerd::services::snapshots::v1::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
};
use corten_protos::containerd::services::tasks::v1::tasks_client::TasksClient;
use corten_protos::containerd::services::tasks::v1::{
    CreateTaskRequest, DeleteTaskRequest, StartRequest, WaitRequest,
};
use corten_protos::containerd::types::Mount;
use tokio::io::AsyncReadExt as _;

use super::image::{self, Blob};
use super::tell;
use crate::server::ClientChannel;

const NAMESPACE: &str = "demo";
const LEASE: &str = "demo";
const NAME: &str = "corten.dev/hello:latest";
const RUNTIME: &str = "io.containerd.corten.v2";
const SNAPSHOTTER: &str = "overlayfs";
const EXIT_CODE: u32 = 7;

/// A request in the demo's namespace and under its lease, which holds what no image refers to yet.
fn request<T>(message: T) -> tonic::Request<T> {
    let mut r = tonic::Request::new(message);
    let text = tonic::metadata::MetadataValue::from_static;
    r.metadata_mut().insert(NAMESPACE_HEADER, text(NAMESPACE));
    r.metadata_mut().insert(LEASE_HEADER, text(LEASE));
    r
}

/// Names and times of the steps.
#[derive(Default)]
struct Timings(Vec<(&'static str, Duration)>);

impl Timings {
    async fn step<T>(
        &mut self,
        name: &'static str,
        what: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let begun = Instant::now();
        let out = what.await.context(name)?;
        self.0.push((name, begun.elapsed()));
        Ok(out)
    }
}

/// Runs the container and prints what there is to see.
pub(super) async fn show(
    channel: ClientChannel,
    home: &Path,
    booted: Duration,
    daemon: u32,
) -> Result<()> {
    let id = format!("hello-{daemon}");
    let mut t = Timings::default();
    t.0.push(("daemon start", booted));
    tell(&format!(
        "cortend {} serves as pid {daemon}",
        crate::cli::VERSION
    ));
    let image = image::build()?;
    let chain = image.layer.descriptor.digest.clone();
    t.step("load image", load(&channel, &image)).await?;
    t.step("unpack", unpack(&channel, &image.layer, &chain))
        .await?;
    let mounts = t
        .step("prepare rootfs", prepare(&channel, &id, &chain))
        .await?;
    let mut tasks = TasksClient::new(channel.clone());
    t.step("create container", create_record(&channel, &id))
        .await?;
    let fifo = home.join("stdout");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).context("make the fifo")?;
    let mut output = tokio::net::unix::pipe::OpenOptions::new()
        .open_receiver(&fifo)
        .context("open the fifo")?;
    let create = CreateTaskRequest {
        container_id: id.clone(),
        rootfs: mounts,
        stdout: fifo.to_string_lossy().into_owned(),
        stderr: fifo.to_string_lossy().into_owned(),
        ..CreateTaskRequest::default()
    };
    let pid = t
        .step("create task", async {
            Ok(tasks.create(request(create)).await?.into_inner().pid)
        })
        .await?;
    outside(pid);
    let mut waiter = tasks.clone();
    let wait = request(WaitRequest {
        container_id: id.clone(),
        ..WaitRequest::default()
    });
    let begun = Instant::now();
    let start = StartRequest {
        container_id: id.clone(),
        ..StartRequest::default()
    };
    let (exit, ()) = tokio::try_join!(
        async { anyhow::Ok(waiter.wait(wait).await?.into_inner()) },
        async {
            t.step("start task", async {
                tasks.start(request(start)).await?;
                Ok(())
            })
            .await
        }
    )?;
    t.0.push(("start to exit", begun.elapsed()));
    let mut text = String::new();
    output
        .read_to_string(&mut text)
        .await
        .context("read the container's output")?;
    for line in text.lines() {
        tell(&format!("  container | {line}"));
    }
    let delete = DeleteTaskRequest {
        container_id: id.clone(),
    };
    t.step("delete task", async {
        tasks.delete(request(delete)).await?;
        Ok(())
    })
    .await?;
    t.step("remove everything", remove(&channel, &id, &chain))
        .await?;
    tell(&format!(
        "exit code {} (asked for {EXIT_CODE})",
        exit.exit_status
    ));
    for (name, time) in &t.0 {
        tell(&format!("  {name:<18} {:8.2} ms", time.as_secs_f64() * 1e3));
    }
    anyhow::ensure!(
        exit.exit_status == EXIT_CODE,
        "the exit code is not the one asked for"
    );
    anyhow::ensure!(
        text.contains("hello from pid 1"),
        "the container's output is missing"
    );
    Ok(())
}

/// The container as the host sees it, created and not yet started.
fn outside(pid: u32) {
    tell(&format!("container is pid {pid} on the host"));
    for ns in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let link = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/{ns}"));
        if let (Ok(theirs), Ok(ours)) = (link(&pid.to_string()), link("self")) {
            let note = if theirs == ours {
                "shared with the host"
            } else {
                "its own"
            };
            tell(&format!(
                "  namespace {:<24} {note}",
                theirs.display().to_string()
            ));
        }
    }
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    for line in cgroups.lines().filter(|l| !l.ends_with(":/")).take(3) {
        tell(&format!("  cgroup    {line}"));
    }
}

async fn load(channel: &ClientChannel, image: &image::Image) -> Result<()> {
    let lease = CreateLeaseRequest {
        id: LEASE.into(),
        ..CreateLeaseRequest::default()
    };
    let mut lease = tonic::Request::new(lease);
    lease.metadata_mut().insert(
        NAMESPACE_HEADER,
        tonic::metadata::MetadataValue::from_static(NAMESPACE),
    );
    let mut leases = LeasesClient::new(channel.clone());
    leases.create(lease).await.context("create lease")?;
    let content = ContentClient::new(channel.clone());
    for blob in [&image.layer, &image.config, &image.manifest] {
        write(content.clone(), blob).await?;
    }
    let record = ImageRecord {
        name: NAME.into(),
        target: Some(image.manifest.descriptor.clone()),
        ..ImageRecord::default()
    };
    let create = CreateImageRequest {
        image: Some(record),
        ..CreateImageRequest::default()
    };
    ImagesClient::new(channel.clone())
        .create(request(create))
        .await
        .context("create image")?;
    Ok(())
}

async fn write(mut content: ContentClient<ClientChannel>, blob: &Blob) -> Result<()> {
    // The whole blob and its commit in one message: it is far smaller than the limit of 16 MiB.
    let message = WriteContentRequest {
        action: WriteAction::Commit.into(),
        r#ref: format!("demo-{}", blob.descriptor.digest),
        total: blob.descriptor.size,
        expected: blob.descriptor.digest.clone(),
        offset: 0,
        data: blob.data.clone().into(),
        ..WriteContentRequest::default()
    };
    let mut answers = content
        .write(request(tokio_stream::once(message)))
        .await
        .context("write blob")?
        .into_inner();
    while answers.message().await.context("commit blob")?.is_some() {}
    Ok(())
}

async fn unpack(channel: &ClientChannel, layer: &Blob, chain: &str) -> Result<()> {
    let mut snapshots = SnapshotsClient::new(channel.clone());
    let key = format!("extract {chain}");
    let prepare = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: key.clone(),
        ..PrepareSnapshotRequest::default()
    };
    let mounts = snapshots
        .prepare(request(prepare))
        .await
        .context("prepare")?
        .into_inner()
        .mounts;
    let apply = ApplyRequest {
        diff: Some(layer.descriptor.clone()),
        mounts,
        ..ApplyRequest::default()
    };
    DiffClient::new(channel.clone())
        .apply(request(apply))
        .await
        .context("apply")?;
    let commit = CommitSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        name: chain.to_owned(),
        key,
        ..CommitSnapshotRequest::default()
    };
    snapshots.commit(request(commit)).await.context("commit")?;
    Ok(())
}

async fn prepare(channel: &ClientChannel, id: &str, chain: &str) -> Result<Vec<Mount>> {
    let prepare = PrepareSnapshotRequest {
        snapshotter: SNAPSHOTTER.into(),
        key: id.to_owned(),
        parent: chain.to_owned(),
        ..PrepareSnapshotRequest::default()
    };
    Ok(SnapshotsClient::new(channel.clone())
        .prepare(request(prepare))
        .await?
        .into_inner()
        .mounts)
}

async fn create_record(channel: &ClientChannel, id: &str) -> Result<()> {
    let container = Container {
        id: id.to_owned(),
        image: NAME.into(),
        runtime: Some(Runtime {
            name: RUNTIME.into(),
            options: None,
        }),
        spec: Some(pack_json(OCI_SPEC, serde_json::to_vec(&spec(id))?)),
        snapshotter: SNAPSHOTTER.into(),
        snapshot_key: id.to_owned(),
        ..Container::default()
    };
    let create = CreateContainerRequest {
        container: Some(container),
    };
    ContainersClient::new(channel.clone())
        .create(request(create))
        .await?;
    Ok(())
}

fn spec(id: &str) -> serde_json::Value {
    serde_json::json!({
        "ociVersion": "1.3.0",
        "process": {
            "user": {"uid": 1000, "gid": 1000},
            "args": ["/hello", EXIT_CODE.to_string()],
            "env": ["PATH=/"],
            "cwd": "/",
            "capabilities": {"bounding": [], "effective": [], "permitted": []},
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "corten-demo",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        ],
        "linux": {
            "cgroupsPath": format!("/corten-{id}"),
            "resources": {"memory": {"limit": 64 << 20}, "pids": {"limit": 32}},
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "network"}, {"type": "cgroup"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
        },
    })
}

async fn remove(channel: &ClientChannel, id: &str, chain: &str) -> Result<()> {
    let container = DeleteContainerRequest { id: id.to_owned() };
    ContainersClient::new(channel.clone())
        .delete(request(container))
        .await?;
    let mut snapshots = SnapshotsClient::new(channel.clone());
    for key in [id, chain] {
        let remove = RemoveSnapshotRequest {
            snapshotter: SNAPSHOTTER.into(),
            key: key.to_owned(),
        };
        snapshots
            .remove(request(remove))
            .await
            .with_context(|| format!("remove {key}"))?;
    }
    let delete = DeleteImageRequest {
        name: NAME.into(),
        sync: true,
        ..DeleteImageRequest::default()
    };
    ImagesClient::new(channel.clone())
        .delete(request(delete))
        .await
        .context("delete image")?;
    let lease = DeleteLeaseRequest {
        id: LEASE.into(),
        sync: true,
    };
    let mut leases = LeasesClient::new(channel.clone());
    leases
        .delete(request(lease))
        .await
        .context("delete lease")?;
    Ok(())
}
