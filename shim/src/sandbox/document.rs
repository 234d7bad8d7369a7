//! Owns the document of a pod's holder: a config.json made from what the CRI says of a pod, or the client's own.
//!
//! It is written to the bundle where the CRI left none, so that `delete`, NRI and people find there what they know.
//!
//! | pod asks | document says |
//! |---|---|
//! | network NODE | no network, no UTS namespace |
//! | network POD | network namespace by the request's path (new without one), new UTS |
//! | ipc, pid NODE | none |
//! | pid POD | new; CONTAINER needs none here |
//! | userns POD | maps; joined from the owner of the network namespace, new with the host's network |

use corten_protos::runtime::v1::{
    IdMapping, NamespaceMode, NamespaceOption, PodSandboxConfig, UserNamespace,
};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

const VERSION: &str = "1.3.0";
/// The kernel's least.
const SHARES: u64 = 2;

/// What containerd gives to every pod with a network of its own, unless the pod says otherwise.
const DEFAULT_SYSCTLS: [(&str, &str); 2] = [
    ("net.ipv4.ip_unprivileged_port_start", "0"),
    ("net.ipv4.ping_group_range", "0 2147483647"),
];

/// The document of a CRI pod.
pub(super) fn of_pod(id: &str, pod: &PodSandboxConfig, netns: &str) -> Result<Value> {
    let ns = namespace_options(pod);
    let maps = user_maps(&ns)?;
    let own_network = ns.network != NamespaceMode::Node as i32;
    let mut linux = Map::new();
    linux.insert(
        "namespaces".into(),
        namespaces(&ns, own_network, maps.is_some(), netns),
    );
    if !own_network && !pod.hostname.is_empty() {
        return Err(Error::invalid(
            "unable to set hostname without a private UTS namespace",
        ));
    }
    if let Some((uids, gids)) = &maps {
        linux.insert("uidMappings".into(), mappings(uids));
        linux.insert("gidMappings".into(), mappings(gids));
    }
    linux.insert("sysctl".into(), sysctls(pod, own_network, maps.is_some()));
    let parent = cgroup_parent(pod);
    if !parent.is_empty() {
        linux.insert("cgroupsPath".into(), cgroups_path(parent, id).into());
        linux.insert(
            "resources".into(),
            json!({"cpu": {"shares": SHARES}, "devices": [{"allow": false, "access": "rwm"}]}),
        );
    }
    Ok(json!({
        "ociVersion": VERSION,
        "hostname": if own_network { pod.hostname.as_str() } else { "" },
        "annotations": annotations(id, pod),
        "linux": linux,
    }))
}

/// A client's own document, made complete. `None` when there is nothing to add.
///
/// `ctr oci spec` names the cgroup of the whole namespace. The holder gets one of its own below it: where containers are
/// beside it there is no room for processes, and what is in the holder's goes with it.
pub(super) fn of_client(id: &str, text: &[u8], netns: &str) -> Result<Option<Value>> {
    let mut document: Value = if text.is_empty() {
        json!({})
    } else {
        serde_json::from_slice(text)
            .map_err(|e| Error::invalid(format!("parse config.json: {e}")))?
    };
    let before = document.clone();
    let root = document
        .as_object_mut()
        .ok_or_else(|| Error::invalid("config.json is not an object"))?;
    if root
        .get("ociVersion")
        .and_then(Value::as_str)
        .is_none_or(str::is_empty)
    {
        root.insert("ociVersion".into(), VERSION.into());
    }
    if !root.get("linux").is_some_and(Value::is_object) {
        root.insert("linux".into(), json!({}));
    }
    let linux = &mut root["linux"];
    if !linux["namespaces"].is_array() {
        linux["namespaces"] = namespaces(&NamespaceOption::default(), true, false, "");
    }
    for ns in linux["namespaces"].as_array_mut().into_iter().flatten() {
        let has_path = ns["path"].as_str().is_some_and(|path| !path.is_empty());
        if ns["type"] == "network" && !has_path && !netns.is_empty() {
            ns["path"] = netns.into();
        }
    }
    let path = linux["cgroupsPath"].as_str().unwrap_or_default();
    // systemd's form ends with a name of the unit.
    let own = path.is_empty() || path.contains(':') || path.rsplit('/').next() == Some(id);
    if !own {
        linux["cgroupsPath"] = format!("{}/{id}", path.trim_end_matches('/')).into();
    }
    Ok((document != before).then_some(document))
}

