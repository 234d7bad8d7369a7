//! Owns the document of what keeps a pod's namespaces: a pause container, or our shim's holder, which runs no program.

use std::path::Path;

use corten_core::{Context, Error, Result};
use corten_protos::runtime::v1::{
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption,
    PodSandboxConfig,
};

use super::mounts::PodFiles;
use super::oci::{DeviceRule, Linux, Mount, Namespace, Resources, Spec, VERSION};
use super::process::ImageConfig;
use super::profile::Profile;
use super::{
    Built, Specs, annotations, defaults, host, mounts, namespaces, paths, process, resources,
    seccomp, user,
};
use crate::config::Handler;

/// Killed for memory last of all: its end would be the pod's.
const OOM_SCORE_ADJ: i64 = -998;
const SHM: &str = "/dev/shm";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// A user namespace may not take these from a mount of the host's.
const BIND: [&str; 5] = ["rbind", "ro", "nosuid", "nodev", "noexec"];
const PORTS: &str = "net.ipv4.ip_unprivileged_port_start";
const PING: &str = "net.ipv4.ping_group_range";

/// Everything a pause container's document is made from.
#[derive(Debug, Clone, Copy)]
pub struct SandboxInput<'a> {
    pub id: &'a str,
    pub config: &'a PodSandboxConfig,
    pub image: &'a ImageConfig,
    pub image_name: &'a str,
    /// Empty: a new one.
    pub netns_path: &'a str,
    /// The user namespace that owns the network namespace, kept open.
    pub userns_path: Option<&'a Path>,
    pub files: &'a PodFiles,
    pub handler: &'a Handler,
    /// Where its rootfs is mounted, for the user's name.
    pub rootfs: Option<&'a Path>,
}

/// The pod's Linux parts, as they are or empty.
struct Asked {
    linux: LinuxPodSandboxConfig,
    security: LinuxSandboxSecurityContext,
    namespaces: NamespaceOption,
}

/// Whether a pause container's rootfs must be mounted while its document is made.
pub fn sandbox_needs_rootfs(config: &PodSandboxConfig, image: &ImageConfig) -> bool {
    let asked = Asked::of(config);
    user::needs_rootfs(&who(&asked.security, image))
}

/// A pause container's document.
pub(super) fn build(specs: &Specs, input: &SandboxInput<'_>) -> Result<Built> {
    let asked = Asked::of(input.config);
    let labels = specs
        .selinux
        .labels(asked.security.selinux_options.as_ref(), "")?;
    let built = pause(specs, input, &asked).inspect_err(|_| specs.selinux.release(&labels.process));
    let mut spec = built?;
    let privileged = asked.security.privileged;
    spec.process().selinux_label =
        specs.process_label(&labels.process, privileged, input.handler)?;
    labels.mount.clone_into(&mut spec.linux().mount_label);
    Ok(Built {
        spec,
        process_label: labels.process,
        mount_label: labels.mount,
    })
}

/// A holder's document: namespaces, sysctls and a place in the cgroups.
pub(super) fn holder(
    specs: &Specs,
    id: &str,
    config: &PodSandboxConfig,
    netns: &str,
    handler: &Handler,
) -> Result<Built> {
    let asked = Asked::of(config);
    let mut spec = Spec {
        oci_version: VERSION.into(),
        linux: Some(Linux {
            namespaces: ["pid", "ipc", "uts", "network"]
                .map(|kind| Namespace::new(kind, ""))
                .to_vec(),
            ..Linux::default()
        }),
        ..Spec::default()
    };
    // The pid namespace is the containers' own business unless they share the pod's.
    if asked.namespaces.pid != NamespaceMode::Pod as i32 {
        spec.without_namespace("pid");
    }
    asked.common(&mut spec, specs, id, config, handler)?;
    // The shim finds the owner of the network namespace itself.
    namespaces::of_pod(
        &mut spec,
        &asked.namespaces,
        netns,
        asked.maps()?.map(|maps| (maps, "")),
    );
    if !asked.linux.cgroup_parent.is_empty() {
        spec.linux().resources = Some(Resources {
            devices: vec![DeviceRule {
                allow: false,
                access: defaults::RWM.into(),
                ..DeviceRule::default()
            }],
            ..Resources::default()
        });
        resources::keeper(&mut spec);
    }
    annotations::of_pod(&mut spec.annotations, id, "", config);
    let labels = specs
        .selinux
        .labels(asked.security.selinux_options.as_ref(), "")?;
    Ok(Built {
        spec,
        process_label: labels.process,
        mount_label: labels.mount,
    })
}

