//! containerd.services.introspection.v1.Introspection: what the daemon is made of.
//!
//! The records of all plugins exist only after the boot, this plugin included; the daemon puts them into the
//! [`PluginCell`] then. Before that the list is empty.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use corten_core::filter::Filter;
use corten_core::runtime::Tasks;
use corten_core::service::{GrpcService, PluginTable};
use corten_core::warnings::{Warning, Warnings};
use corten_core::{Any, Context, Error, Kind, kinds};
use corten_protos::any;
use corten_protos::containerd::services::introspection::v1::{
    DeprecationWarning, Plugin, PluginInfoRequest, PluginInfoResponse, PluginsRequest,
    PluginsResponse, ServerResponse, introspection_server,
};
use corten_protos::containerd::types::{Platform, RuntimeRequest};
use corten_protos::google::protobuf::Empty;
use corten_protos::google::rpc::Status as RpcStatus;
use corten_registry::{Kind as _, Record, Registration, Status};
use corten_sys::blocking;
use tonic::{Code, Request, async_trait};

use crate::{Answer, exposed, facade, reply, stamp};

/// Where the daemon leaves the records of its plugins. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct PluginCell(Arc<OnceLock<Vec<Record>>>);

// === impl PluginCell ===

impl PluginCell {
    /// Sets the records; the first call counts.
    pub fn set(&self, records: Vec<Record>) {
        let _ = self.0.set(records);
    }

    fn all(&self) -> &[Record] {
        self.0.get().map_or(&[], Vec::as_slice)
    }
}

impl PluginTable for PluginCell {
    fn records(&self) -> Vec<Record> {
        self.all().to_vec()
    }
}

#[derive(Clone)]
struct Service {
    plugins: PluginCell,
    /// Holds the file `uuid`.
    root: PathBuf,
    tasks: Option<Arc<dyn Tasks>>,
    warnings: Arc<dyn Warnings>,
}

facade!(Service, introspection_server::IntrospectionServer);

#[async_trait]
impl introspection_server::Introspection for Service {
    async fn plugins(&self, r: Request<PluginsRequest>) -> Answer<PluginsResponse> {
        let filter = Filter::parse(&r.get_ref().filters)?;
        let plugins = self.plugins.all().iter().map(message);
        reply(PluginsResponse {
            plugins: plugins.filter(|p| matches(&filter, p)).collect(),
        })
    }

    async fn server(&self, _: Request<Empty>) -> Answer<ServerResponse> {
        let root = self.root.clone();
        let (uuid, pidns) = blocking(move || Ok((uuid(&root)?, pid_namespace()?))).await?;
        reply(ServerResponse {
            uuid,
            pid: std::process::id().into(),
            pidns,
            deprecations: self.warnings.all().into_iter().map(deprecation).collect(),
        })
    }

