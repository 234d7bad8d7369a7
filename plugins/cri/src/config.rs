//! containerd's CRI tables: `io.containerd.cri.v1.runtime`, `io.containerd.cri.v1.images`, `io.containerd.grpc.v1.cri`.
//!
//! Names, defaults and meanings are containerd 2.4's, but for the runtimes: `corten` is the default one and keeps its
//! pods without a pause container; `runc` is the stock shim.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use corten_core::{Error, Kind, Result, duration};
use serde::{Deserialize, Deserializer, Serialize};

/// The runtime that pods get when they name none.
pub const DEFAULT_RUNTIME: &str = "corten";
/// The runtime type of our own shim.
pub const CORTEN: &str = "io.containerd.corten.v2";
/// Sandboxer whose pods are kept by a pause container.
pub const PODSANDBOX: &str = "podsandbox";
/// Sandboxer whose pods are kept by their shim.
pub const SHIM: &str = "shim";

/// `io.containerd.cri.v1.runtime`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Runtime {
    pub enable_selinux: bool,
    pub selinux_category_range: u32,
    /// Bytes; not positive: no limit.
    pub max_container_log_line_size: i64,
    /// Our own: bytes at which a log is renamed to `<name>.1` and begun anew; not positive: left to the kubelet.
    pub max_container_log_size: i64,
    pub disable_apparmor: bool,
    pub restrict_oom_score_adj: bool,
    pub disable_proc_mount: bool,
    pub unset_seccomp_profile: String,
    pub tolerate_missing_hugetlb_controller: bool,
    pub disable_hugetlb_controller: bool,
    pub device_ownership_from_security_context: bool,
    pub ignore_image_defined_volumes: bool,
    pub netns_mounts_under_state_dir: bool,
    pub enable_unprivileged_ports: bool,
    pub enable_unprivileged_icmp: bool,
    pub cdi_spec_dirs: Vec<PathBuf>,
    #[serde(
        serialize_with = "duration::serialize",
        deserialize_with = "empty_is::<0, _>"
    )]
    pub drain_exec_sync_io_timeout: Duration,
    pub ignore_deprecation_warnings: Vec<String>,
    #[serde(
        serialize_with = "duration::serialize",
        deserialize_with = "empty_is::<1, _>"
    )]
    pub stats_collect_period: Duration,
    #[serde(
        serialize_with = "duration::serialize",
        deserialize_with = "empty_is::<120, _>"
    )]
    pub stats_retention_period: Duration,
    pub enable_criu: bool,
    pub containerd: Containerd,
    pub cni: CniConfig,
}

/// Its `.containerd`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Containerd {
    pub default_runtime_name: String,
    pub ignore_blockio_not_enabled_errors: bool,
    pub ignore_rdt_not_enabled_errors: bool,
    pub runtimes: BTreeMap<String, Handler>,
}

/// One of its `.runtimes`: what a RuntimeClass names.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Handler {
    /// `io.containerd.runc.v2`.
    pub runtime_type: String,
    /// The shim's file, instead of a search by its type.
    pub runtime_path: String,
    pub pod_annotations: Vec<String>,
    pub container_annotations: Vec<String>,
    pub options: toml::Table,
    pub privileged_without_host_devices: bool,
    pub privileged_without_host_devices_all_devices_allowed: bool,
    pub cgroup_writable: bool,
    pub base_runtime_spec: String,
    pub cni_conf_dir: String,
    pub cni_max_conf_num: usize,
    pub snapshotter: String,
    /// [`PODSANDBOX`] where empty.
    pub sandboxer: String,
    /// `fifo` or `streaming`; empty is `fifo`. Without effect: the streams of tasks are FIFOs, or logs of our shim.
    pub io_type: String,
    pub disable_pause_image_pull: bool,
}

/// Its `.cni`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct CniConfig {
    pub bin_dirs: Vec<PathBuf>,
    pub conf_dir: PathBuf,
    /// 0: all.
    pub max_conf_num: usize,
    pub setup_serially: bool,
    pub conf_template: String,
    /// `ipv4`, `ipv6` or `cni`; empty is `ipv4`.
    pub ip_pref: String,
    /// Without effect: `lo` is always brought up here, no plugin is asked.
    pub use_internal_loopback: bool,
}

