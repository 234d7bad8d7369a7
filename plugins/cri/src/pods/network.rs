//! A pod's network: its namespace, what CNI plugins are told of it, and how it is taken down again.
//!
//! What cannot be taken down while nobody can be told is a debt: a file `<root>/debts/ID`, paid at the next start.
//! Everything else is remembered by the pod's record, which stays until its network is gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use corten_cni::cache::Attachment;
use corten_cni::capability::{Bandwidth, DnsArgs, PortMapping};
use corten_cni::{Capabilities, Cni, Options};
use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{PodSandboxConfig, Protocol};
use corten_sys::{blocking, netns};
use tracing::{info, warn};

use super::{quantity, request};
use crate::Cri;
use crate::config;
use crate::metrics::Operation;
use crate::store::pod::{Metadata, Pod};

/// The network of handlers without one of their own.
pub const DEFAULT: &str = "default";

/// Where namespaces are pinned, unless they are kept with the state.
const NETNS_DIR: &str = "/var/run/netns";
/// The CNI_ARG with the pod's id.
const INFRA_CONTAINER: &str = "K8S_POD_INFRA_CONTAINER_ID";
/// How long plugins may collect garbage: nobody is served meanwhile.
const COLLECTING: Duration = Duration::from_secs(20);
const ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Kubernetes' limits of a bandwidth, in bits per second.
const MIN_BANDWIDTH: i64 = 1_000;
const MAX_BANDWIDTH: i64 = 1_000_000_000_000_000;
/// Any burst is fine.
const BURST: u64 = u32::MAX as u64;

/// The clients of all networks: the default one and those of handlers that have a folder of their own.
///
/// # Errors
/// Of making the cache's folder.
pub async fn open(config: &config::Runtime) -> Result<BTreeMap<String, Arc<Cni>>> {
    let mut networks = BTreeMap::new();
    for (name, options) in wanted(config) {
        let cni = Cni::open(options).await;
        networks.insert(name, cni.context("failed to initialize cni")?);
    }
    Ok(networks)
}

fn wanted(config: &config::Runtime) -> BTreeMap<String, Options> {
    let cni = &config.cni;
    let options = |dir: PathBuf, max| Options {
        bin_dirs: cni.bin_dirs.clone(),
        conf_dir: dir,
        max_conf_num: max,
        serial: cni.setup_serially,
        ..Options::default()
    };
    let default = options(cni.conf_dir.clone(), cni.max_conf_num);
    let own = config.containerd.runtimes.iter();
    let own = own.filter(|(_, handler)| !handler.cni_conf_dir.is_empty());
    let own = own.map(|(name, handler)| {
        let max = match handler.cni_max_conf_num {
            0 => cni.max_conf_num,
            max => max,
        };
        (
            name.clone(),
            options(PathBuf::from(&handler.cni_conf_dir), max),
        )
    });
    std::iter::once((DEFAULT.to_owned(), default))
        .chain(own)
        .collect()
}

/// The network of a handler's pods.
pub fn of<'a>(cri: &'a Cri, handler: &str) -> &'a Arc<Cni> {
    // `open` made the default one first.
    cri.networks
        .get(handler)
        .unwrap_or_else(|| &cri.networks[DEFAULT])
}

/// Makes the pod's network namespace, owned by its user namespace if it has one, and gives its file.
///
/// # Errors
/// InvalidArgument for its user namespace; those of the kernel.
pub async fn make_namespace(cri: &Cri, config: &PodSandboxConfig) -> Result<PathBuf> {
    let dir = if cri.runtime.netns_mounts_under_state_dir {
        cri.state.join("netns")
    } else {
        PathBuf::from(NETNS_DIR)
    };
    let path = dir.join(format!("cni-{}", uuid::Uuid::new_v4()));
    let maps = request::userns(config)?;
    let at = path.clone();
    blocking(move || match maps {
        None => netns::create(&at),
        Some((uids, gids)) => {
            let text = |m: corten_protos::runtime::v1::IdMapping| {
                format!("{}:{}:{}", m.container_id, m.host_id, m.length)
            };
            netns::create_owned(&at, &text(uids), &text(gids))
        }
    })
    .await?;
    Ok(path)
}

