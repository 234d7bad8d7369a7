//! `plugins."io.containerd.nri.v1.nri"`.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The plugin's table.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Turns NRI off altogether.
    pub disable: bool,
    /// Refuses plugins that were not launched here: there is no socket.
    pub disable_connections: bool,
    /// The drop-in configurations of launched plugins: `IDX-NAME.conf`, else `NAME.conf`.
    pub plugin_config_path: PathBuf,
    /// The plugins to launch: executable files called `IDX-NAME`.
    pub plugin_path: PathBuf,
    #[serde(with = "corten_core::duration")]
    pub plugin_registration_timeout: Duration,
    #[serde(with = "corten_core::duration")]
    pub plugin_request_timeout: Duration,
    pub socket_path: PathBuf,
    pub default_validator: DefaultValidator,
}

/// The `default_validator` table: what no plugin may do.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DefaultValidator {
    pub enable: bool,
    pub reject_oci_hook_adjustment: bool,
    pub reject_runtime_default_seccomp_adjustment: bool,
    pub reject_unconfined_seccomp_adjustment: bool,
    pub reject_custom_seccomp_adjustment: bool,
    pub reject_namespace_adjustment: bool,
    pub reject_sysctl_adjustment: bool,
    /// No container is created while one of these is away.
    pub required_plugins: Vec<String>,
    /// The annotation by which a pod does without required plugins.
    pub tolerate_missing_plugins_annotation: String,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            disable: false,
            disable_connections: false,
            plugin_config_path: "/etc/nri/conf.d".into(),
            plugin_path: "/opt/nri/plugins".into(),
            plugin_registration_timeout: Duration::from_secs(5),
            plugin_request_timeout: Duration::from_secs(2),
            socket_path: "/var/run/nri/nri.sock".into(),
            default_validator: DefaultValidator::default(),
        }
    }
}

impl Config {
    /// An empty path or a zero time-out means the default, as in containerd (internal/nri/config.go).
    pub(crate) fn complete(mut self) -> Self {
        let default = Self::default();
        for (path, default) in [
            (&mut self.plugin_config_path, default.plugin_config_path),
            (&mut self.plugin_path, default.plugin_path),
            (&mut self.socket_path, default.socket_path),
        ] {
            if path.as_os_str().is_empty() {
                *path = default;
            }
        }
        for (time, default) in [
            (
                &mut self.plugin_registration_timeout,
                default.plugin_registration_timeout,
            ),
            (
                &mut self.plugin_request_timeout,
                default.plugin_request_timeout,
            ),
        ] {
            if time.is_zero() {
                *time = default;
            }
        }
        self
    }
}