/// `io.containerd.cri.v1.images`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Images {
    pub snapshotter: String,
    pub disable_snapshot_annotations: bool,
    pub discard_unpacked_layers: bool,
    /// By use; `sandbox` is the pause image.
    pub pinned_images: BTreeMap<String, String>,
    pub runtime_platforms: BTreeMap<String, RuntimePlatform>,
    pub registry: Registry,
    pub image_decryption: ImageDecryption,
    pub max_concurrent_downloads: usize,
    pub concurrent_layer_fetch_buffer: u64,
    #[serde(
        serialize_with = "duration::serialize",
        deserialize_with = "empty_is::<300, _>"
    )]
    pub image_pull_progress_timeout: Duration,
    pub image_pull_with_sync_fs: bool,
    /// Seconds.
    pub stats_collect_period: u64,
    /// Without effect: there is one way to pull.
    pub use_local_image_pull: bool,
}

/// One of its `.runtime_platforms`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RuntimePlatform {
    /// Without effect: images are the host's.
    pub platform: String,
    pub snapshotter: String,
}

/// Its `.registry`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Registry {
    /// Folders of hosts.toml, separated by `:`.
    pub config_path: String,
    pub headers: BTreeMap<String, Vec<String>>,
    pub mirrors: BTreeMap<String, Mirror>,
    pub configs: BTreeMap<String, RegistryConfig>,
    pub auths: BTreeMap<String, Auth>,
}

/// Deprecated: endpoints of a registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mirror {
    pub endpoint: Vec<String>,
    pub rewrite: BTreeMap<String, String>,
}

/// Deprecated: credentials and TLS of a registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryConfig {
    pub auth: Option<Auth>,
    pub tls: Option<RegistryTls>,
}

/// Credentials. Their Debug shows none.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Auth {
    pub username: String,
    pub password: String,
    pub auth: String,
    pub identitytoken: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

/// TLS of a registry.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct RegistryTls {
    pub insecure_skip_verify: bool,
    pub ca_file: String,
    pub cert_file: String,
    pub key_file: String,
}

/// Its `.image_decryption`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageDecryption {
    /// Without effect: nothing here decrypts.
    pub key_model: String,
}

/// `io.containerd.grpc.v1.cri`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Grpc {
    /// Keeps the CRI off the TCP listener.
    pub disable_tcp_service: bool,
    pub stream_server_address: String,
    pub stream_server_port: String,
    #[serde(
        serialize_with = "duration::serialize",
        deserialize_with = "empty_is::<14400, _>"
    )]
    pub stream_idle_timeout: Duration,
    pub enable_tls_streaming: bool,
    pub x509_key_pair_streaming: KeyPair,
}

/// Its `.x509_key_pair_streaming`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct KeyPair {
    pub tls_cert_file: String,
    pub tls_key_file: String,
}

/// A duration. Empty is the default one: that is how `containerd config default` writes some of them.
fn empty_is<'de, const SECONDS: u64, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    if text.is_empty() {
        return Ok(Duration::from_secs(SECONDS));
    }
    duration::parse(&text)
        .ok_or_else(|| serde::de::Error::custom(format!("invalid duration {text:?}")))
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            enable_selinux: false,
            selinux_category_range: 1024,
            max_container_log_line_size: 16 * 1024,
            max_container_log_size: 0,
            disable_apparmor: false,
            restrict_oom_score_adj: false,
            disable_proc_mount: false,
            unset_seccomp_profile: String::new(),
            tolerate_missing_hugetlb_controller: true,
            disable_hugetlb_controller: true,
            device_ownership_from_security_context: false,
            ignore_image_defined_volumes: false,
            netns_mounts_under_state_dir: false,
            enable_unprivileged_ports: true,
            enable_unprivileged_icmp: true,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            drain_exec_sync_io_timeout: Duration::ZERO,
            ignore_deprecation_warnings: Vec::new(),
            stats_collect_period: Duration::from_secs(1),
            stats_retention_period: Duration::from_secs(120),
            enable_criu: true,
            containerd: Containerd::default(),
            cni: CniConfig::default(),
        }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        let handler = |kind: &str, sandboxer: &str| Handler {
            runtime_type: kind.into(),
            sandboxer: sandboxer.into(),
            ..Handler::default()
        };
        Self {
            default_runtime_name: DEFAULT_RUNTIME.into(),
            ignore_blockio_not_enabled_errors: false,
            ignore_rdt_not_enabled_errors: false,
            runtimes: BTreeMap::from([
                (DEFAULT_RUNTIME.into(), handler(CORTEN, SHIM)),
                ("runc".into(), handler("io.containerd.runc.v2", PODSANDBOX)),
            ]),
        }
    }
}

