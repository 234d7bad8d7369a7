//! Owns a container's document: in which order the parts are put together, because later ones see earlier ones.
//!
//! ```text
//! default or base document -> process -> mounts -> paths -> devices, capabilities -> privileged -> labels
//!   -> limits -> namespaces -> annotations -> user and groups -> apparmor -> seccomp -> CDI
//! ```
//! The filter of system calls looks at the capabilities, and CDI has the last word, at env and mounts too.

use std::path::Path;

use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1 as cri;
use corten_protos::runtime::v1::{
    ContainerConfig, LinuxContainerSecurityContext, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig,
};

use super::defaults::ROOTFS;
use super::mounts::{PodFiles, Surroundings};
use super::oci::{Root, Spec};
use super::process::ImageConfig;
use super::profile::Profile;
use super::selinux::Labels;
use super::{
    Built, Specs, annotations, apparmor, caps, defaults, devices, host, mounts, namespaces, paths,
    process, resources, seccomp, user,
};
use crate::config::Handler;

/// Everything a container's document is made from.
#[derive(Debug, Clone, Copy)]
pub struct ContainerInput<'a> {
    pub id: &'a str,
    /// Image volumes in it have the host path they are mounted at.
    pub config: &'a ContainerConfig,
    /// The pod's, as this request gives it.
    pub pod: &'a PodSandboxConfig,
    pub image: &'a ImageConfig,
    pub image_name: &'a str,
    pub sandbox_id: &'a str,
    /// Of the pause container or the holder.
    pub sandbox_pid: u32,
    /// The pod's SELinux label.
    pub sandbox_label: &'a str,
    /// Process of the container whose pid namespace is joined.
    pub target_pid: Option<u32>,
    pub files: &'a PodFiles,
    /// Volumes of the image: [`super::volumes`].
    pub extra_mounts: &'a [cri::Mount],
    pub handler: &'a Handler,
    /// The handler mounts trees read-only.
    pub rro: bool,
    /// Where its rootfs is mounted now, if [`needs_rootfs`].
    pub rootfs: Option<&'a Path>,
}

/// The pieces that most steps look at.
struct Asked<'a> {
    security: LinuxContainerSecurityContext,
    namespaces: NamespaceOption,
    input: &'a ContainerInput<'a>,
}

/// Whether the rootfs must be mounted while the document is made: for names of users, and groups they are in.
pub fn needs_rootfs(config: &ContainerConfig, image: &ImageConfig) -> bool {
    user::needs_rootfs(&who(&security(config), image))
}

/// The whole document.
pub(super) fn build(specs: &Specs, input: &ContainerInput<'_>) -> Result<Built> {
    let security = security(input.config);
    let labels = specs
        .selinux
        .labels(security.selinux_options.as_ref(), input.sandbox_label)?;
    let asked = Asked {
        namespaces: security.namespace_options.clone().unwrap_or_default(),
        security,
        input,
    };
    let built = asked.build(specs, &labels);
    let spec = built.inspect_err(|_| specs.selinux.release(&labels.process))?;
    Ok(Built {
        spec,
        process_label: labels.process,
        mount_label: labels.mount,
    })
}

fn security(config: &ContainerConfig) -> LinuxContainerSecurityContext {
    let linux = config.linux.as_ref();
    linux
        .and_then(|l| l.security_context.clone())
        .unwrap_or_default()
}

fn who<'a>(security: &'a LinuxContainerSecurityContext, image: &'a ImageConfig) -> user::Asked<'a> {
    user::Asked {
        username: &security.run_as_username,
        uid: security.run_as_user,
        gid: security.run_as_group,
        image: &image.user,
        policy: security.supplemental_groups_policy,
        groups: &security.supplemental_groups,
    }
}

// === impl Asked ===

