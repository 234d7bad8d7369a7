//! What the runtime says of itself: Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use corten_cni::template::{Value as Field, render};
use corten_core::runtime::Tasks;
use corten_core::warnings::Warning;
use corten_core::{Context, Error, Kind, Result};
use corten_protos::runtime::v1::{
    CgroupDriver, LinuxRuntimeConfiguration, RuntimeCondition, RuntimeConfigRequest,
    RuntimeConfigResponse, RuntimeFeatures, RuntimeHandler, RuntimeHandlerFeatures, RuntimeStatus,
    StatusRequest, StatusResponse, UpdateRuntimeConfigRequest, UpdateRuntimeConfigResponse,
    VersionRequest, VersionResponse,
};
use corten_sys::blocking;
use futures::future::join_all;
use serde_json::{Value, json};
use tracing::{debug, info};

use crate::Cri;
use crate::config::Containerd;
use crate::metrics::Operation;
use crate::pods::network::DEFAULT;
use crate::pods::options;

/// The version that the kubelet has sent and expected since the beginning.
const KUBE_API_VERSION: &str = "0.1.0";
const CRI_VERSION: &str = "v1";
/// The name that tools know.
const NAME: &str = "containerd";
const RUNTIME_READY: &str = "RuntimeReady";
const NETWORK_READY: &str = "NetworkReady";
const NO_WARNINGS: &str = "ContainerdHasNoDeprecationWarnings";
const HAS_WARNINGS: &str = "ContainerdHasDeprecationWarnings";
/// What UpdateRuntimeConfig writes.
const CONF_FILE: &str = "10-containerd-net.conflist";

/// What handlers can do, by name.
pub type Handlers = BTreeMap<String, RuntimeHandler>;

impl Cri {
    /// # Errors
    /// None.
    pub async fn version(&self, _: VersionRequest) -> Result<VersionResponse> {
        Ok(VersionResponse {
            version: KUBE_API_VERSION.into(),
            runtime_name: NAME.into(),
            runtime_version: self.version.clone(),
            runtime_api_version: CRI_VERSION.into(),
        })
    }

