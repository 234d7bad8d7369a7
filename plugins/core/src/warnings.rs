//! Warnings: what is in use on this host that a later version will not have any more.
//!
//! Ids and texts are containerd 2.4's, as its introspection tells them: operators look for them, and the CRI's
//! `ContainerdHasNoDeprecationWarnings` names them. A warning has no history, only the time when it was last true.

use std::time::SystemTime;

/// Something that will go. The list of all of them is below.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Deprecation {
    pub id: &'static str,
    pub message: &'static str,
}

/// A deprecation and when it was met last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Warning {
    pub deprecation: Deprecation,
    pub last_occurrence: SystemTime,
}

/// Who keeps them.
pub trait Warnings: Send + Sync {
    /// It was met now.
    fn emit(&self, deprecation: Deprecation);
    /// All that were met since the daemon started, by id.
    fn all(&self) -> Vec<Warning>;
}

macro_rules! deprecations {
    ($($(#[$doc:meta])* $name:ident = $id:literal, $message:literal;)*) => {
        $(
            $(#[$doc])*
            pub const $name: Deprecation = Deprecation {
                id: concat!("io.containerd.deprecation/", $id),
                message: $message,
            };
        )*
        /// All that there are.
        pub const ALL: &[Deprecation] = &[$($name),*];
    };
}

deprecations! {
    /// Endpoints of registries in the CRI's table.
    CRI_REGISTRY_MIRRORS = "cri-registry-mirrors",
        "The `mirrors` property of `[plugins.\"io.containerd.grpc.v1.cri\".registry]` is deprecated since containerd v1.5 and will be removed in containerd v2.7. Use `config_path` instead.";
    /// Credentials of registries in the CRI's table.
    CRI_REGISTRY_AUTHS = "cri-registry-auths",
        "The `auths` property of `[plugins.\"io.containerd.grpc.v1.cri\".registry]` is deprecated since containerd v1.3 and will be removed in containerd v2.7. Use `ImagePullSecrets` instead.";
    /// Credentials and TLS of registries in the CRI's table.
    CRI_REGISTRY_CONFIGS = "cri-registry-configs",
        "The `configs` property of `[plugins.\"io.containerd.grpc.v1.cri\".registry]` is deprecated since containerd v1.5 and will be removed in containerd v2.7. Use `config_path` instead.";
    /// A plugin of NRI's first protocol.
    NRI_V010_PLUGIN = "nri-v010-plugin",
        "NRI 0.1.0-style plugins are deprecated since containerd 2.2 and should only be used through the v010-adapter plugin.";
    /// A call of NRI that has a successor.
    NRI_PLUGIN_INTERFACE = "nri-plugin-interface",
        "NRI plugin uses a deprecated interface.";
    /// The host has controllers on cgroup v1.
    CGROUP_V1 = "cgroup-v1",
        "The support for cgroup v1 is deprecated since containerd v2.2 and will be removed by no later than May 2029. Upgrade the host to use cgroup v2.";
    /// A sandbox named in runc's options instead of the request.
    RUNC_OPTIONS_TASK_API_ADDRESS = "runc-options-task-api-address",
        "The `task_api_address` field in runc options is deprecated since containerd v2.3. Set `task_api_address` on CreateTaskRequest instead.";
    /// Its version likewise.
    RUNC_OPTIONS_TASK_API_VERSION = "runc-options-task-api-version",
        "The `task_api_version` field in runc options is deprecated since containerd v2.3. Set `task_api_version` on CreateTaskRequest instead.";
}

/// The deprecation of this id.
pub fn by_id(id: &str) -> Option<Deprecation> {
    ALL.iter().copied().find(|d| d.id == id)
}
