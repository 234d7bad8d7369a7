//! Owns the namespaces of pods and containers.
//!
//! | CRI | pod (its pause container or holder) | container |
//! |---|---|---|
//! | network POD | joins the pod's network | joins the pod's |
//! | network NODE | none, and no UTS | joins the pod's, which is the host's |
//! | ipc POD / NODE | new / none | joins the pod's |
//! | pid POD / NODE | new / none | joins the pod's |
//! | pid CONTAINER | new | new |
//! | pid TARGET | new | joins that container's |
//! | user POD | new with its maps | joins the pod's, with the same maps |

use std::fmt;

use corten_core::{Error, Result};
use corten_protos::runtime::v1::{IdMapping, NamespaceMode, NamespaceOption, UserNamespace};

use super::oci;
use super::oci::Spec;

/// Where /sys is a bind: a user namespace on the host's network may not mount its own.
const SYS: [&str; 5] = ["rbind", "rro", "nosuid", "nodev", "noexec"];

/// The one uid and the one gid mapping of a pod with a user namespace.
///
/// # Errors
/// More than one mapping, none, an empty one, or another mode than POD and NODE.
pub fn userns(options: Option<&UserNamespace>) -> Result<Option<(IdMapping, IdMapping)>> {
    let Some(options) = options else {
        return Ok(None);
    };
    let wrong = |what: String| Error::invalid(format!("user namespace configuration: {what}"));
    let one = |kind: &str, maps: &[IdMapping]| match maps {
        [] => Ok(None),
        [map] if map.length < 1 => Err(wrong(format!(
            "{kind} mapping: invalid mapping length: {}",
            map.length
        ))),
        [map] => Ok(Some(*map)),
        maps => Err(wrong(format!(
            "{kind} mapping: only one mapping line supported, got {} mapping lines",
            maps.len()
        ))),
    };
    let uid = one("UID", &options.uids)?;
    let gid = one("GID", &options.gids)?;
    match (NamespaceMode::try_from(options.mode), uid, gid) {
        (Ok(NamespaceMode::Pod), Some(uid), Some(gid)) => Ok(Some((uid, gid))),
        (Ok(NamespaceMode::Pod), ..) => Err(wrong(
            "can't use user namespace mode \"POD\" without UID and GID mappings".into(),
        )),
        (Ok(NamespaceMode::Node), None, None) => Ok(None),
        (Ok(NamespaceMode::Node), ..) => Err(wrong(format!(
            "can't use user namespace mode \"NODE\" with mappings. Got {} UID mappings and {} GID mappings",
            options.uids.len(),
            options.gids.len()
        ))),
        (mode, ..) => Err(wrong(format!(
            "unsupported user namespace mode: {:?}",
            mode.map_or("unknown", |mode| mode.as_str_name())
        ))),
    }
}

/// A container's user namespace must be its pod's, word for word.
pub(super) fn same_userns(
    pod: Option<&UserNamespace>,
    container: Option<&UserNamespace>,
) -> Result<()> {
    let same = match (pod, container) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            a.mode == b.mode
                && matches!((userns(Some(a)), userns(Some(b))), (Ok(a), Ok(b)) if a == b)
        }
        _ => false,
    };
    if same {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "user namespace config for sandbox is different from container. \
         Sandbox userns config: {} - Container userns config: {}",
        Shown(pod),
        Shown(container)
    )))
}

/// The namespaces of a container in the pod whose pause container or holder is `pod_pid`.
pub(super) fn of_container(
    spec: &mut Spec,
    options: &NamespaceOption,
    pod_pid: u32,
    target_pid: Option<u32>,
    maps: Option<(IdMapping, IdMapping)>,
) -> Result<()> {
    let of = |pid: u32, name: &str| format!("/proc/{pid}/ns/{name}");
    spec.set_namespace("network", &of(pod_pid, "net"));
    spec.set_namespace("ipc", &of(pod_pid, "ipc"));
    spec.set_namespace("uts", &of(pod_pid, "uts"));
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Container) => {}
        Ok(NamespaceMode::Target) => {
            let pid = target_pid
                .ok_or_else(|| Error::invalid("invalid target container: it has no process"))?;
            spec.set_namespace("pid", &of(pid, "pid"));
        }
        _ => spec.set_namespace("pid", &of(pod_pid, "pid")),
    }
    if let Some(maps) = maps {
        spec.set_namespace("user", &of(pod_pid, "user"));
        map_users(spec, maps);
    }
    Ok(())
}

/// The namespaces of a pod. `netns` and `userns` are the files they are kept open by; an empty one is a new namespace.
pub(super) fn of_pod(
    spec: &mut Spec,
    options: &NamespaceOption,
    netns: &str,
    user: Option<((IdMapping, IdMapping), &str)>,
) {
    let node = NamespaceMode::Node as i32;
    if options.network == node {
        spec.without_namespace("network");
        spec.without_namespace("uts");
    } else {
        spec.set_namespace("network", netns);
    }
    if options.pid == node {
        spec.without_namespace("pid");
    }
    if options.ipc == node {
        spec.without_namespace("ipc");
    }
    if let Some((maps, path)) = user {
        spec.set_namespace("user", path);
        map_users(spec, maps);
    }
}

/// Mounts the host's /sys where the kernel refuses a new one.
pub(super) fn bind_sys(spec: &mut Spec) {
    spec.without_mount("/sys");
    let mount = oci::Mount::new("/sys", "bind", "/sys", &SYS);
    spec.mounts.push(mount);
}