impl Default for CniConfig {
    fn default() -> Self {
        Self {
            bin_dirs: vec!["/opt/cni/bin".into()],
            conf_dir: "/etc/cni/net.d".into(),
            max_conf_num: 1,
            setup_serially: false,
            conf_template: String::new(),
            ip_pref: String::new(),
            use_internal_loopback: true,
        }
    }
}

impl Default for Images {
    fn default() -> Self {
        Self {
            snapshotter: "overlayfs".into(),
            disable_snapshot_annotations: true,
            discard_unpacked_layers: false,
            pinned_images: BTreeMap::from([(
                "sandbox".into(),
                "registry.k8s.io/pause:3.10.2".into(),
            )]),
            runtime_platforms: BTreeMap::new(),
            registry: Registry::default(),
            image_decryption: ImageDecryption::default(),
            max_concurrent_downloads: 3,
            concurrent_layer_fetch_buffer: 0,
            image_pull_progress_timeout: Duration::from_secs(300),
            image_pull_with_sync_fs: false,
            stats_collect_period: 10,
            use_local_image_pull: false,
        }
    }
}

impl Default for ImageDecryption {
    fn default() -> Self {
        Self {
            key_model: "node".into(),
        }
    }
}

impl Default for Grpc {
    fn default() -> Self {
        Self {
            disable_tcp_service: true,
            stream_server_address: "127.0.0.1".into(),
            stream_server_port: "0".into(),
            stream_idle_timeout: Duration::from_secs(4 * 3600),
            enable_tls_streaming: false,
            x509_key_pair_streaming: KeyPair::default(),
        }
    }
}

impl Containerd {
    /// The handler that a pod asked for, by its name and as it is configured; empty is the default one.
    pub fn handler(&self, name: &str) -> Option<(&str, &Handler)> {
        let name = if name.is_empty() {
            &self.default_runtime_name
        } else {
            name
        };
        self.runtimes
            .get_key_value(name)
            .map(|(name, handler)| (name.as_str(), handler))
    }
}

impl Handler {
    /// Who keeps its pods.
    pub fn sandboxer(&self) -> &str {
        if self.sandboxer.is_empty() {
            PODSANDBOX
        } else {
            &self.sandboxer
        }
    }
}

impl Runtime {
    /// The configuration with what its author left to us: tables of handlers are merged with those of the default
    /// configuration, key by key, as containerd does it. A `corten` that nobody configured gives its containers to
    /// systemd if `runc` does: it is the kubelet's choice, and there is only one.
    #[must_use]
    pub fn completed(mut self) -> Self {
        let runtimes = &mut self.containerd.runtimes;
        let systemd = runtimes
            .get("runc")
            .and_then(|runc| runc.options.get("SystemdCgroup").cloned());
        for (name, default) in Containerd::default().runtimes {
            let handler = runtimes.entry(name.clone()).or_default();
            if handler.runtime_type.is_empty() {
                handler.runtime_type = default.runtime_type;
            }
            if handler.sandboxer.is_empty()
                && handler.runtime_type == CORTEN
                && name == DEFAULT_RUNTIME
            {
                handler.sandboxer = default.sandboxer;
            }
            if name == DEFAULT_RUNTIME
                && handler.options.is_empty()
                && let Some(systemd) = &systemd
            {
                handler
                    .options
                    .insert("SystemdCgroup".into(), systemd.clone());
            }
        }
        for handler in runtimes.values_mut() {
            if handler.sandboxer.is_empty() {
                handler.sandboxer = PODSANDBOX.into();
            }
        }
        self
    }