    /// # Errors
    /// None.
    pub async fn status(&self, request: StatusRequest) -> Result<StatusResponse> {
        let condition = |kind: &str, failure: Option<(&str, String)>| {
            let (reason, message) = failure.clone().unwrap_or_default();
            RuntimeCondition {
                r#type: kind.into(),
                status: failure.is_none(),
                reason: reason.into(),
                message,
            }
        };
        let network = self.networks[DEFAULT].status().await.err().map(|e| {
            let message = format!("Network plugin returns error: {e}");
            ("NetworkPluginNotReady", message)
        });
        let conditions = vec![
            condition(RUNTIME_READY, None),
            condition(NETWORK_READY, network),
            condition(
                NO_WARNINGS,
                warned(
                    &self.warnings.all(),
                    &self.runtime.ignore_deprecation_warnings,
                ),
            ),
        ];
        let info = if request.verbose {
            self.info()?
        } else {
            BTreeMap::new()
        };
        Ok(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers: self.shown_handlers(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: true,
                mount_options: true,
            }),
        })
    }

    /// # Errors
    /// None.
    pub async fn runtime_config(&self, _: RuntimeConfigRequest) -> Result<RuntimeConfigResponse> {
        let systemd = systemd_cgroups(&self.runtime.containerd)
            .unwrap_or_else(|| Path::new("/run/systemd/system").is_dir());
        let driver = if systemd {
            CgroupDriver::Systemd
        } else {
            CgroupDriver::Cgroupfs
        };
        Ok(RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration {
                cgroup_driver: driver as i32,
            }),
        })
    }

    /// Writes the CNI configuration from the template, if there is one and nobody else wrote any.
    ///
    /// # Errors
    /// InvalidArgument for the pods' ranges and for the template; those of writing it.
    pub async fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse> {
        let config = request.runtime_config.unwrap_or_default();
        let ranges = config.network_config.unwrap_or_default().pod_cidr;
        let done = UpdateRuntimeConfigResponse {};
        if ranges.is_empty() {
            return Ok(done);
        }
        let ranges: Vec<String> = ranges.split(',').map(|r| r.trim().to_owned()).collect();
        let routes = routes(&ranges).context("get routes")?;
        let template = self.runtime.cni.conf_template.clone();
        if template.is_empty() {
            info!("no CNI template is configured, somebody else brings the configuration");
            return Ok(done);
        }
        let cni = &self.networks[DEFAULT];
        let began = Instant::now();
        let status = cni.status().await;
        self.metrics.asked(Operation::Status, began, &status);
        if status.is_ok() || cni.load().await.is_ok() {
            info!("the network is ready, its configuration is not written from the template");
            return Ok(done);
        }
        let dir = self.runtime.cni.conf_dir.clone();
        blocking(move || write_conf(&template, &dir, ranges, routes)).await?;
        Ok(done)
    }

    /// What the pods of a handler can have; empty is the default one.
    pub fn feature(&self, handler: &str) -> RuntimeHandlerFeatures {
        let name = self.runtime.containerd.handler(handler);
        let known = name.and_then(|(name, _)| self.handlers.get(name));
        known.and_then(|h| h.features).unwrap_or_default()
    }

    /// Whether the handler can make mounts read-only with all below them.
    pub fn recursive_read_only(&self, handler: &str) -> bool {
        self.feature(handler).recursive_read_only_mounts
    }

    /// All handlers, the default one also without a name.
    fn shown_handlers(&self) -> Vec<RuntimeHandler> {
        let default = self
            .handlers
            .get(&self.runtime.containerd.default_runtime_name);
        let unnamed = default.map(|h| RuntimeHandler {
            name: String::new(),
            ..h.clone()
        });
        unnamed
            .into_iter()
            .chain(self.handlers.values().cloned())
            .collect()
    }

    fn info(&self) -> Result<BTreeMap<String, String>> {
        let mut info = BTreeMap::new();
        info.insert("config".to_owned(), self.shown_config()?.to_string());
        info.insert("golang".to_owned(), json!("none: rust").to_string());
        let default = &self.networks[DEFAULT];
        info.insert("cniconfig".to_owned(), default.describe().to_string());
        let loaded = |cni: &corten_cni::Cni| cni.load_error().unwrap_or_else(|| "OK".to_owned());
        for (name, cni) in &self.networks {
            info.insert(format!("lastCNILoadStatus.{name}"), loaded(cni));
        }
        info.insert("lastCNILoadStatus".to_owned(), loaded(default));
        Ok(info)
    }

    /// The configuration in the names that containerd shows.
    fn shown_config(&self) -> Result<Value> {
        let encode =
            |e: serde_json::Error| Error::internal("encode the configuration").with_source(e);
        let mut shown = camel_case(serde_json::to_value(&self.runtime).map_err(encode)?);
        if let Some(shown) = shown.as_object_mut() {
            shown.insert("containerdRootDir".into(), json!(self.daemon_root));
            shown.insert("containerdEndpoint".into(), json!(self.endpoint));
            shown.insert("rootDir".into(), json!(self.root));
            shown.insert("stateDir".into(), json!(self.state));
        }
        Ok(shown)
    }
}

/// Why there are deprecation warnings, if there are: their texts by id, as JSON.
fn warned(warnings: &[Warning], ignored: &[String]) -> Option<(&'static str, String)> {
    let told: BTreeMap<_, _> = warnings
        .iter()
        .map(|w| (w.deprecation.id, w.deprecation.message))
        .filter(|(id, _)| !ignored.iter().any(|i| i == id))
        .collect();
    (!told.is_empty()).then(|| (HAS_WARNINGS, json!(told).to_string()))
}

/// Asks the shims of all handlers what they can do; one that is not installed can do nothing that it would tell. `trees`:
/// this kernel makes mounts read-only with all below them. Shims speak of themselves only.
pub async fn handlers(config: &Containerd, tasks: &dyn Tasks, trees: bool) -> Handlers {
    let asked = config.runtimes.iter().map(|(name, handler)| async move {
        let runtime = options::runtime(handler);
        let features = match options::of(handler) {
            Ok(options) => match tasks.info(runtime, options).await {
                Ok(info) => info.features.as_ref().map(|f| features(&f.value, trees)),
                Err(error) => {
                    debug!(%name, %error, "ask a runtime what it can do");
                    None
                }
            },
            Err(error) => {
                debug!(%name, %error, "options of a runtime");
                None
            }
        };
        let handler = RuntimeHandler {
            name: name.clone(),
            features,
        };
        (name.clone(), handler)
    });
    join_all(asked).await.into_iter().collect()
}

