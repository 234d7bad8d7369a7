//! The plugins: `io.containerd.cri.v1.{images,runtime}`, `io.containerd.podsandbox.controller.v1.podsandbox` and
//! `io.containerd.grpc.v1.cri`, which starts in this order: what it needs, recovery, the streaming server, NRI. Clients
//! get through when all that is done.

use std::any::Any;
use std::fs::{DirBuilder, Permissions};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use corten_core::filter::Filter;
use corten_core::sandbox::Controller;
use corten_core::service::{BLOCKIO_FILE, GrpcService};
use corten_core::tasks_set::TaskSet;
use corten_core::{Context as _, Error, Kind, Namespace, Result, kinds};
use corten_registry::{BoxError, Context, InitError, Registration};
use tracing::warn;

use crate::config::{self, PODSANDBOX};
use crate::cri::NAMESPACE;
use crate::events::Hub;
use crate::images::{CriService, Images};
use crate::metrics::Metrics;
use crate::pods::pause::Pause;
use crate::service::Service;
use crate::spec::{Classes, Specs};
use crate::stats::Collector;
use crate::store::{Index, Names};
use crate::streaming::{self, Tls, server};
use crate::{Cri, containers, pods, stats, status};

/// All plugins of this crate.
pub fn registrations() -> Vec<Registration> {
    let pause = Arc::new(Pause::default());
    let metrics = Arc::new(Metrics::default());
    vec![
        crate::metrics::registration(metrics.clone()),
        crate::images::registration(metrics.clone()),
        runtime(),
        podsandbox(pause.clone()),
        cri(pause, metrics),
    ]
}

/// The configuration of runtimes, networks and containers; its instance is [`config::Runtime`].
fn runtime() -> Registration {
    Registration::new::<CriService>("runtime")
        .config::<config::Runtime>()
        .init(|cx, config| {
            Box::pin(async move {
                // Where stock containerd has them.
                cx.host_platform();
                cx.export("CRIVersion", "v1");
                let config = config.completed();
                config.check()?;
                Ok(Arc::new(config) as Arc<dyn Any + Send + Sync>)
            })
        })
}

fn podsandbox(pause: Arc<Pause>) -> Registration {
    Registration::new::<kinds::PodSandbox>(PODSANDBOX)
        .requires::<CriService>()
        .init_plain(|cx| {
            Box::pin(async move {
                // Without its configuration there is nothing it could do.
                cx.by_id::<CriService>("runtime")?;
                Ok(pause as Arc<dyn Controller>)
            })
        })
}

fn cri(pause: Arc<Pause>, metrics: Arc<Metrics>) -> Registration {
    Registration::new::<kinds::Grpc>("cri")
        .requires::<CriService>()
        .requires::<kinds::PodSandbox>()
        .requires::<kinds::SandboxController>()
        .requires::<kinds::Metadata>()
        .requires::<kinds::Runtime>()
        .requires::<kinds::Service>()
        .requires::<kinds::Event>()
        .requires::<kinds::MountManager>()
        .requires::<kinds::Differ>()
        .requires::<kinds::Nri>()
        .requires::<kinds::Warning>()
        .config::<config::Grpc>()
        .init(|cx, grpc| {
            Box::pin(async move {
                let cri = open(cx, grpc, pause, metrics).await?;
                up(&cri).await?;
                Ok(Arc::new(Service(cri)) as Arc<dyn GrpcService>)
            })
        })
}

async fn open(
    cx: &mut Context,
    grpc: config::Grpc,
    pause: Arc<Pause>,
    metrics: Arc<Metrics>,
) -> Result<Arc<Cri>, InitError> {
    let wrong = |what: &str| BoxError::from(format!("plugin {what} is not what it is here"));
    let runtime = cx.by_id::<CriService>("runtime")?;
    let runtime: Arc<config::Runtime> = runtime.downcast().map_err(|_| wrong("runtime"))?;
    let images = cx.by_id::<CriService>("images")?;
    let images: Arc<Images> = images.downcast().map_err(|_| wrong("images"))?;
    let runtime = config::Runtime::clone(&runtime);
    for (name, handler) in &runtime.containerd.runtimes {
        if !handler.snapshotter.is_empty() {
            images.set_runtime_snapshotter(name, &handler.snapshotter);
        }
    }
    let mut controllers = cx.all::<kinds::PodSandbox>()?;
    controllers.extend(cx.all::<kinds::SandboxController>()?);
    let controllers = controllers.into_iter().map(|(id, (c, _))| (id, c));
    let tasks = cx.by_id::<kinds::Runtime>("task")?;
    let networks = pods::network::open(&runtime).await?;
    let specs = {
        let runtime = runtime.clone();
        let services = cx.all::<kinds::Service>()?;
        let tasks = services.get("tasks-service").map(|(_, meta)| &meta.exports);
        let blockio = tasks
            .and_then(|told| told.get(BLOCKIO_FILE))
            .map(PathBuf::from);
        corten_sys::blocking(move || {
            let classes = Classes::read(blockio.as_deref());
            Ok(Specs::new(&runtime)?.with_classes(classes))
        })
        .await?
    };
    let properties = cx.properties();
    let cri = Arc::new(Cri {
        ns: Namespace::new(NAMESPACE)?,
        root: cx.root(),
        state: cx.state(),
        daemon_root: properties.root.clone(),
        endpoint: properties.grpc_address.clone(),
        version: properties.version.clone(),
        metadata: cx.single::<kinds::Metadata>()?,
        warnings: cx.by_id::<kinds::Warning>("deprecations")?,
        events: cx.single::<kinds::Event>()?,
        mounts: cx.single::<kinds::MountManager>()?,
        differ: cx.by_id::<kinds::Differ>("walking")?,
        controllers: controllers.collect(),
        pause,
        pods: Index::new("sandbox"),
        pod_names: Names::default(),
        locks: Default::default(),
        containers: Index::new("container"),
        container_names: Names::default(),
        images,
        handlers: status::handlers(
            &runtime.containerd,
            tasks.as_ref(),
            specs.host().mounts_trees_read_only(),
        )
        .await,
        specs: Arc::new(specs),
        networks,
        hub: Hub::counting(metrics.events_dropped.clone()),
        metrics,
        collector: Arc::new(Collector::new(
            runtime.stats_collect_period,
            runtime.stats_retention_period,
        )),
        nri: cx.single::<kinds::Nri>().ok(),
        background: TaskSet::new(),
        urls: OnceLock::new(),
        tasks,
        runtime,
        grpc,
    });
    cri.pause.bind(&cri);
    Ok(cri)
}