impl Asked<'_> {
    fn build(&self, specs: &Specs, labels: &Labels) -> Result<Spec> {
        let mut spec = specs.base(self.input.id, &self.input.handler.base_runtime_spec)?;
        self.process(&mut spec)?;
        self.mounts(&mut spec, specs, labels)?;
        self.fences(&mut spec, specs, labels)?;
        self.limits(&mut spec, specs)?;
        self.namespaces(&mut spec)?;
        self.annotations(&mut spec);
        let rootfs = self.input.rootfs;
        let found = user::resolve(&who(&self.security, self.input.image), rootfs)?;
        let process = spec.process();
        process.user.uid = found.uid;
        process.user.gid = found.gid;
        process.user.additional_gids = found.additional_gids;
        self.profiles(&mut spec, specs)?;
        let config = self.input.config;
        specs
            .cdi
            .inject(&mut spec, &config.cdi_devices, &config.annotations)?;
        Ok(spec)
    }

    fn pod_security(&self) -> LinuxSandboxSecurityContext {
        let linux = self.input.pod.linux.as_ref();
        linux
            .and_then(|l| l.security_context.clone())
            .unwrap_or_default()
    }

    fn process(&self, spec: &mut Spec) -> Result<()> {
        let input = self.input;
        let hostname = host::name_of(input.pod)?;
        process::of_container(spec.process(), input.config, input.image, &hostname)?;
        let root = spec.root.get_or_insert_with(Root::default);
        ROOTFS.clone_into(&mut root.path);
        root.readonly |= self.security.readonly_rootfs;
        Ok(())
    }

    fn mounts(&self, spec: &mut Spec, specs: &Specs, labels: &Labels) -> Result<()> {
        let input = self.input;
        // A cgroup namespace hides the host's hierarchy; v1 never had one here.
        if specs.host.unified_cgroups && !self.security.privileged {
            spec.set_namespace("cgroup", "");
        }
        let mut ours = mounts::of_pod(input.files, input.config);
        ours.extend_from_slice(input.extra_mounts);
        let around = Surroundings {
            selinux: &specs.selinux,
            label: &labels.mount,
            rro: input.rro,
            cgroup_writable: input.handler.cgroup_writable,
        };
        mounts::add(spec, input.config, &ours, &around)?;
        if !specs.config.disable_proc_mount {
            let linux = spec.linux();
            linux.masked_paths.clone_from(&self.security.masked_paths);
            linux
                .readonly_paths
                .clone_from(&self.security.readonly_paths);
        }
        Ok(())
    }

    /// Devices, capabilities and labels; all of them open for a privileged container.
    fn fences(&self, spec: &mut Spec, specs: &Specs, labels: &Labels) -> Result<()> {
        let (security, handler) = (&self.security, self.input.handler);
        devices::add(spec, &self.input.config.devices, self.device_owner(specs)?)?;
        let all = &specs.host.capabilities;
        let capabilities = spec.process().capabilities.get_or_insert_default();
        let asked = security.capabilities.clone().unwrap_or_default();
        caps::apply(capabilities, &asked, all);
        if security.privileged {
            if !self.pod_security().privileged {
                return Err(Error::new(
                    Kind::Unknown,
                    "no privileged container allowed in sandbox",
                ));
            }
            caps::set(capabilities, all);
            open(spec);
            let alone = handler.privileged_without_host_devices;
            if !alone {
                devices::add_all(spec)?;
            }
            if !alone || handler.privileged_without_host_devices_all_devices_allowed {
                devices::allow_all(spec);
            }
        }
        labels.mount.clone_into(&mut spec.linux().mount_label);
        let label = specs.process_label(&labels.process, security.privileged, handler)?;
        let process = spec.process();
        process.selinux_label = label;
        process.no_new_privileges = security.no_new_privs;
        Ok(())
    }

    /// Who gets device nodes, where the configuration gives them to the container's user.
    fn device_owner(&self, specs: &Specs) -> Result<Option<(u32, u32)>> {
        if !specs.config.device_ownership_from_security_context {
            return Ok(None);
        }
        let id = |id: Option<cri::Int64Value>| match id {
            None => Ok(0),
            Some(id) => u32::try_from(id.value)
                .map_err(|_| Error::invalid(format!("user or group {} is out of range", id.value))),
        };
        Ok(Some((
            id(self.security.run_as_user)?,
            id(self.security.run_as_group)?,
        )))
    }

    fn limits(&self, spec: &mut Spec, specs: &Specs) -> Result<()> {
        let input = self.input;
        let linux = input.config.linux.as_ref();
        let limits = linux.and_then(|l| l.resources.as_ref());
        resources::apply(spec, limits, &specs.host, &specs.config)?;
        if let Some(limits) = limits {
            let restrict = specs.config.restrict_oom_score_adj;
            resources::oom_score_adj(spec, limits.oom_score_adj, restrict)?;
        }
        let parent = input.pod.linux.as_ref().map_or("", |l| &l.cgroup_parent);
        if !parent.is_empty() {
            spec.linux().cgroups_path = resources::cgroups_path(parent, input.id);
        }
        let (own, pod) = (&input.config.annotations, &input.pod.annotations);
        specs
            .classes
            .apply(spec, self.name(), own, pod, &specs.config.containerd)
    }

    fn namespaces(&self, spec: &mut Spec) -> Result<()> {
        let pod = self.pod_security().namespace_options.unwrap_or_default();
        let own = self.namespaces.userns_options.as_ref();
        let maps = namespaces::userns(own)?;
        namespaces::same_userns(pod.userns_options.as_ref(), own)?;
        if maps.is_some() && pod.network == NamespaceMode::Node as i32 {
            namespaces::bind_sys(spec);
        }
        let input = self.input;
        namespaces::of_container(
            spec,
            &self.namespaces,
            input.sandbox_pid,
            input.target_pid,
            maps,
        )
    }

    fn annotations(&self, spec: &mut Spec) {
        let input = self.input;
        let all = &mut spec.annotations;
        let handler = input.handler;
        let of_pod = &input.pod.annotations;
        all.extend(annotations::passthrough(of_pod, &handler.pod_annotations));
        let own = &input.config.annotations;
        all.extend(annotations::passthrough(
            own,
            &handler.container_annotations,
        ));
        annotations::of_container(
            all,
            input.sandbox_id,
            self.name(),
            input.image_name,
            input.pod,
        );
    }

    #[allow(deprecated, reason = "older clients send the strings")]
    fn profiles(&self, spec: &mut Spec, specs: &Specs) -> Result<()> {
        let security = &self.security;
        let asked = Profile::asked(
            "apparmor",
            security.apparmor.as_ref(),
            &security.apparmor_profile,
        )
        .context("failed to generate apparmor spec opts")?;
        let enabled = specs.host.apparmor && !specs.config.disable_apparmor;
        if let Some(name) = apparmor::profile(asked, security.privileged, enabled)? {
            spec.process().apparmor_profile = name;
        }
        let string = match security.seccomp_profile_path.as_str() {
            "" => &specs.config.unset_seccomp_profile,
            string => string,
        };
        let asked = Profile::asked("seccomp", security.seccomp.as_ref(), string)
            .context("failed to generate seccomp spec opts")?;
        seccomp::apply(spec, asked, security.privileged, &specs.host)
    }

    fn name(&self) -> &str {
        let metadata = self.input.config.metadata.as_ref();
        metadata.map_or("", |m| &m.name)
    }
}