/// Unpins a namespace; none is fine.
///
/// # Errors
/// The kernel's.
pub async fn remove_namespace(path: &str) -> Result<()> {
    if path.is_empty() {
        return Ok(());
    }
    let path = PathBuf::from(path);
    blocking(move || netns::remove(&path)).await
}

/// Whether the pod's network namespace is gone; one on the node's network has none that could.
///
/// # Errors
/// Of looking at it.
pub async fn is_closed(metadata: &Metadata) -> Result<bool> {
    if request::host_network(&metadata.config) {
        return Ok(false);
    }
    if metadata.netns_path.is_empty() {
        return Ok(true);
    }
    let path = PathBuf::from(&metadata.netns_path);
    blocking(move || Ok(!netns::is_open(&path)?))
        .await
        .context("failed to check network namespace closed")
}

/// Attaches the pod to its networks and notes its addresses.
///
/// # Errors
/// InvalidArgument for what it asks of the network; those of the plugins.
pub async fn set_up(cri: &Cri, pod: &Pod) -> Result<()> {
    let metadata = pod.metadata.read().clone();
    let cni = of(cri, &metadata.runtime_handler);
    let (request, began) = (described(&metadata)?, Instant::now());
    let setup = cni.setup(&request).await;
    cri.metrics.asked(Operation::SetUp, began, &setup);
    let setup = setup?;
    let ips = setup.ips(&cni.default_interface());
    if ips.is_empty() {
        return Err(Error::new(
            Kind::Unknown,
            format!("failed to find network info for sandbox {:?}", pod.id),
        ));
    }
    let (ip, additional) = preferred(&ips, &cri.runtime.cni.ip_pref);
    let result = serde_json::to_value(&setup)
        .map_err(|e| Error::internal("encode a CNI result").with_source(e))?;
    let mut metadata = pod.metadata.write();
    metadata.ip = ip;
    metadata.additional_ips = (!additional.is_empty()).then_some(additional);
    metadata.cni_result = result;
    Ok(())
}

/// Detaches the pod from its networks; again is fine.
///
/// # Errors
/// Those of the plugins.
pub async fn tear_down(cri: &Cri, metadata: &Metadata) -> Result<()> {
    let cni = of(cri, &metadata.runtime_handler);
    let (request, began) = (described(metadata)?, Instant::now());
    let removed = cni.remove(&request).await;
    cri.metrics.asked(Operation::TearDown, began, &removed);
    removed
}

/// Takes down a network whose set-up never ended, in front of somebody who cannot be told of failures: those become
/// debts.
pub async fn abandon(cri: &Cri, metadata: &Metadata) {
    let Err(error) = tear_down(cri, metadata).await else {
        return;
    };
    warn!(sandbox.id = %metadata.id, %error, "failed to take back a network that was not complete; again at the next start");
    let (dir, file) = (debts(cri), debts(cri).join(&metadata.id));
    let noted = match serde_json::to_vec(metadata) {
        Err(e) => Err(Error::internal("encode a debt").with_source(e)),
        Ok(text) => {
            blocking(move || {
                std::fs::create_dir_all(&dir)?;
                Ok(std::fs::write(&file, text)?)
            })
            .await
        }
    };
    if let Err(error) = noted {
        warn!(sandbox.id = %metadata.id, %error, "note a network that is left");
    }
}

