//! From CRI messages to OCI runtime specs: everything that a document says of a pod or a container.
//!
//! [`Specs`] holds what is the same for all of them: the configuration, facts of the host, CDI folders, the SELinux
//! levels in use. [`Specs::container`], [`Specs::sandbox`] and [`Specs::holder`] make documents, [`Specs::update`]
//! merges new limits into one. They look at the host (mounts, devices, the container's passwd), make missing volumes
//! and load AppArmor's profile, so they block. The document type is [`oci::Spec`]; its module says why it is our own.
//!
//! What containerd's documents say is what ours say; the exceptions are each named where they are made: ids out of
//! range are errors instead of being cut, `mount_options` and ambient capabilities are honoured, the primary group is
//! always among the groups, huge page limits are not repeated by updates.
//!
//! The limits are in [`crate::limits`].

mod annotations;
mod apparmor;
mod blockio;
mod caps;
mod cdi;
mod classes;
mod container;
mod defaults;
mod devices;
pub mod file;
mod host;
mod mounts;
mod namespaces;
pub mod oci;
mod paths;
mod process;
mod profile;
mod resources;
mod sandbox;
mod seccomp;
mod selinux;
pub mod signals;
pub mod user;

use std::collections::BTreeMap;

use corten_core::{Error, Result};
use corten_protos::runtime::v1 as cri;

pub use self::annotations::passthrough;
pub use self::classes::Classes;
pub use self::container::{ContainerInput, needs_rootfs};
pub use self::host::Host;
pub use self::mounts::{PodFiles, volumes};
pub use self::namespaces::userns;
pub use self::process::ImageConfig;
pub use self::resources::{cgroups_path, status_resources, task_resources};
pub use self::sandbox::{SandboxInput, sandbox_needs_rootfs};
use crate::config;

/// Shims whose containers are in virtual machines.
const VM_RUNTIME: &str = "io.containerd.kata";

/// A document, and the labels it was made with.
#[derive(Debug, Clone, PartialEq)]
pub struct Built {
    pub spec: oci::Spec,
    /// Kept with the container's or pod's record, and released with it. Empty without SELinux.
    pub process_label: String,
    pub mount_label: String,
}

/// What makes documents.
#[derive(Debug)]
pub struct Specs {
    config: config::Runtime,
    host: Host,
    /// Handlers' own documents to start from, by path.
    bases: BTreeMap<String, oci::Spec>,
    selinux: selinux::Selinux,
    cdi: cdi::Registry,
    classes: Classes,
}

// === impl Specs ===

impl Specs {
    /// Looks at the host and reads what the configuration names.
    ///
    /// # Errors
    /// A handler's base_runtime_spec is not readable, or the SELinux categories are not a range.
    pub fn new(config: &config::Runtime) -> Result<Self> {
        Self::on(Host::probe()?, config)
    }

    fn on(host: Host, config: &config::Runtime) -> Result<Self> {
        let files = config.containerd.runtimes.values();
        let files = files.map(|handler| &handler.base_runtime_spec);
        let mut bases = BTreeMap::new();
        for file in files.filter(|file| !file.is_empty()) {
            bases.insert(file.clone(), container::read_base(file)?);
        }
        Ok(Self {
            bases,
            selinux: selinux::Selinux::probe(config.enable_selinux, config.selinux_category_range)?,
            cdi: cdi::Registry::new(&config.cdi_spec_dirs),
            classes: Classes::default(),
            host,
            config: config.clone(),
        })
    }

    /// With classes of block I/O and RDT, which are not the CRI's configuration.
    #[must_use]
    pub fn with_classes(mut self, classes: Classes) -> Self {
        self.classes = classes;
        self
    }

    /// What was found on the host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The document of a container. Blocks.
    ///
    /// # Errors
    /// What is asked for is wrong, not there, or not to be had on this host.
    pub fn container(&self, input: &ContainerInput<'_>) -> Result<Built> {
        container::build(self, input)
    }

    /// The document of a pause container. Blocks.
    ///
    /// # Errors
    /// See [`Self::container`].
    pub fn sandbox(&self, input: &SandboxInput<'_>) -> Result<Built> {
        sandbox::build(self, input)
    }

    /// The document of a pod that our shim holds.
    ///
    /// # Errors
    /// See [`Self::container`].
    pub fn holder(
        &self,
        id: &str,
        pod: &cri::PodSandboxConfig,
        netns_path: &str,
        handler: &config::Handler,
    ) -> Result<Built> {
        sandbox::holder(self, id, pod, netns_path, handler)
    }

    /// The document with new limits.
    ///
    /// # Errors
    /// A limit that cannot be one, or that needs a controller which this host lacks.
    pub fn update(
        &self,
        spec: &oci::Spec,
        limits: &cri::LinuxContainerResources,
    ) -> Result<oci::Spec> {
        let mut spec = spec.clone();
        resources::apply(&mut spec, Some(limits), &self.host, &self.config)?;
        Ok(spec)
    }

    /// What a class of block I/O means.
    ///
    /// # Errors
    /// InvalidArgument: there is none of that name.
    pub(crate) fn block_io(&self, class: &str) -> Result<oci::BlockIo> {
        let known = self.classes.blockio.as_ref();
        known
            .and_then(|all| all.get(class))
            .cloned()
            .ok_or_else(|| Error::invalid(format!("no OCI BlockIO parameters for class {class:?}")))
    }

    /// Adds devices by their CDI names. Blocks.
    ///
    /// # Errors
    /// Nobody describes one of them.
    pub(crate) fn inject_cdi(&self, spec: &mut oci::Spec, names: &[String]) -> Result<()> {
        let device = |name: &String| cri::CdiDevice { name: name.clone() };
        let asked: Vec<_> = names.iter().map(device).collect();
        self.cdi.inject(spec, &asked, &BTreeMap::new())
    }

    /// The label in a document. A privileged process runs under the engine's; its own is kept for the level's sake.
    fn process_label(
        &self,
        label: &str,
        privileged: bool,
        handler: &config::Handler,
    ) -> Result<String> {
        if privileged {
            return Ok(String::new());
        }
        match handler.runtime_type.contains(VM_RUNTIME) {
            true => self.selinux.for_vm(label),
            false => Ok(label.to_owned()),
        }
    }

    /// Remembers that the level of a label is in use: for records found at start.
    pub fn reserve(&self, process_label: &str) {
        self.selinux.reserve(process_label);
    }

    /// Gives the level of a removed pod's or container's label back.
    pub fn release(&self, process_label: &str) {
        self.selinux.release(process_label);
    }
}

#[cfg(test)]
mod tests;