/// The mapping as the document writes it.
pub(super) fn mapping(map: &IdMapping) -> oci::IdMapping {
    oci::IdMapping {
        container_id: map.container_id,
        host_id: map.host_id,
        size: map.length,
        ..oci::IdMapping::default()
    }
}

fn map_users(spec: &mut Spec, (uid, gid): (IdMapping, IdMapping)) {
    let linux = spec.linux();
    linux.uid_mappings.push(mapping(&uid));
    linux.gid_mappings.push(mapping(&gid));
}

/// A user namespace for an error's text.
struct Shown<'a>(Option<&'a UserNamespace>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(user) = self.0 else {
            return f.write_str("<nil>");
        };
        let mode = NamespaceMode::try_from(user.mode).map_or("unknown", |m| m.as_str_name());
        write!(f, "mode:{mode}")?;
        for (kind, maps) in [("uids", &user.uids), ("gids", &user.gids)] {
            for m in maps {
                write!(
                    f,
                    " {kind}:{{host_id:{} container_id:{} length:{}}}",
                    m.host_id, m.container_id, m.length
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAP: IdMapping = IdMapping {
        host_id: 1 << 20,
        container_id: 0,
        length: 65536,
    };

    fn user(mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]) -> UserNamespace {
        UserNamespace {
            mode: mode as i32,
            uids: uids.to_vec(),
            gids: gids.to_vec(),
        }
    }

    #[test]
    fn user_namespaces_have_one_mapping_of_each_kind() {
        let check = |u: &UserNamespace, want: &str| {
            let e = userns(Some(u)).unwrap_err().to_string();
            assert!(e.contains(want), "{e}");
        };
        use NamespaceMode::{Container, Node, Pod};
        assert_eq!(userns(None).unwrap(), None);
        assert_eq!(userns(Some(&user(Node, &[], &[]))).unwrap(), None);
        let good = user(Pod, &[MAP], &[MAP]);
        assert_eq!(userns(Some(&good)).unwrap(), Some((MAP, MAP)));
        check(
            &user(Pod, &[MAP, MAP], &[MAP]),
            "only one mapping line supported, got 2",
        );
        let empty = IdMapping { length: 0, ..MAP };
        check(&user(Pod, &[empty], &[MAP]), "invalid mapping length: 0");
        check(&user(Pod, &[MAP], &[]), "without UID and GID mappings");
        check(&user(Node, &[MAP], &[]), "mode \"NODE\" with mappings");
        check(
            &user(Container, &[], &[]),
            "unsupported user namespace mode: \"CONTAINER\"",
        );
        assert!(same_userns(Some(&good), Some(&good)).is_ok());
        assert!(same_userns(None, None).is_ok());
        let e = same_userns(Some(&good), None).unwrap_err().to_string();
        assert!(
            e.contains("different from container") && e.contains("<nil>"),
            "{e}"
        );
        let other = user(Pod, &[IdMapping { host_id: 5, ..MAP }], &[MAP]);
        assert!(same_userns(Some(&good), Some(&other)).is_err());
    }

    fn kinds(spec: &mut Spec) -> Vec<String> {
        let all = &spec.linux().namespaces;
        all.iter()
            .map(|ns| format!("{} {}", ns.kind, ns.path))
            .collect()
    }

    #[test]
    fn containers_join_their_pod() {
        let join = |pid: NamespaceMode, target| {
            let mut spec = super::super::defaults::spec("c", &[]);
            let options = NamespaceOption {
                pid: pid as i32,
                ..NamespaceOption::default()
            };
            of_container(&mut spec, &options, 7, target, None).map(|()| kinds(&mut spec))
        };
        let want = |pid: &str| {
            let pid = format!("pid {pid}");
            [
                &pid,
                "ipc /proc/7/ns/ipc",
                "uts /proc/7/ns/uts",
                "mount ",
                "network /proc/7/ns/net",
            ]
            .map(str::to_owned)
            .to_vec()
        };
        assert_eq!(
            join(NamespaceMode::Pod, None).unwrap(),
            want("/proc/7/ns/pid")
        );
        assert_eq!(
            join(NamespaceMode::Node, None).unwrap(),
            want("/proc/7/ns/pid")
        );
        assert_eq!(join(NamespaceMode::Container, None).unwrap(), want(""));
        assert_eq!(
            join(NamespaceMode::Target, Some(9)).unwrap(),
            want("/proc/9/ns/pid")
        );
        assert!(join(NamespaceMode::Target, None).is_err());
    }

    #[test]
    fn pods_leave_what_is_the_node_s() {
        let node = NamespaceMode::Node as i32;
        let mut spec = super::super::defaults::spec("p", &[]);
        let options = NamespaceOption {
            network: node,
            pid: node,
            ipc: node,
            ..NamespaceOption::default()
        };
        of_pod(&mut spec, &options, "/run/netns/a", Some(((MAP, MAP), "")));
        assert_eq!(kinds(&mut spec), ["mount ", "user "]);
        assert_eq!(spec.linux().uid_mappings, [mapping(&MAP)]);
        let mut spec = super::super::defaults::spec("p", &[]);
        of_pod(&mut spec, &NamespaceOption::default(), "/run/netns/a", None);
        assert!(kinds(&mut spec).contains(&"network /run/netns/a".to_owned()));
        bind_sys(&mut spec);
        let sys: Vec<_> = spec
            .mounts
            .iter()
            .filter(|m| m.destination == "/sys")
            .collect();
        assert_eq!((sys.len(), sys[0].kind.as_str()), (1, "bind"));
    }
}
