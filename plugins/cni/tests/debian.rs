//! The client with the plugins that nodes have: those of Debian's containernetworking-plugins, which
//! `integration/setup.sh` unpacks. They work on a network namespace that plays the host.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test program")]

mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use corten_cni::capability::{Bandwidth, PortMapping};
use corten_cni::{Capabilities, Cni, Options, Pod};
use serde_json::{Value, json};
use support::{Ground, inside, output, script};

/// Where the plugins are; none, with the reason printed, when they are not there.
fn plugins() -> Option<PathBuf> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("repository");
    let peers = std::env::var_os("CORTEN_PEERS_DIR")
        .map_or_else(|| top.join("target/peers"), PathBuf::from);
    let found = [
        peers.join("debian/usr/lib/cni"),
        "/usr/lib/cni".into(),
        "/opt/cni/bin".into(),
    ]
    .into_iter()
    .find(|d| d.join("bridge").exists());
    if found.is_none() {
        println!("not run: no CNI plugins here; integration/setup.sh brings them");
    }
    found
}

struct Node {
    ground: Ground,
    host: String,
    cni: Arc<Cni>,
}

impl Node {
    async fn new(networks: &[Value]) -> Option<Self> {
        let real = plugins()?;
        let mut ground = Ground::new()?;
        let host = ground.namespace("host");
        inside(&host, &["ip", "link", "set", "lo", "up"]);
        let at = ground.path().to_owned();
        for dir in ["bin", "net.d"] {
            std::fs::create_dir(at.join(dir)).unwrap();
        }
        for plugin in std::fs::read_dir(&real).unwrap() {
            let plugin = plugin.unwrap();
            let wrapper = format!(
                "#!/bin/sh\nexec nsenter --net={host} {} \"$@\"\n",
                plugin.path().display()
            );
            script(&at.join("bin").join(plugin.file_name()), &wrapper);
        }
        for (n, network) in networks.iter().enumerate() {
            std::fs::write(at.join(format!("net.d/{n}.conflist")), network.to_string()).unwrap();
        }
        let cni = Cni::open(Options {
            bin_dirs: vec![at.join("bin")],
            conf_dir: at.join("net.d"),
            cache_dir: at.join("cache"),
            max_conf_num: 0,
            ..Options::default()
        });
        Some(Self {
            cni: cni.await.unwrap(),
            ground,
            host,
        })
    }

    fn pod(&mut self, id: &str) -> Pod {
        Pod {
            id: id.into(),
            netns: self.ground.namespace(id),
            ..Pod::default()
        }
    }

    /// The addresses that host-local holds for a network.
    fn leased(&self, network: &str) -> Vec<String> {
        let dir = self.ground.path().join("ipam").join(network);
        let names = std::fs::read_dir(dir)
            .map(|d| d.filter_map(|e| e.ok()?.file_name().into_string().ok()));
        let mut all: Vec<_> = names
            .into_iter()
            .flatten()
            .filter(|n| n.starts_with("10."))
            .collect();
        all.sort();
        all
    }
}

fn bridge(name: &str, version: &str, subnet: &str, more: &[Value]) -> Value {
    let dir = "IPAM";
    let mut plugins = vec![json!({
        "type": "bridge", "bridge": format!("br-{name}"), "isGateway": true, "ipMasq": false,
        "ipam": {"type": "host-local", "ranges": [[{"subnet": subnet}]],
                 "routes": [{"dst": "0.0.0.0/0"}], "dataDir": dir},
    })];
    plugins.extend_from_slice(more);
    json!({"name": name, "cniVersion": version, "plugins": plugins})
}

