//! What a PodSandboxConfig says.

use corten_core::{Error, Kind, Result};
use corten_protos::runtime::v1::{
    IdMapping, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata,
};

use crate::config::{Containerd, Handler};

/// Annotation of pods that must not share the host's kernel.
const UNTRUSTED: &str = "io.kubernetes.cri.untrusted-workload";
/// The handler that such pods get.
const UNTRUSTED_HANDLER: &str = "untrusted";

/// A new id of a pod or container: 64 hexadecimal digits.
pub fn new_id() -> String {
    let half = || uuid::Uuid::new_v4().simple().to_string();
    half() + &half()
}

/// The name under which a pod is reserved.
pub fn name(of: &PodSandboxMetadata) -> String {
    format!("{}_{}_{}_{}", of.name, of.namespace, of.uid, of.attempt)
}

/// Its namespaces; the defaults where it says nothing.
pub fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let options = security(config).and_then(|s| s.namespace_options.clone());
    options.unwrap_or_default()
}

/// Its security context.
pub fn security(config: &PodSandboxConfig) -> Option<&LinuxSandboxSecurityContext> {
    config.linux.as_ref()?.security_context.as_ref()
}

/// Whether it uses the node's network.
pub fn host_network(config: &PodSandboxConfig) -> bool {
    namespaces(config).network == NamespaceMode::Node as i32
}

/// Whether it uses the node's IPC namespace.
pub fn host_ipc(config: &PodSandboxConfig) -> bool {
    namespaces(config).ipc == NamespaceMode::Node as i32
}

/// The cgroup that its containers have in common; empty for none.
pub fn cgroup_parent(config: &PodSandboxConfig) -> &str {
    config.linux.as_ref().map_or("", |l| &l.cgroup_parent)
}

/// The id maps of its user namespace, if it has one of its own.
///
/// # Errors
/// InvalidArgument: not exactly one uid and one gid mapping, an empty one, or another mode than POD and NODE.
pub fn userns(config: &PodSandboxConfig) -> Result<Option<(IdMapping, IdMapping)>> {
    let bad = |what: &str| {
        Error::new(
            Kind::InvalidArgument,
            format!("user namespace configuration: {what}"),
        )
    };
    let Some(wanted) = namespaces(config).userns_options else {
        return Ok(None);
    };
    let one = |maps: &[IdMapping], what: &str| match maps {
        [map] if map.length > 0 => Ok(*map),
        [_] => Err(bad(&format!("{what} mapping has length 0"))),
        _ => Err(bad(&format!(
            "required only one {what} mapping, but got {} {what} mapping(s)",
            maps.len()
        ))),
    };
    match NamespaceMode::try_from(wanted.mode) {
        Ok(NamespaceMode::Node) => {
            let empty = wanted.uids.is_empty() && wanted.gids.is_empty();
            if empty {
                Ok(None)
            } else {
                Err(bad("mappings with mode NODE"))
            }
        }
        Ok(NamespaceMode::Pod) => Ok(Some((one(&wanted.uids, "uid")?, one(&wanted.gids, "gid")?))),
        _ => Err(bad(&format!(
            "unsupported user namespace mode: {}",
            wanted.mode
        ))),
    }
}

/// The runtime that a pod gets: the name of its handler and what is configured for it.
///
/// # Errors
/// InvalidArgument: an untrusted pod that asks for the host or for another handler. NotFound: no such handler.
pub fn handler<'a>(
    config: &'a Containerd,
    pod: &PodSandboxConfig,
    wanted: &'a str,
) -> Result<(&'a str, &'a Handler)> {
    let mut wanted = wanted;
    if pod.annotations.get(UNTRUSTED).map(String::as_str) == Some("true") {
        let refuse = |what: &str| Error::new(Kind::InvalidArgument, what.to_owned());
        if !wanted.is_empty() && wanted != UNTRUSTED_HANDLER {
            return Err(refuse(
                "untrusted workload with explicit runtime handler is not allowed",
            ));
        }
        let ns = namespaces(pod);
        let node = NamespaceMode::Node as i32;
        if [ns.network, ns.pid, ns.ipc].contains(&node) {
            return Err(refuse("untrusted workload with host access is not allowed"));
        }
        wanted = UNTRUSTED_HANDLER;
    }
    config.handler(wanted).ok_or_else(|| {
        let name = if wanted.is_empty() {
            &config.default_runtime_name
        } else {
            wanted
        };
        Error::new(
            Kind::NotFound,
            format!("no runtime for {name:?} is configured"),
        )
    })
}