/// Takes away what keeps a container from the host.
fn open(spec: &mut Spec) {
    let linux = spec.linux();
    linux.masked_paths.clear();
    linux.readonly_paths.clear();
    linux.seccomp = None;
    spec.process().apparmor_profile.clear();
    mounts::open_kernel(spec, &["sysfs", "cgroup"]);
}

// === impl Specs ===

impl Specs {
    /// What a document starts from: the default one, or the handler's own file. The latter's filters and limits stay.
    fn base(&self, id: &str, file: &str) -> Result<Spec> {
        if file.is_empty() {
            return Ok(defaults::spec(id, &self.host.masked_paths));
        }
        let base = self
            .bases
            .get(file)
            .ok_or_else(|| Error::not_found(format!("can't load base OCI spec {file:?}")))?;
        let mut spec = base.clone();
        spec.linux().cgroups_path = defaults::cgroups_path(id);
        spec.without_mount("/run");
        Ok(spec)
    }
}

/// Reads a handler's own document.
pub(super) fn read_base(path: &str) -> Result<Spec> {
    let what = || format!("unable to load base OCI spec {:?}", paths::clean(path));
    let text = std::fs::read(path).map_err(Error::from).context(what())?;
    serde_json::from_slice(&text).map_err(|e| Error::invalid(format!("{}: {e}", what())))
}