    /// Refuses what cannot be.
    ///
    /// # Errors
    /// InvalidArgument, in containerd's words.
    pub fn check(&self) -> Result<()> {
        let refuse = |text: String| Err(Error::new(Kind::InvalidArgument, text));
        let containerd = &self.containerd;
        let default = &containerd.default_runtime_name;
        if default.is_empty() {
            return refuse("`default_runtime_name` is empty".into());
        }
        if !containerd.runtimes.contains_key(default) {
            return refuse(format!(
                "no corresponding runtime configured in `containerd.runtimes` for `containerd` \
                 `default_runtime_name = {default:?}`"
            ));
        }
        for (name, handler) in &containerd.runtimes {
            if handler.cgroup_writable && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
                return refuse(format!(
                    "runtime {name}: `cgroup_writable` is only supported on cgroup v2"
                ));
            }
            if handler.privileged_without_host_devices_all_devices_allowed
                && !handler.privileged_without_host_devices
            {
                return refuse(
                    "`privileged_without_host_devices_all_devices_allowed` requires \
                     `privileged_without_host_devices` to be enabled"
                        .into(),
                );
            }
            if !matches!(handler.io_type.as_str(), "" | "fifo" | "streaming") {
                return refuse("`io_type` can only be `streaming` or `named_pipe`".into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Runtime {
        toml::from_str::<Runtime>(text).unwrap().completed()
    }

    #[test]
    fn an_existing_configuration_works_as_it_is() {
        let config = read(
            "[containerd.runtimes.runc.options]\nSystemdCgroup = true\n\
             [containerd.runtimes.crun]\nruntime_type = \"io.containerd.runc.v2\"",
        );
        config.check().unwrap();
        let all = &config.containerd.runtimes;
        assert_eq!(all["runc"].runtime_type, "io.containerd.runc.v2");
        assert_eq!(all["runc"].sandboxer, PODSANDBOX);
        assert_eq!(all["crun"].sandboxer, PODSANDBOX);
        assert_eq!(all["corten"].sandboxer, SHIM);
        assert_eq!(all["corten"].options["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(config.containerd.handler("").unwrap().0, DEFAULT_RUNTIME);
    }

    #[test]
    fn what_is_configured_stays() {
        let config = read(
            "[containerd]\ndefault_runtime_name = \"runc\"\n\
             [containerd.runtimes.corten]\nsandboxer = \"podsandbox\"\n\
             [containerd.runtimes.corten.options]\nSystemdCgroup = false\n\
             [containerd.runtimes.runc]\nruntime_type = \"io.containerd.corten.v2\"",
        );
        let all = &config.containerd.runtimes;
        assert_eq!(all["corten"].sandboxer, PODSANDBOX);
        assert_eq!(
            all["corten"].options["SystemdCgroup"].as_bool(),
            Some(false)
        );
        assert_eq!(all["runc"].runtime_type, CORTEN);
        assert_eq!(all["runc"].sandboxer, PODSANDBOX);
        assert_eq!(config.containerd.handler("").unwrap().0, "runc");
    }

    #[test]
    fn empty_durations_are_the_default_ones() {
        let runtime = read(
            "stats_collect_period = ''\nstats_retention_period = ''\ndrain_exec_sync_io_timeout = ''",
        );
        let images: Images = toml::from_str("image_pull_progress_timeout = ''").unwrap();
        let grpc: Grpc = toml::from_str("stream_idle_timeout = ''").unwrap();
        let own = Runtime::default();
        assert_eq!(runtime.stats_collect_period, own.stats_collect_period);
        assert_eq!(runtime.stats_retention_period, own.stats_retention_period);
        assert_eq!(
            runtime.drain_exec_sync_io_timeout,
            own.drain_exec_sync_io_timeout
        );
        assert_eq!(
            images.image_pull_progress_timeout,
            Images::default().image_pull_progress_timeout
        );
        assert_eq!(
            grpc.stream_idle_timeout,
            Grpc::default().stream_idle_timeout
        );
        assert!(toml::from_str::<Grpc>("stream_idle_timeout = '4'").is_err());
        let said = read("stats_collect_period = '250ms'");
        assert_eq!(said.stats_collect_period, Duration::from_millis(250));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in [
            "[containerd]\ndefault_runtime_name = \"\"",
            "[containerd]\ndefault_runtime_name = \"nobody\"",
            "[containerd.runtimes.a]\nprivileged_without_host_devices_all_devices_allowed = true",
            "[containerd.runtimes.a]\nio_type = \"pigeon\"",
        ] {
            assert!(read(text).check().is_err(), "{text}");
        }
        Runtime::default().completed().check().unwrap();
    }
}