/// Its hostname: the node's where it has none.
pub fn hostname(config: &PodSandboxConfig) -> String {
    if config.hostname.is_empty() {
        return node_name();
    }
    config.hostname.clone()
}

fn node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

/// A pod on the node's network is in the node's UTS namespace, whose name is not its to set.
///
/// # Errors
/// InvalidArgument: it wants another name.
pub fn check_hostname(config: &PodSandboxConfig) -> Result<()> {
    let named = !config.hostname.is_empty() && config.hostname != node_name();
    if host_network(config) && named {
        return Err(Error::new(
            Kind::InvalidArgument,
            "unable to set hostname without a private UTS namespace",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use corten_protos::runtime::v1::{LinuxPodSandboxConfig, UserNamespace};

    use super::*;

    fn pod(ns: NamespaceOption) -> PodSandboxConfig {
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(ns),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn ids_are_64_digits_and_differ() {
        let id = new_id();
        assert_eq!(id.len(), 64);
        assert!(id.bytes().all(|b| b.is_ascii_hexdigit()));
        assert_ne!(id, new_id());
    }

    #[test]
    fn the_node_s_name_is_not_a_pod_s_to_set() {
        let mut host = pod(NamespaceOption {
            network: NamespaceMode::Node as i32,
            ..Default::default()
        });
        check_hostname(&host).unwrap();
        host.hostname = node_name();
        check_hostname(&host).unwrap();
        host.hostname.push('x');
        assert!(check_hostname(&host).is_err());
        let mut own = pod(NamespaceOption::default());
        own.hostname = "web".into();
        check_hostname(&own).unwrap();
    }

    #[test]
    fn untrusted_pods_get_their_handler_and_nothing_of_the_host() {
        let config = Containerd {
            runtimes: [("untrusted".into(), Handler::default())].into(),
            ..Containerd::default()
        };
        let mut trusted = pod(NamespaceOption::default());
        assert_eq!(
            handler(&config, &trusted, "").unwrap_err().to_string(),
            "no runtime for \"corten\" is configured"
        );
        trusted.annotations.insert(UNTRUSTED.into(), "true".into());
        assert_eq!(handler(&config, &trusted, "").unwrap().0, "untrusted");
        assert!(handler(&config, &trusted, "runc").is_err());
        let mut host = pod(NamespaceOption {
            pid: NamespaceMode::Node as i32,
            ..Default::default()
        });
        host.annotations.insert(UNTRUSTED.into(), "true".into());
        assert!(handler(&config, &host, "").is_err());
    }

    #[test]
    fn user_namespaces_have_exactly_one_map_of_each_kind() {
        let map = |length| IdMapping {
            host_id: 1,
            container_id: 0,
            length,
        };
        let ask = |mode: NamespaceMode, uids: Vec<IdMapping>, gids: Vec<IdMapping>| {
            userns(&pod(NamespaceOption {
                userns_options: Some(UserNamespace {
                    mode: mode as i32,
                    uids,
                    gids,
                }),
                ..Default::default()
            }))
        };
        let pod_mode = NamespaceMode::Pod;
        assert!(ask(pod_mode, vec![map(1)], vec![map(1)]).unwrap().is_some());
        assert!(ask(NamespaceMode::Node, vec![], vec![]).unwrap().is_none());
        assert!(userns(&pod(NamespaceOption::default())).unwrap().is_none());
        for (mode, uids, gids) in [
            (pod_mode, vec![], vec![map(1)]),
            (pod_mode, vec![map(1), map(1)], vec![map(1)]),
            (pod_mode, vec![map(0)], vec![map(1)]),
            (pod_mode, vec![map(1)], vec![]),
            (NamespaceMode::Container, vec![map(1)], vec![map(1)]),
            (NamespaceMode::Node, vec![map(1)], vec![]),
        ] {
            assert!(ask(mode, uids, gids).is_err());
        }
    }
}