/// Takes down what [`abandon`] could not.
pub async fn pay_debts(cri: &Cri) {
    let dir = debts(cri);
    let found = blocking(move || {
        let mut found = Vec::new();
        let Ok(files) = std::fs::read_dir(dir) else {
            return Ok(found);
        };
        for file in files.flatten() {
            let text = std::fs::read(file.path())?;
            match serde_json::from_slice::<Metadata>(&text) {
                Ok(metadata) => found.push((file.path(), metadata)),
                // One that a crash left half written tells nothing.
                Err(_) => std::fs::remove_file(file.path())?,
            }
        }
        Ok(found)
    })
    .await
    .unwrap_or_default();
    for (file, metadata) in found {
        match tear_down(cri, &metadata).await {
            Ok(()) => {
                info!(sandbox.id = %metadata.id, "took back a network that was left");
                let _ = blocking(move || Ok(std::fs::remove_file(file)?)).await;
            }
            Err(error) => {
                warn!(sandbox.id = %metadata.id, %error, "take back a network that was left");
            }
        }
    }
}

/// Takes back what pods hold of which no record tells, and has the plugins of networks that can do so (CNI 1.1) look
/// for more. Nobody may be setting up pods: plugins take back what they are not told of.
pub async fn collect_garbage(cri: &Cri) {
    let garbage = |a: &Attachment| is_left(a, |id| cri.pods.get(id).is_ok());
    for (network, cni) in &cri.networks {
        let collected = tokio::time::timeout(COLLECTING, cni.gc(garbage)).await;
        match collected {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(network, %error, "collect the garbage of a network"),
            Err(_) => warn!(
                network,
                "collecting the garbage of a network takes too long"
            ),
        }
    }
}

/// Whether it was a pod's that is not known and has no namespace any more. Other daemons have pods too: whoever has a
/// namespace is alive.
fn is_left(a: &Attachment, is_known: impl Fn(&str) -> bool) -> bool {
    let is_pods = a
        .args
        .iter()
        .any(|(key, id)| key == INFRA_CONTAINER && *id == a.container);
    is_pods && !is_known(&a.container) && netns::is_open(a.netns.as_ref()).is_ok_and(|open| !open)
}

fn debts(cri: &Cri) -> PathBuf {
    cri.root.join("debts")
}

/// What the plugins are told.
///
/// # Errors
/// InvalidArgument: a bandwidth or a port that cannot be.
fn described(metadata: &Metadata) -> Result<corten_cni::Pod> {
    let config = &metadata.config;
    let of = config.metadata.clone().unwrap_or_default();
    let args = [
        ("K8S_POD_NAMESPACE", of.namespace.as_str()),
        ("K8S_POD_NAME", of.name.as_str()),
        (INFRA_CONTAINER, metadata.id.as_str()),
        ("K8S_POD_UID", of.uid.as_str()),
        ("IgnoreUnknown", "1"),
    ];
    Ok(corten_cni::Pod {
        id: metadata.id.clone(),
        netns: metadata.netns_path.clone(),
        args: args.map(|(k, v)| (k.to_owned(), v.to_owned())).to_vec(),
        capabilities: capabilities(config).context("get cni namespace options")?,
    })
}

fn capabilities(config: &PodSandboxConfig) -> Result<Capabilities> {
    let mut capabilities = Capabilities::new().with(ANNOTATIONS, &config.annotations);
    let mut ports = Vec::new();
    for mapping in config.port_mappings.iter().filter(|m| m.host_port > 0) {
        let port = |n: i32| {
            u16::try_from(n).map_err(|_| Error::invalid(format!("port {n} of a port mapping")))
        };
        let protocol = Protocol::try_from(mapping.protocol).map_err(|_| {
            Error::invalid(format!("protocol {} of a port mapping", mapping.protocol))
        })?;
        ports.push(PortMapping {
            host_port: port(mapping.host_port)?,
            container_port: port(mapping.container_port)?,
            protocol: protocol.as_str_name().to_ascii_lowercase(),
            host_ip: mapping.host_ip.clone(),
        });
    }
    if !ports.is_empty() {
        capabilities = capabilities.port_mappings(&ports);
    }
    if let Some(limits) = bandwidth(&config.annotations)? {
        capabilities = capabilities.bandwidth(limits);
    }
    if let Some(dns) = &config.dns_config {
        capabilities = capabilities.dns(&DnsArgs {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        });
    }
    let parent = request::cgroup_parent(config);
    if !parent.is_empty() {
        capabilities = capabilities.cgroup_path(parent);
    }
    Ok(capabilities)
}