/// Everything that comes before the first client.
async fn up(cri: &Arc<Cri>) -> Result<()> {
    // Where tools look for the bundles of Kubernetes' tasks, also while all pods are with our shim and have none there.
    let tasks = cri.state.with_file_name("io.containerd.runtime.v2.task");
    for (dir, mode) in [
        (cri.root.clone(), 0o700),
        (cri.state.clone(), 0o700),
        (tasks.join(NAMESPACE), 0o711),
    ] {
        corten_sys::blocking(move || private(&dir, mode))
            .await
            .context("make a folder of the CRI")?;
    }
    listen(cri)?;
    pods::recover::recover(cri)
        .await
        .context("failed to recover state")?;
    containers::recover(cri)
        .await
        .context("failed to recover state")?;
    for cni in cri.networks.values() {
        cri.background.spawn("cni conf", cni.clone().watch());
    }
    serve_streams(cri).await?;
    stats::start(cri);
    crate::nri::start(cri).await
}

/// Makes a folder that users of the host see no more of than `mode` says, also where it was looser (CVE-2024-25621):
/// pods' /dev/shm and image volumes are in there, with what is set-user-id in images.
fn private(dir: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(dir)?;
    let found = std::fs::metadata(dir)?.permissions().mode() & 0o7777;
    if found & !mode != 0 {
        std::fs::set_permissions(dir, Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Out-of-memory kills, from now on.
fn listen(cri: &Arc<Cri>) -> Result<()> {
    let wanted = Filter::parse(&["topic==\"/tasks/oom\""])?;
    let mut events = cri.events.subscribe(wanted.clone());
    let watched = cri.clone();
    cri.background.spawn("cri events", async move {
        loop {
            while let Some(event) = events.recv().await {
                if event.namespace == NAMESPACE {
                    watched.on_event(&event).await;
                }
            }
            warn!("events were missed");
            events = watched.events.subscribe(wanted.clone());
        }
    });
    Ok(())
}

async fn serve_streams(cri: &Arc<Cri>) -> Result<()> {
    let config = &cri.grpc;
    let bad =
        |key: &str, value: &str| Error::new(Kind::InvalidArgument, format!("{key} = {value:?}"));
    let text = config.stream_server_address.as_str();
    let address: IpAddr = match text {
        "" | "localhost" => Ipv4Addr::LOCALHOST.into(),
        text => text
            .parse()
            .map_err(|_| bad("stream_server_address", text))?,
    };
    let text = config.stream_server_port.as_str();
    let port = match text {
        "" => 0,
        text => text.parse().map_err(|_| bad("stream_server_port", text))?,
    };
    let pair = &config.x509_key_pair_streaming;
    let tls = if !config.enable_tls_streaming {
        Tls::Off
    } else if pair.tls_cert_file.is_empty() && pair.tls_key_file.is_empty() {
        Tls::SelfSigned(vec![address.to_string(), "localhost".to_owned()])
    } else {
        Tls::KeyPair {
            certificate: pair.tls_cert_file.clone().into(),
            key: pair.tls_key_file.clone().into(),
        }
    };
    let config = streaming::Config {
        address,
        port,
        tls,
        idle: config.stream_idle_timeout,
        ..streaming::Config::default()
    };
    let runtime = Arc::new(containers::Streams::new(cri.clone()));
    let server = server::Server::bind(config, runtime)
        .await
        .context("failed to create stream server")?;
    let _ = cri.urls.set(server.urls());
    // It ends with the daemon.
    cri.background
        .spawn("streaming server", server.serve(std::future::pending()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_closed_to_others_even_if_they_were_open() {
        let lab = tempfile::tempdir().unwrap();
        let (new, old) = (lab.path().join("a/new"), lab.path().join("old"));
        std::fs::create_dir(&old).unwrap();
        std::fs::set_permissions(&old, Permissions::from_mode(0o755)).unwrap();
        for (dir, mode) in [(&new, 0o700), (&old, 0o700), (&new, 0o711)] {
            private(dir, mode).unwrap();
            let now = std::fs::metadata(dir).unwrap().permissions().mode();
            assert_eq!(now & 0o7777, 0o700, "{}", dir.display());
        }
    }
}