/// What the CRI asks of OCI features.
fn features(json: &[u8], trees: bool) -> RuntimeHandlerFeatures {
    let told: Value = serde_json::from_slice(json).unwrap_or_default();
    let has = |list: &Value, what: &str| {
        let list = list.as_array();
        list.is_some_and(|list| list.iter().any(|v| v == what))
    };
    let linux = &told["linux"];
    RuntimeHandlerFeatures {
        recursive_read_only_mounts: trees && has(&told["mountOptions"], "rro"),
        user_namespaces: has(&linux["namespaces"], "user")
            && linux["mountExtensions"]["idmap"]["enabled"] == true,
    }
}

/// What the handlers say of systemd, the default one first.
fn systemd_cgroups(config: &Containerd) -> Option<bool> {
    let default = config.runtimes.get(&config.default_runtime_name);
    let mut all = default.into_iter().chain(config.runtimes.values());
    all.find_map(options::systemd_cgroup)
}

fn routes(ranges: &[String]) -> Result<Vec<String>> {
    let (mut v4, mut v6) = (false, false);
    for range in ranges {
        let parsed = range.split_once('/').and_then(|(ip, prefix)| {
            let ip: IpAddr = ip.parse().ok()?;
            let bits: u8 = prefix.parse().ok()?;
            (bits <= if ip.is_ipv4() { 32 } else { 128 }).then_some(ip)
        });
        match parsed {
            Some(IpAddr::V4(_)) => v4 = true,
            Some(IpAddr::V6(_)) => v6 = true,
            None => {
                return Err(Error::new(
                    Kind::InvalidArgument,
                    format!("invalid CIDR address: {range}"),
                ));
            }
        }
    }
    let all = [("0.0.0.0/0", v4), ("::/0", v6)];
    let wanted = all.into_iter().filter(|(_, wanted)| *wanted);
    Ok(wanted.map(|(route, _)| route.to_owned()).collect())
}

fn write_conf(template: &str, dir: &Path, ranges: Vec<String>, routes: Vec<String>) -> Result<()> {
    let text = std::fs::read_to_string(template)
        .with_context(|| format!("failed to parse cni config template {template:?}"))?;
    let first = ranges.first().cloned().unwrap_or_default();
    let fields = HashMap::from([
        ("PodCIDR", Field::Text(first)),
        ("PodCIDRRanges", Field::List(ranges)),
        ("Routes", Field::List(routes)),
    ]);
    let file = dir.join(CONF_FILE);
    let conf = render(&text, &fields)
        .with_context(|| format!("failed to generate cni config file {}", file.display()))?;
    std::fs::create_dir_all(dir)
        .with_context(|| format!("failed to create cni config directory {}", dir.display()))?;
    // Plugins' folders are read by others, who never see half a file. The name is none that they take.
    let draft = dir.join(format!(".{CONF_FILE}.corten"));
    std::fs::write(&draft, conf)
        .and_then(|()| std::fs::rename(&draft, &file))
        .with_context(|| format!("failed to write cni config file {}", file.display()))
}

/// Keys of the configuration as Go's JSON of it has them; the names of runtimes and their options stay.
fn camel_case(value: Value) -> Value {
    let Value::Object(map) = value else {
        return value;
    };
    let inner = map.into_iter().map(|(key, value)| match key.as_str() {
        "runtimes" => (key, of_runtimes(value)),
        "options" => (key, value),
        _ => (name(&key), camel_case(value)),
    });
    Value::Object(inner.collect())
}

fn of_runtimes(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            Value::Object(map.into_iter().map(|(k, v)| (k, camel_case(v))).collect())
        }
        other => other,
    }
}

fn name(key: &str) -> String {
    // Those that containerd spells by hand.
    match key {
        "pod_annotations" => return "PodAnnotations".into(),
        "container_annotations" => return "ContainerAnnotations".into(),
        "privileged_without_host_devices"
        | "privileged_without_host_devices_all_devices_allowed"
        | "device_ownership_from_security_context"
        | "io_type" => return key.into(),
        "enable_unprivileged_icmp" => return "enableUnprivilegedICMP".into(),
        "drain_exec_sync_io_timeout" => return "drainExecSyncIOTimeout".into(),
        "restrict_oom_score_adj" => return "restrictOOMScoreAdj".into(),
        "ignore_blockio_not_enabled_errors" => return "ignoreBlockIONotEnabledErrors".into(),
        "enable_criu" => return "enableCRIU".into(),
        _ => {}
    }
    let mut words = key.split('_');
    let mut out = words.next().unwrap_or_default().to_owned();
    for word in words {
        let mut letters = word.chars();
        out.extend(letters.next().map(|c| c.to_ascii_uppercase()));
        out.push_str(letters.as_str());
    }
    out
}