fn bandwidth(annotations: &BTreeMap<String, String>) -> Result<Option<Bandwidth>> {
    let rate = |key: &str| -> Result<Option<u64>> {
        let Some(text) = annotations.get(key) else {
            return Ok(None);
        };
        let what = "reading pod bandwidth annotations";
        let bits = quantity::parse(text).context(what)?;
        let refuse = |how: &str| {
            Err(Error::new(
                Kind::InvalidArgument,
                format!("{what}: resource is unreasonably {how}"),
            ))
        };
        match bits {
            ..MIN_BANDWIDTH => refuse("small (< 1kbit)"),
            MIN_BANDWIDTH..=MAX_BANDWIDTH => Ok(u64::try_from(bits).ok()),
            _ => refuse("large (> 1Pbit)"),
        }
    };
    let (ingress, egress) = (rate(INGRESS)?, rate(EGRESS)?);
    if ingress.is_none() && egress.is_none() {
        return Ok(None);
    }
    let burst = |rate: Option<u64>| rate.map_or(0, |_| BURST);
    Ok(Some(Bandwidth {
        ingress_rate: ingress.unwrap_or(0),
        ingress_burst: burst(ingress),
        egress_rate: egress.unwrap_or(0),
        egress_burst: burst(egress),
    }))
}

/// The pod's address and the others, the first of the preferred family first. `ips` is not empty.
fn preferred(ips: &[IpAddr], preference: &str) -> (String, Vec<String>) {
    let wanted = match preference {
        "cni" => Some(0),
        "ipv6" => ips.iter().position(IpAddr::is_ipv6),
        "ipv4" | "" => ips.iter().position(IpAddr::is_ipv4),
        other => {
            warn!(ip_pref = other, "invalid ip_pref, falling back to ipv4");
            ips.iter().position(IpAddr::is_ipv4)
        }
    };
    let wanted = wanted.unwrap_or(0);
    let mut others: Vec<String> = ips.iter().map(ToString::to_string).collect();
    let ip = others.remove(wanted);
    (ip, others)
}

#[cfg(test)]
mod tests {
    use corten_protos::runtime::v1::{
        DnsConfig, LinuxPodSandboxConfig, PodSandboxMetadata, PortMapping as CriPort,
    };
    use serde_json::json;

    use super::*;

