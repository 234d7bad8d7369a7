//! containerd.services.diff.v1.Diff: the differs in their configured order; the first that can, does.

use std::sync::Arc;

use corten_core::diff::{ApplyOptions, CompareOptions, Differ};
use corten_core::service::GrpcService;
use corten_core::{Descriptor, Error, Kind, Scope, kinds};
use corten_protos::containerd::services::diff::v1::{
    ApplyRequest, ApplyResponse, DiffRequest, DiffResponse, diff_server,
};
use corten_registry::Registration;
use serde::{Deserialize, Serialize};
use tonic::{Request, async_trait};

use crate::{Answer, exposed, facade, reply, required};

/// `plugins."io.containerd.service.v1.diff-service"`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(default)]
struct Config {
    /// Ids of differs in order of preference.
    #[serde(rename = "default")]
    order: Vec<String>,
    /// Syncs the file system after every layer, whatever the client asks.
    sync_fs: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            order: vec!["walking".into()],
            sync_fs: false,
        }
    }
}

#[derive(Clone)]
struct Service {
    differs: Vec<Arc<dyn Differ>>,
    sync_fs: bool,
}

facade!(Service, diff_server::DiffServer);

#[async_trait]
impl diff_server::Diff for Service {
    async fn apply(&self, r: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let diff = required(r.diff, "diff")?;
        let options = ApplyOptions {
            sync_fs: r.sync_fs || self.sync_fs,
            payloads: r.payloads,
        };
        let mut outcome = none();
        for differ in &self.differs {
            outcome = differ
                .apply(&scope, &diff, &r.mounts, options.clone())
                .await;
            if !passes_on(&outcome) {
                break;
            }
        }
        reply(ApplyResponse {
            applied: Some(outcome?),
        })
    }

    async fn diff(&self, r: Request<DiffRequest>) -> Answer<DiffResponse> {
        let scope = Scope::of(&r)?;
        let r = r.into_inner();
        let epoch = r.source_date_epoch.map(|t| {
            t.try_into()
                .map_err(|_| Error::invalid(format!("source_date_epoch {t:?}")))
        });
        let options = CompareOptions {
            media_type: r.media_type,
            r#ref: r.r#ref,
            labels: r.labels,
            source_date_epoch: epoch.transpose()?,
        };
        let mut outcome = none();
        for differ in &self.differs {
            outcome = differ
                .compare(&scope, &r.left, &r.right, options.clone())
                .await;
            if !passes_on(&outcome) {
                break;
            }
        }
        reply(DiffResponse {
            diff: Some(outcome?),
        })
    }
}

fn none() -> Result<Descriptor, Error> {
    Err(Error::not_implemented("no differ"))
}

fn passes_on(outcome: &Result<Descriptor, Error>) -> bool {
    outcome
        .as_ref()
        .is_err_and(|e| e.kind() == Kind::NotImplemented)
}

/// The service, and the plugin that puts it on the sockets.
pub fn registrations() -> [Registration; 2] {
    [service(), exposed("diff", "diff-service")]
}

fn service() -> Registration {
    Registration::new::<kinds::Service>("diff-service")
        .requires::<kinds::Differ>()
        .config::<Config>()
        .init(|cx, config: Config| {
            Box::pin(async move {
                let mut loaded = cx.all::<kinds::Differ>()?;
                let mut differs = Vec::new();
                for name in &config.order {
                    let (differ, _) = loaded
                        .remove(name)
                        .ok_or_else(|| format!("needed differ not loaded: {name}"))?;
                    differs.push(differ);
                }
                let service = Service {
                    differs,
                    sync_fs: config.sync_fs,
                };
                Ok(Arc::new(service) as Arc<dyn GrpcService>)
            })
        })
}