/// A node whose host-local keeps its leases in the test's folder.
async fn node(networks: &[Value]) -> Option<Node> {
    let node = Node::new(networks).await?;
    for entry in std::fs::read_dir(node.ground.path().join("net.d")).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let dir = node.ground.path().join("ipam").display().to_string();
        std::fs::write(&path, text.replace("\"IPAM\"", &format!("{dir:?}"))).unwrap();
    }
    node.cni.load().await.unwrap();
    Some(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_talk_over_a_bridge_and_give_their_addresses_back() {
    let networks = [
        bridge("a", "1.0.0", "10.77.0.0/24", &[]),
        bridge("b", "0.4.0", "10.78.0.0/24", &[]),
    ];
    let Some(mut n) = node(&networks).await else {
        return;
    };
    let pods: Vec<_> = (0..4).map(|i| n.pod(&format!("pod{i}"))).collect();
    let all = futures::future::join_all(pods.iter().map(|p| n.cni.setup(p))).await;
    let setups: Vec<_> = all.into_iter().map(Result::unwrap).collect();
    assert_eq!(n.leased("a").len(), 4);
    assert_eq!(n.leased("b").len(), 4);
    let ip = setups[1].ips("eth0")[0].to_string();
    assert!(ip.starts_with("10.77.0."), "{ip}");
    assert!(setups[1].ips("eth1")[0].to_string().starts_with("10.78.0."));
    let shown = inside(&pods[1].netns, &["ip", "-o", "-4", "addr"]);
    assert!(
        shown.contains(&format!("{ip}/24")) && shown.contains("127.0.0.1/8"),
        "{shown}"
    );
    assert!(inside(&pods[0].netns, &["ip", "route", "get", &ip]).contains("eth0"));
    for pod in &pods {
        n.cni.check(pod).await.unwrap();
    }

    // One regularly, one whose namespace is gone, one whose plain file is left, one whose ADD did not end.
    n.cni.remove(&pods[0]).await.unwrap();
    let gone = Pod {
        netns: String::new(),
        ..pods[1].clone()
    };
    n.cni.remove(&gone).await.unwrap();
    n.ground.reboot(&pods[2].netns);
    n.cni.remove(&pods[2]).await.unwrap();
    let again = Cni::open(n.cni.options().clone()).await.unwrap();
    again.gc(|_| true).await.unwrap();
    assert!(n.leased("a").is_empty() && n.leased("b").is_empty());
    for pod in &pods {
        n.cni.remove(pod).await.unwrap();
    }
    assert!(n.cni.attachments(None).await.unwrap().is_empty());
    let left = inside(&n.host, &["ip", "-o", "link", "show", "type", "veth"]);
    assert!(left.lines().count() <= 2, "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_network_says_so_and_leaks_nothing() {
    let networks = [bridge("tiny", "1.0.0", "10.79.0.0/30", &[])];
    let Some(mut n) = node(&networks).await else {
        return;
    };
    let (first, second) = (n.pod("first"), n.pod("second"));
    n.cni.setup(&first).await.unwrap();
    let e = n.cni.setup(&second).await.unwrap_err().to_string();
    assert!(e.contains("no IP addresses available"), "{e}");
    assert_eq!(n.leased("tiny").len(), 1);
    n.cni.remove(&first).await.unwrap();
    n.cni.setup(&second).await.unwrap();
    n.cni.remove(&second).await.unwrap();
    assert!(n.leased("tiny").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_limits_and_firewall_rules_come_and_go() {
    let chained = [
        json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": false}),
        json!({"type": "firewall", "backend": "iptables"}),
        json!({"type": "bandwidth", "capabilities": {"bandwidth": true}}),
    ];
    let networks = [bridge("full", "1.0.0", "10.80.0.0/24", &chained)];
    let Some(mut n) = node(&networks).await else {
        return;
    };
    let net = format!("--net={}", n.host);
    for table in ["nat", "filter"] {
        let tried = output("nsenter", &[&net, "iptables", "-t", table, "-S"]);
        if !tried.status.success() {
            println!(
                "not run: no iptables {table} here: {}",
                String::from_utf8_lossy(&tried.stderr)
            );
            return;
        }
    }
    let mut pod = n.pod("web");
    let port = PortMapping {
        host_port: 8080,
        container_port: 80,
        protocol: "tcp".into(),
        host_ip: String::new(),
    };
    let limit = Bandwidth {
        ingress_rate: 8_000_000,
        ingress_burst: 8_000_000,
        ..Bandwidth::default()
    };
    pod.capabilities = Capabilities::new().port_mappings(&[port]).bandwidth(limit);
    let setup = match n.cni.setup(&pod).await {
        Ok(setup) => setup,
        // Kernels without the modules that a plugin needs.
        Err(e) if e.to_string().contains("iptables") || e.to_string().contains("qdisc") => {
            println!("not run: {e}");
            assert!(n.leased("full").is_empty());
            return;
        }
        Err(e) => panic!("{e}"),
    };
    let ip = setup.ips("eth0")[0].to_string();
    let rules = || inside(&n.host, &["iptables-save"]);
    let limits = || inside(&n.host, &["tc", "qdisc"]);
    assert!(
        rules().contains(&format!("--to-destination {ip}:80")),
        "{}",
        rules()
    );
    assert!(rules().contains(&format!("{ip}/32")), "{}", rules());
    assert!(limits().contains("tbf"), "{}", limits());
    // No CHECK: portmap 1.1 looks for IPv6 rules that it did not make.
    n.cni.remove(&pod).await.unwrap();
    assert!(!rules().contains(&ip), "{}", rules());
    assert!(!limits().contains("tbf"), "{}", limits());
    assert!(n.leased("full").is_empty());
}