#[cfg(test)]
mod tests {
    use corten_core::warnings::{CRI_REGISTRY_AUTHS, CRI_REGISTRY_MIRRORS};

    use super::*;
    use crate::config::{Handler, Runtime};

    #[test]
    fn features_are_read_from_the_runtime_s_own() {
        let told = br#"{"mountOptions":["ro","rro"],"linux":{"namespaces":["user","net"],
            "mountExtensions":{"idmap":{"enabled":true}}}}"#;
        let got = features(told, true);
        assert!(got.recursive_read_only_mounts && got.user_namespaces);
        // What runc could do, were it not for the kernel.
        let got = features(told, false);
        assert!(!got.recursive_read_only_mounts && got.user_namespaces);
        let got = features(br#"{"linux":{"namespaces":["user"]}}"#, true);
        assert!(!got.recursive_read_only_mounts && !got.user_namespaces);
        assert!(!features(b"", true).user_namespaces);
    }

    #[test]
    fn the_default_handler_names_the_cgroup_driver_first() {
        let handler = |options: &str| Handler {
            runtime_type: "io.containerd.runc.v2".into(),
            options: options.parse().unwrap(),
            ..Handler::default()
        };
        let config = |default: &str| Containerd {
            default_runtime_name: default.into(),
            runtimes: [
                ("a".into(), handler("SystemdCgroup = false")),
                ("b".into(), handler("SystemdCgroup = true")),
                ("c".into(), handler("")),
            ]
            .into(),
            ..Containerd::default()
        };
        assert_eq!(systemd_cgroups(&config("b")), Some(true));
        assert_eq!(systemd_cgroups(&config("c")), Some(false));
        assert_eq!(systemd_cgroups(&Containerd::default()), None);
    }

    #[test]
    fn ranges_of_each_family_have_a_route() {
        let ask = |r: &[&str]| routes(&r.iter().map(|&s| s.to_owned()).collect::<Vec<_>>());
        assert_eq!(
            ask(&["10.0.0.0/24", "fd00::/64"]).unwrap(),
            ["0.0.0.0/0", "::/0"]
        );
        assert_eq!(ask(&["fd00::/64"]).unwrap(), ["::/0"]);
        for bad in ["", "10.0.0.0", "10.0.0.0/33", "x/8"] {
            assert!(ask(&[bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_template_becomes_a_configuration() {
        let temp = tempfile::tempdir().unwrap();
        let (template, dir) = (temp.path().join("t"), temp.path().join("net.d"));
        std::fs::write(&template, r#"{"name":"n","subnet":"{{.PodCIDR}}"}"#).unwrap();
        let ranges = vec!["10.0.0.0/24".to_owned()];
        write_conf(template.to_str().unwrap(), &dir, ranges, vec![]).unwrap();
        let made = std::fs::read_to_string(dir.join(CONF_FILE)).unwrap();
        assert_eq!(made, r#"{"name":"n","subnet":"10.0.0.0/24"}"#);
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
    }

    #[test]
    fn deprecations_are_told_unless_they_are_to_be_ignored() {
        let warning = |deprecation| Warning {
            deprecation,
            last_occurrence: std::time::UNIX_EPOCH,
        };
        let all = [warning(CRI_REGISTRY_AUTHS), warning(CRI_REGISTRY_MIRRORS)];
        assert_eq!(warned(&[], &[]), None);
        let (reason, message) = warned(&all, &[CRI_REGISTRY_AUTHS.id.to_owned()]).unwrap();
        assert_eq!(reason, "ContainerdHasDeprecationWarnings");
        let message: Value = serde_json::from_str(&message).unwrap();
        assert_eq!(
            message,
            json!({CRI_REGISTRY_MIRRORS.id: CRI_REGISTRY_MIRRORS.message})
        );
    }

    #[test]
    fn the_configuration_is_shown_as_containerd_shows_it() {
        let shown = camel_case(serde_json::to_value(Runtime::default()).unwrap());
        assert_eq!(shown["enableUnprivilegedICMP"], true);
        assert_eq!(shown["maxContainerLogLineSize"], 16384);
        let handler = &shown["containerd"]["runtimes"]["runc"];
        assert_eq!(handler["runtimeType"], "io.containerd.runc.v2");
        assert!(handler.get("PodAnnotations").is_some());
        assert_eq!(shown["containerd"]["defaultRuntimeName"], "corten");
        assert_eq!(shown["cni"]["confDir"], "/etc/cni/net.d");
    }
}
