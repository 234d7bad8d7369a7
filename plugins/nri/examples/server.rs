//! A runtime without containers, for plugins to be tried against: `server SOCKET [PLUGIN_DIR [CONF_DIR [COUNT]]]`.
//!
//! It tells its plugins of a pod and COUNT containers of 1 KiB each and, for each line of its input, of what the line says; what it learns from
//! them it prints. It ends with its input.
//!
//! ```text
//! run | stop | remove POD          create | start | ended | remove-container CONTAINER
//! update CONTAINER CPUS            plugins
//! ```
#![allow(clippy::print_stdout, reason = "printing is what it is for")]

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use async_trait::async_trait;
use corten_core::Result;
use corten_core::nri::{
    Container, ContainerEviction, ContainerState, ContainerUpdate, Domain, LinuxResources, Nri,
    PodSandbox, adjust, oci,
};
use corten_nri::{Config, Relay};
use corten_protos::nri::pkg::api::v1alpha1::LinuxCpu;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

struct Node {
    containers: usize,
}

#[async_trait]
impl Domain for Node {
    fn namespace(&self) -> &str {
        "k8s.io"
    }
    async fn pods(&self) -> Vec<PodSandbox> {
        vec![pod("pod0")]
    }
    async fn containers(&self) -> Vec<Container> {
        let all = (0..self.containers).map(|n| {
            let mut c = container(&format!("ctr{n}"), ContainerState::ContainerRunning);
            c.args.push("x".repeat(1024));
            c
        });
        all.collect()
    }
    fn has_container(&self, _id: &str) -> bool {
        true
    }
    async fn update_container(&self, update: &ContainerUpdate) -> Result<()> {
        println!("updated {update:?}");
        Ok(())
    }
    async fn evict_container(&self, eviction: &ContainerEviction) -> Result<()> {
        println!("evicted {eviction:?}");
        Ok(())
    }
}

impl adjust::Host for Node {
    fn hugetlb(&self) -> bool {
        true
    }
    fn block_io(&self, _class: &str) -> Result<Option<Value>> {
        Ok(None)
    }
    fn inject_cdi(&self, spec: &mut Value, devices: &[String]) -> Result<()> {
        spec["cdi"] = json!(devices);
        Ok(())
    }
    fn propagation(&self, _path: &str) -> Result<Option<&'static str>> {
        Ok(Some("rshared"))
    }
}

fn spec() -> Value {
    json!({
        "process": {"args": ["sh"], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "annotations": {"io.kubernetes.cri.container-type": "container"},
        "linux": {"namespaces": [{"type": "mount"}], "cgroupsPath": "/k8s.io/x"},
    })
}

fn pod(id: &str) -> PodSandbox {
    PodSandbox {
        id: id.into(),
        name: id.into(),
        uid: format!("uid-{id}"),
        namespace: "default".into(),
        ..Default::default()
    }
}

fn container(id: &str, state: ContainerState) -> Container {
    Container {
        id: id.into(),
        name: id.into(),
        pod_sandbox_id: "pod0".into(),
        state: state.into(),
        ..oci::container(&spec())
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter("info,corten_nri=debug")
        .init();
    let mut args = std::env::args().skip(1);
    let socket = args
        .next()
        .context("usage: server SOCKET [PLUGINS [CONFS]]")?;
    let nowhere = PathBuf::from("/nonexistent");
    let config = Config {
        socket_path: socket.into(),
        plugin_path: args.next().map_or_else(|| nowhere.clone(), PathBuf::from),
        plugin_config_path: args.next().map_or_else(|| nowhere.clone(), PathBuf::from),
        ..Default::default()
    };
    let containers = args.next().map_or(Ok(1), |n| n.parse())?;
    let relay = Relay::new(config, "v2.4.2".into());
    relay.register(Arc::new(Node { containers }))?;
    relay.start().await?;
    println!("serving");
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split_whitespace().collect();
        match told(&relay, &words).await {
            Ok(()) => println!("ok {line}"),
            Err(e) => println!("failed {line}: {e}"),
        }
    }
    relay.stop().await;
    Ok(())
}

async fn told(relay: &Relay, words: &[&str]) -> Result<()> {
    let id = words.get(1).copied().unwrap_or("x");
    let running = container(id, ContainerState::ContainerRunning);
    match words.first().copied().unwrap_or_default() {
        "run" => relay.run_pod_sandbox(pod(id)).await,
        "stop" => relay.stop_pod_sandbox(pod(id)).await,
        "remove" => relay.remove_pod_sandbox(pod(id)).await,
        "create" => {
            let created = container(id, ContainerState::ContainerCreated);
            let wanted = relay.create_container(pod("pod0"), created.clone()).await?;
            let mut spec = spec();
            if let Some(wanted) = wanted {
                adjust::adjust(&mut spec, &wanted, &Node { containers: 0 })?;
            }
            println!("spec {spec}");
            relay.post_create_container(pod("pod0"), created).await
        }
        "start" => {
            relay.start_container(pod("pod0"), running.clone()).await?;
            relay.post_start_container(pod("pod0"), running).await
        }
        "update" => {
            let wanted = LinuxResources {
                cpu: Some(LinuxCpu {
                    cpus: words.get(2).copied().unwrap_or("0").into(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let set = relay
                .update_container(pod("pod0"), running.clone(), wanted)
                .await?;
            println!("set {set:?}");
            relay.post_update_container(pod("pod0"), running).await
        }
        "ended" => relay.stop_container(pod("pod0"), running).await,
        "remove-container" => relay.remove_container(pod("pod0"), running).await,
        "plugins" => {
            println!("plugins {:?}", relay.plugins());
            Ok(())
        }
        _ => Ok(()),
    }
}