/// The cgroup that the pod's containers have in common, as the kubelet names it.
pub(super) fn cgroup_parent(pod: &PodSandboxConfig) -> &str {
    pod.linux.as_ref().map_or("", |linux| &linux.cgroup_parent)
}

fn namespace_options(pod: &PodSandboxConfig) -> NamespaceOption {
    let security = pod.linux.as_ref().and_then(|l| l.security_context.as_ref());
    security
        .and_then(|s| s.namespace_options.clone())
        .unwrap_or_default()
}

fn namespaces(ns: &NamespaceOption, own_network: bool, user: bool, netns: &str) -> Value {
    let node = NamespaceMode::Node as i32;
    let mut list = Vec::new();
    if own_network {
        list.push(match netns {
            "" => json!({"type": "network"}),
            path => json!({"type": "network", "path": path}),
        });
        list.push(json!({"type": "uts"}));
    }
    if ns.ipc != node {
        list.push(json!({"type": "ipc"}));
    }
    if ns.pid == NamespaceMode::Pod as i32 {
        list.push(json!({"type": "pid"}));
    }
    if user {
        list.push(json!({"type": "user"}));
    }
    Value::Array(list)
}

/// containerd takes exactly one mapping of each kind.
fn user_maps(ns: &NamespaceOption) -> Result<Option<(Vec<IdMapping>, Vec<IdMapping>)>> {
    let Some(UserNamespace { mode, uids, gids }) = &ns.userns_options else {
        return Ok(None);
    };
    if *mode == NamespaceMode::Node as i32 {
        return Ok(None);
    }
    let one = |maps: &[IdMapping]| maps.len() == 1 && maps.iter().all(|m| m.length > 0);
    if *mode != NamespaceMode::Pod as i32 || !one(uids) || !one(gids) {
        return Err(Error::invalid(
            "user namespace configuration: mode POD with exactly one uid and one gid mapping is needed",
        ));
    }
    Ok(Some((uids.clone(), gids.clone())))
}

fn mappings(maps: &[IdMapping]) -> Value {
    maps.iter()
        .map(|m| json!({"containerID": m.container_id, "hostID": m.host_id, "size": m.length}))
        .collect()
}

fn sysctls(pod: &PodSandboxConfig, own_network: bool, user: bool) -> Value {
    let given = pod.linux.as_ref().map(|linux| linux.sysctls.clone());
    let mut all = given.unwrap_or_default();
    if own_network {
        // The range of groups names ids that a user namespace does not have.
        let defaults = &DEFAULT_SYSCTLS[..if user { 1 } else { 2 }];
        for (key, value) in defaults {
            all.entry((*key).to_owned())
                .or_insert_with(|| (*value).to_owned());
        }
    }
    json!(all)
}

/// containerd's rule: below the parent, or systemd's `slice:prefix:name` for a slice.
fn cgroups_path(parent: &str, id: &str) -> String {
    let slice = parent.rsplit('/').next().unwrap_or(parent);
    if slice.ends_with(".slice") {
        return format!("{slice}:cri-containerd:{id}");
    }
    format!("{}/{id}", parent.trim_end_matches('/'))
}