    #[test]
    fn plugins_are_told_what_the_pod_asks_for() {
        let port = |host_port, protocol: Protocol| CriPort {
            host_port,
            container_port: 80,
            protocol: protocol as i32,
            host_ip: "127.0.0.1".into(),
        };
        let mut metadata = Metadata {
            id: "p".into(),
            netns_path: "/ns".into(),
            config: PodSandboxConfig {
                metadata: Some(PodSandboxMetadata {
                    name: "web".into(),
                    uid: "u".into(),
                    namespace: "default".into(),
                    attempt: 1,
                }),
                dns_config: Some(DnsConfig {
                    servers: vec!["1.1.1.1".into()],
                    ..Default::default()
                }),
                port_mappings: vec![port(8080, Protocol::Sctp), port(0, Protocol::Tcp)],
                annotations: [(INGRESS.to_owned(), "10M".to_owned())].into(),
                linux: Some(LinuxPodSandboxConfig {
                    cgroup_parent: "/kubepods/x".into(),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Metadata::default()
        };
        let told = described(&metadata).unwrap();
        assert_eq!(told.args[1], ("K8S_POD_NAME".into(), "web".into()));
        assert_eq!(
            serde_json::to_value(told.capabilities.as_map()).unwrap(),
            json!({
                "io.kubernetes.cri.pod-annotations": {"kubernetes.io/ingress-bandwidth": "10M"},
                "portMappings": [
                    {"hostPort": 8080, "containerPort": 80, "protocol": "sctp", "hostIP": "127.0.0.1"}
                ],
                "bandwidth": {"ingressRate": 10_000_000, "ingressBurst": 4_294_967_295u32,
                              "egressRate": 0, "egressBurst": 0},
                "dns": {"servers": ["1.1.1.1"]},
                "cgroupPath": "/kubepods/x",
            })
        );
        metadata
            .config
            .port_mappings
            .push(port(70_000, Protocol::Tcp));
        assert!(described(&metadata).is_err());
    }

    #[test]
    fn a_handler_may_have_a_network_of_its_own() {
        let mut config = config::Runtime::default();
        config.cni.max_conf_num = 2;
        config.cni.setup_serially = true;
        for (name, dir, max) in [
            ("plain", "", 7),
            ("own", "/etc/own", 0),
            ("max", "/etc/max", 5),
        ] {
            let handler = config::Handler {
                cni_conf_dir: dir.into(),
                cni_max_conf_num: max,
                ..config::Handler::default()
            };
            config.containerd.runtimes.insert(name.into(), handler);
        }
        let found: Vec<_> = wanted(&config)
            .into_iter()
            .map(|(name, o)| {
                assert!(o.serial && o.bin_dirs == config.cni.bin_dirs);
                (name, o.conf_dir.display().to_string(), o.max_conf_num)
            })
            .collect();
        let want = [
            ("default", "/etc/cni/net.d", 2),
            ("max", "/etc/max", 5),
            ("own", "/etc/own", 2),
        ];
        assert_eq!(found, want.map(|(n, d, m)| (n.to_owned(), d.to_owned(), m)));
    }

    #[test]
    fn garbage_was_a_pod_s_that_nobody_knows_and_whose_namespace_is_gone() {
        let check = |netns: &str, key: &str, id: &str, want: bool| {
            let a = Attachment {
                container: "p".into(),
                interface: "eth0".into(),
                network: "n".into(),
                netns: netns.into(),
                args: vec![(key.into(), id.into())],
                capabilities: Capabilities::new(),
                config: Vec::new(),
                result: None,
            };
            assert_eq!(is_left(&a, |_| false), want, "{a:?}");
            assert!(!is_left(&a, |_| true));
        };
        let alive = "/proc/self/ns/net";
        check("/no/such/netns", INFRA_CONTAINER, "p", true);
        check(alive, INFRA_CONTAINER, "p", false);
        check("/no/such/netns", INFRA_CONTAINER, "other", false);
        check("/no/such/netns", "IgnoreUnknown", "1", false);
    }

    #[test]
    fn bandwidths_are_within_reason() {
        let ask = |text: &str| bandwidth(&[(EGRESS.to_owned(), text.to_owned())].into());
        assert!(bandwidth(&BTreeMap::new()).unwrap().is_none());
        for good in ["1k", "1P"] {
            assert!(ask(good).unwrap().is_some());
        }
        for bad in ["999", "1000001G", "x"] {
            assert!(ask(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_preferred_family_comes_first() {
        let ips: Vec<IpAddr> = ["fd00::2", "10.0.0.2", "10.0.0.3"]
            .iter()
            .map(|ip| ip.parse().unwrap())
            .collect();
        let pick = |preference| preferred(&ips, preference);
        assert_eq!(
            pick(""),
            ("10.0.0.2".into(), vec!["fd00::2".into(), "10.0.0.3".into()])
        );
        assert_eq!(pick("ipv6").0, "fd00::2");
        assert_eq!(pick("cni").0, "fd00::2");
        assert_eq!(pick("nonsense").0, "10.0.0.2");
        assert_eq!(preferred(&ips[..1], "ipv4").0, "fd00::2");
    }
}