    async fn plugin_info(&self, r: Request<PluginInfoRequest>) -> Answer<PluginInfoResponse> {
        let r = r.into_inner();
        let record = self
            .plugins
            .all()
            .iter()
            .find(|p| p.kind == r.r#type && p.id == r.id)
            .ok_or_else(|| Error::not_found(format!("plugin {}.{} not found", r.r#type, r.id)))?;
        let extra = match r.options {
            Some(options) => Some(self.extra(record, &options).await?),
            None => None,
        };
        reply(PluginInfoResponse {
            plugin: Some(message(record)),
            extra,
        })
    }
}

// === impl Service ===

impl Service {
    /// What a plugin tells when asked in its own terms. Only the task manager can be asked.
    async fn extra(&self, record: &Record, options: &Any) -> Result<Any, Error> {
        if record.status != Status::Ok {
            return Err(Error::precondition(
                "cannot get extra info, plugin not successfully loaded",
            ));
        }
        let tasks = match &self.tasks {
            Some(tasks) if record.kind == kinds::Runtime::URI => tasks,
            _ => {
                return Err(Error::not_implemented(
                    "plugin does not provided extra information",
                ));
            }
        };
        let request = any::unpack::<RuntimeRequest>(options).map_err(|_| {
            Error::not_implemented(format!("unknown request type {}", options.type_url))
        })?;
        let info = tasks.info(&request.runtime_path, request.options).await?;
        Ok(any::pack(&info))
    }
}

fn deprecation(warning: Warning) -> DeprecationWarning {
    DeprecationWarning {
        id: warning.deprecation.id.to_owned(),
        message: warning.deprecation.message.to_owned(),
        last_occurrence: stamp(warning.last_occurrence),
    }
}

fn message(record: &Record) -> Plugin {
    let failed = |message: String| {
        Some(RpcStatus {
            code: Code::Unknown as i32,
            message,
            ..Default::default()
        })
    };
    let platform = |p: &corten_registry::Platform| Platform {
        os: p.os.clone(),
        architecture: p.architecture.clone(),
        variant: p.variant.clone(),
        ..Default::default()
    };
    Plugin {
        r#type: record.kind.to_owned(),
        id: record.id.clone(),
        requires: record.requires.iter().map(|r| (*r).to_owned()).collect(),
        platforms: record.meta.platforms.iter().map(platform).collect(),
        exports: record.meta.exports.clone(),
        capabilities: record.meta.capabilities.clone(),
        init_err: match &record.status {
            Status::Ok => None,
            // Clients tell a skipped plugin from a broken one by these words.
            Status::Skipped(reason) => failed(format!("{reason}: skip plugin")),
            Status::Failed(reason) => failed(reason.clone()),
        },
    }
}

/// containerd: platforms and capabilities can be named in a filter, but match nothing.
fn matches(filter: &Filter, plugin: &Plugin) -> bool {
    filter.matches_with(|path| match path.first().map(String::as_str) {
        Some("type") => Some(plugin.r#type.clone()).filter(|t| !t.is_empty()),
        Some("id") => Some(plugin.id.clone()).filter(|i| !i.is_empty()),
        _ => None,
    })
}

/// The installation's own id: made once, kept in a file.
fn uuid(root: &std::path::Path) -> Result<String, Error> {
    let path = root.join("uuid");
    match std::fs::read_to_string(&path) {
        Ok(text) if !text.is_empty() => {
            return match uuid::Uuid::parse_str(&text) {
                Ok(_) => Ok(text),
                Err(e) => Err(Error::new(Kind::Unknown, format!("invalid UUID: {e}"))),
            };
        }
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            return Err(Error::from(e).context(format!("open {}", path.display())));
        }
        _ => {}
    }
    let made = uuid::Uuid::new_v4().to_string();
    std::fs::create_dir_all(root)
        .and_then(|()| std::fs::write(&path, &made))
        .with_context(|| format!("write {}", path.display()))?;
    Ok(made)
}

fn pid_namespace() -> Result<u64, Error> {
    use std::os::unix::fs::MetadataExt;
    let path = "/proc/self/ns/pid";
    Ok(std::fs::metadata(path)
        .with_context(|| format!("stat {path}"))?
        .ino())
}

/// The service, and the plugin that puts it on the sockets; the daemon fills `plugins` after the boot.
pub fn registrations(plugins: PluginCell) -> [Registration; 2] {
    [
        service(plugins),
        exposed("introspection", "introspection-service"),
    ]
}

fn service(plugins: PluginCell) -> Registration {
    Registration::new::<kinds::Service>("introspection-service")
        .requires::<kinds::Warning>()
        .requires::<kinds::Runtime>()
        .init_plain(|cx| {
            Box::pin(async move {
                let tasks = cx.by_id::<kinds::Runtime>("task").ok();
                let service = Service {
                    plugins,
                    // Where containerd keeps the id too.
                    root: cx
                        .properties()
                        .root
                        .join("io.containerd.grpc.v1.introspection"),
                    tasks,
                    warnings: cx.by_id::<kinds::Warning>("deprecations")?,
                };
                Ok(Arc::new(service) as Arc<dyn GrpcService>)
            })
        })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use corten_core::warnings::{CGROUP_V1, Deprecation};
    use corten_registry::Meta;
    use introspection_server::Introspection;

    use super::*;

    /// Whoever runs this test has cgroup v1.
    struct Old;
    impl Warnings for Old {
        fn emit(&self, _: Deprecation) {}
        fn all(&self) -> Vec<Warning> {
            vec![Warning {
                deprecation: CGROUP_V1,
                last_occurrence: std::time::UNIX_EPOCH,
            }]
        }
    }

    fn service(root: &std::path::Path) -> Service {
        let record = |id: &str, status| Record {
            kind: kinds::Snapshotter::URI,
            id: id.into(),
            requires: vec![],
            meta: Meta::default(),
            status,
            took: Duration::ZERO,
        };
        let plugins = PluginCell::default();
        plugins.set(vec![
            record("overlayfs", Status::Ok),
            record("zfs", Status::Skipped("no zfs".into())),
        ]);
        Service {
            plugins,
            root: root.into(),
            tasks: None,
            warnings: Arc::new(Old),
        }
    }

    #[tokio::test]
    async fn plugins_are_filtered_and_skips_are_recognisable() {
        let s = service(std::path::Path::new("/"));
        let ask = async |filter: &str| {
            let r = PluginsRequest {
                filters: vec![filter.into()],
            };
            s.plugins(Request::new(r))
                .await
                .unwrap()
                .into_inner()
                .plugins
        };
        assert_eq!(ask("type~=snapshotter").await.len(), 2);
        assert_eq!(ask("platforms==x").await.len(), 0);
        let zfs = ask("id==zfs").await.remove(0);
        assert_eq!(zfs.init_err.unwrap().message, "no zfs: skip plugin");
    }

    #[tokio::test]
    async fn the_uuid_stays() {
        let temp = tempfile::tempdir().unwrap();
        let s = service(&temp.path().join("sub"));
        let ask = async || {
            s.server(Request::new(Empty::default()))
                .await
                .unwrap()
                .into_inner()
        };
        let first = ask().await;
        assert_eq!(first.uuid, ask().await.uuid);
        assert_eq!(first.pid, u64::from(std::process::id()));
        assert_ne!(first.pidns, 0);
        assert_eq!(first.deprecations[0].id, CGROUP_V1.id);
        assert_eq!(first.deprecations[0].message, CGROUP_V1.message);
    }

    #[tokio::test]
    async fn extra_information_has_its_errors() {
        let s = service(std::path::Path::new("/"));
        let ask = async |id: &str| {
            let r = PluginInfoRequest {
                r#type: kinds::Snapshotter::URI.into(),
                id: id.into(),
                options: Some(Any::default()),
            };
            s.plugin_info(Request::new(r)).await.unwrap_err().code()
        };
        assert_eq!(ask("none").await, Code::NotFound);
        assert_eq!(ask("zfs").await, Code::FailedPrecondition);
        assert_eq!(ask("overlayfs").await, Code::Unimplemented);
    }
}