fn pause(specs: &Specs, input: &SandboxInput<'_>, asked: &Asked) -> Result<Spec> {
    let config = input.config;
    let mut spec = defaults::spec(input.id, &specs.host.masked_paths);
    process::of_pause(spec.process(), input.image)?;
    // A pause process gains nothing by a set-user-id program, and containerd leaves it so.
    spec.process().no_new_privileges = true;
    spec.root.get_or_insert_default().readonly = true;
    asked.common(&mut spec, specs, input.id, config, input.handler)?;
    let userns = input.userns_path.map(paths::text).unwrap_or_default();
    let maps = asked.maps()?;
    let user = maps.map(|maps| (maps, userns.as_str()));
    namespaces::of_pod(&mut spec, &asked.namespaces, input.netns_path, user);
    if asked.security.privileged {
        mounts::open_kernel(&mut spec, &["sysfs"]);
    }
    pause_mounts(&mut spec, input.files, asked, maps.is_some());
    resources::keeper(&mut spec);
    let restrict = specs.config.restrict_oom_score_adj;
    resources::oom_score_adj(&mut spec, OOM_SCORE_ADJ, restrict)?;
    annotations::of_pod(&mut spec.annotations, input.id, input.image_name, config);
    asked.seccomp(&mut spec, specs)?;
    let found = user::resolve(&who(&asked.security, input.image), input.rootfs)?;
    spec.process().user = found;
    Ok(spec)
}

fn pause_mounts(spec: &mut Spec, files: &PodFiles, asked: &Asked, user: bool) {
    spec.without_mount(SHM);
    let node = NamespaceMode::Node as i32;
    let shm = match asked.namespaces.ipc == node {
        true => Some(Path::new(SHM)),
        false => files.shm.as_deref(),
    };
    let binds = [(SHM, shm), (RESOLV_CONF, files.resolv_conf.as_deref())];
    for (destination, source) in binds {
        if let Some(source) = source {
            spec.mounts
                .push(Mount::new(destination, "bind", &paths::text(source), &BIND));
        }
    }
    if user && asked.namespaces.network == node {
        namespaces::bind_sys(spec);
    }
}

/// containerd merges no groups of the image into a pause container's.
fn who<'a>(security: &'a LinuxSandboxSecurityContext, image: &'a ImageConfig) -> user::Asked<'a> {
    user::Asked {
        uid: security.run_as_user,
        gid: security.run_as_group,
        image: &image.user,
        policy: corten_protos::runtime::v1::SupplementalGroupsPolicy::Strict as i32,
        groups: &security.supplemental_groups,
        ..user::Asked::default()
    }
}

// === impl Asked ===

impl Asked {
    fn of(config: &PodSandboxConfig) -> Self {
        let linux = config.linux.clone().unwrap_or_default();
        let security = linux.security_context.clone().unwrap_or_default();
        Self {
            namespaces: security.namespace_options.clone().unwrap_or_default(),
            linux,
            security,
        }
    }

    fn maps(&self) -> Result<Option<(super::cri::IdMapping, super::cri::IdMapping)>> {
        namespaces::userns(self.namespaces.userns_options.as_ref())
    }

    /// What pause containers and holders have in common.
    fn common(
        &self,
        spec: &mut Spec,
        specs: &Specs,
        id: &str,
        config: &PodSandboxConfig,
        handler: &Handler,
    ) -> Result<()> {
        let own_network = self.namespaces.network != NamespaceMode::Node as i32;
        host::name_of(config)?;
        if own_network {
            config.hostname.clone_into(&mut spec.hostname);
        }
        spec.linux().sysctl = self.sysctls(specs, own_network)?;
        let parent = &self.linux.cgroup_parent;
        if !parent.is_empty() {
            spec.linux().cgroups_path = resources::cgroups_path(parent, id);
        }
        if let Some(size) = &self.linux.resources {
            annotations::of_size(&mut spec.annotations, size);
        }
        let through = annotations::passthrough(&config.annotations, &handler.pod_annotations);
        spec.annotations.extend(through);
        Ok(())
    }

    /// The pod's, and what containerd gives to pods with a network of their own unless they say otherwise.
    fn sysctls(
        &self,
        specs: &Specs,
        own_network: bool,
    ) -> Result<std::collections::BTreeMap<String, String>> {
        let mut all = self.linux.sysctls.clone();
        for (key, value) in &all {
            check_sysctl(key, value)?;
        }
        let mut put = |key: &str, value: &str| {
            all.entry(key.to_owned())
                .or_insert_with(|| value.to_owned());
        };
        if own_network && specs.config.enable_unprivileged_ports {
            put(PORTS, "0");
        }
        // A user namespace does not have all the groups of the range.
        let whole = !specs.host.in_user_ns && self.maps()?.is_none();
        if own_network && specs.config.enable_unprivileged_icmp && whole {
            put(PING, "0 2147483647");
        }
        Ok(all)
    }

    #[allow(deprecated, reason = "older clients send the string")]
    fn seccomp(&self, spec: &mut Spec, specs: &Specs) -> Result<()> {
        let security = &self.security;
        let string = match security.seccomp_profile_path.as_str() {
            "" => &specs.config.unset_seccomp_profile,
            string => string,
        };
        let asked = Profile::asked("seccomp", security.seccomp.as_ref(), string)
            .context("failed to generate seccomp spec opts")?;
        seccomp::apply(spec, asked, security.privileged, &specs.host)
    }
}

/// A key is names with dots or slashes, a value is one line: nothing that could become another path or another key.
fn check_sysctl(key: &str, value: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/:@,".contains(c);
    let parts: Vec<&str> = key.split(['/', '.']).collect();
    let good = key.chars().all(plain) && parts.iter().all(|part| !part.is_empty());
    if !good || value.chars().any(|c| c.is_control() && c != '\t') {
        return Err(Error::invalid(format!("sysctl {key:?} = {value:?}")));
    }
    Ok(())
}