fn annotations(id: &str, pod: &PodSandboxConfig) -> Value {
    let of = pod.metadata.clone().unwrap_or_default();
    json!({
        "io.kubernetes.cri.container-type": "sandbox",
        "io.kubernetes.cri.sandbox-id": id,
        "io.kubernetes.cri.sandbox-name": of.name,
        "io.kubernetes.cri.sandbox-namespace": of.namespace,
        "io.kubernetes.cri.sandbox-uid": of.uid,
        "io.kubernetes.cri.sandbox-log-directory": pod.log_directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use corten_protos::runtime::v1::{LinuxPodSandboxConfig, LinuxSandboxSecurityContext};

    fn pod(ns: NamespaceOption, parent: &str) -> PodSandboxConfig {
        PodSandboxConfig {
            hostname: "web".into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: parent.into(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(ns),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn kinds(document: &Value) -> Vec<String> {
        let list = document["linux"]["namespaces"].as_array().unwrap();
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        list.iter()
            .map(|ns| format!("{} {}", text(&ns["type"]), text(&ns["path"])))
            .collect()
    }

    #[test]
    fn modes_become_namespaces() {
        let node = NamespaceMode::Node as i32;
        let check = |ns: NamespaceOption, want: &[&str]| {
            let mut pod = pod(ns.clone(), "");
            if ns.network == node {
                let named = of_pod("p", &pod, "/run/netns/a");
                assert!(named.is_err(), "its hostname is the host's");
                pod.hostname.clear();
            }
            let document = of_pod("p", &pod, "/run/netns/a").unwrap();
            assert_eq!(kinds(&document), want);
            corten_oci::Spec::parse(document.to_string().as_bytes()).unwrap();
        };
        let container = NamespaceMode::Container as i32;
        let usual = NamespaceOption {
            pid: container,
            ..Default::default()
        };
        check(usual.clone(), &["network /run/netns/a", "uts ", "ipc "]);
        let shared = NamespaceOption {
            pid: 0,
            ..usual.clone()
        };
        check(shared, &["network /run/netns/a", "uts ", "ipc ", "pid "]);
        let host = NamespaceOption {
            network: node,
            pid: node,
            ipc: node,
            ..Default::default()
        };
        check(host, &[]);
        let map = IdMapping {
            host_id: 1 << 20,
            container_id: 0,
            length: 65536,
        };
        let user = |uids| NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: 0,
                uids,
                gids: vec![map],
            }),
            ..usual.clone()
        };
        let want = ["network /run/netns/a", "uts ", "ipc ", "user "];
        check(user(vec![map]), &want);
        assert!(of_pod("p", &pod(user(vec![]), ""), "").is_err());
    }

    #[test]
    fn cgroups_are_named_as_containerd_does() {
        let path = |parent: &str| {
            let document = of_pod("p", &pod(NamespaceOption::default(), parent), "").unwrap();
            document["linux"]["cgroupsPath"].as_str().map(str::to_owned)
        };
        assert_eq!(path(""), None);
        assert_eq!(path("/kubepods/pod1/").as_deref(), Some("/kubepods/pod1/p"));
        let slice = "/kubepods.slice/kubepods-pod1.slice";
        assert_eq!(
            path(slice).as_deref(),
            Some("kubepods-pod1.slice:cri-containerd:p")
        );
    }

    #[test]
    fn a_pod_s_own_sysctl_wins() {
        let mut config = pod(NamespaceOption::default(), "");
        let linux = config.linux.as_mut().unwrap();
        linux
            .sysctls
            .insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
        let document = of_pod("p", &config, "").unwrap();
        let sysctl = &document["linux"]["sysctl"];
        assert_eq!(sysctl["net.ipv4.ip_unprivileged_port_start"], "80");
        assert_eq!(sysctl["net.ipv4.ping_group_range"], "0 2147483647");
    }

    #[test]
    fn a_client_s_document_is_completed() {
        let got = of_client("p", b"{}", "/run/netns/a").unwrap().unwrap();
        let want = ["network /run/netns/a", "uts ", "ipc ", "pid "];
        assert_eq!(kinds(&got), want);
        let whole = br#"{"ociVersion":"1.1.0","linux":{"namespaces":[{"type":"ipc"}]}}"#;
        assert_eq!(of_client("p", whole, "").unwrap(), None);
        assert!(of_client("p", b"[]", "").is_err());
        for (path, want) in [
            ("/default", "/default/p"),
            ("/default/", "/default/p"),
            ("/kubepods/p", "/kubepods/p"),
            ("a.slice:cri-containerd:p", "a.slice:cri-containerd:p"),
        ] {
            let text = json!({"linux": {"cgroupsPath": path}}).to_string();
            let got = of_client("p", text.as_bytes(), "").unwrap().unwrap();
            assert_eq!(got["linux"]["cgroupsPath"], want);
        }
    }
}
