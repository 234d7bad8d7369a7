//! containerd.services.sandbox.v1.Controller of another process as a sandbox controller.

use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use corten_core::sandbox::{Controller, CreateOptions, Exit, Instance, Status};
use corten_core::{Kind, Namespace, Result};
use corten_protos::containerd::services::sandbox::v1::controller_client::ControllerClient;
use corten_protos::containerd::services::sandbox::v1::{
    ControllerCreateRequest, ControllerMetricsRequest, ControllerPlatformRequest,
    ControllerShutdownRequest, ControllerStartRequest, ControllerStatusRequest,
    ControllerStopRequest, ControllerUpdateRequest, ControllerWaitRequest,
};
use corten_protos::containerd::types::{Metric, Platform, Sandbox};
use tonic::transport::Channel;

use crate::channel::{MAX_MESSAGE, Remote, in_namespace};

/// First and longest pause before an exit is asked for again.
const PAUSE: (Duration, Duration) = (Duration::from_millis(128), Duration::from_millis(4096));

/// A controller elsewhere.
#[derive(Debug)]
pub(crate) struct Proxy {
    remote: Remote,
    client: OnceLock<ControllerClient<Channel>>,
}

// === impl Proxy ===

impl Proxy {
    pub(crate) fn new(remote: Remote) -> Self {
        Self {
            remote,
            client: OnceLock::new(),
        }
    }

    fn client(&self) -> ControllerClient<Channel> {
        let make = || {
            ControllerClient::new(self.remote.channel())
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
        };
        self.client.get_or_init(make).clone()
    }

    fn name(&self) -> String {
        self.remote.name.clone()
    }
}

#[async_trait]
impl Controller for Proxy {
    async fn create(&self, ns: &Namespace, sandbox: Sandbox, o: CreateOptions) -> Result<()> {
        let r = ControllerCreateRequest {
            sandbox_id: sandbox.sandbox_id.clone(),
            rootfs: o.rootfs,
            options: o.options,
            netns_path: o.netns_path,
            annotations: o.annotations,
            sandbox: Some(sandbox),
            sandboxer: self.name(),
        };
        let answer = self.client().create(in_namespace(ns, r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }

    async fn start(&self, ns: &Namespace, id: &str) -> Result<Instance> {
        let r = ControllerStartRequest {
            sandbox_id: id.to_owned(),
            sandboxer: self.name(),
        };
        let answer = self.client().start(in_namespace(ns, r)).await;
        let instance = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        Ok(Instance {
            sandbox_id: id.to_owned(),
            ..instance
        })
    }

    async fn platform(&self, ns: &Namespace, id: &str) -> Result<Platform> {
        let r = ControllerPlatformRequest {
            sandbox_id: id.to_owned(),
            sandboxer: self.name(),
        };
        let answer = self.client().platform(in_namespace(ns, r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?;
        Ok(answer.into_inner().platform.unwrap_or_default())
    }

    async fn stop(&self, ns: &Namespace, id: &str, patience: Duration) -> Result<()> {
        let r = ControllerStopRequest {
            sandbox_id: id.to_owned(),
            timeout_secs: u32::try_from(patience.as_secs()).unwrap_or(u32::MAX),
            sandboxer: self.name(),
        };
        let answer = self.client().stop(in_namespace(ns, r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }

    async fn wait(&self, ns: &Namespace, id: &str) -> Result<Exit> {
        let mut pause = PAUSE.0;
        loop {
            let r = ControllerWaitRequest {
                sandbox_id: id.to_owned(),
                sandboxer: self.name(),
            };
            let answer = self.client().wait(in_namespace(ns, r)).await;
            match answer.map_err(|s| self.remote.failed(s)) {
                Ok(exit) => return Ok(exit.into_inner()),
                // The controller may be restarting, and its sandboxes may not have noticed.
                Err(e) if e.kind() == Kind::Unavailable => {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(PAUSE.1);
                }
                Err(e) => return Err(e),
            }
        }
    }

    async fn status(&self, ns: &Namespace, id: &str, verbose: bool) -> Result<Status> {
        let r = ControllerStatusRequest {
            sandbox_id: id.to_owned(),
            verbose,
            sandboxer: self.name(),
        };
        let answer = self.client().status(in_namespace(ns, r)).await;
        let status = answer.map_err(|s| self.remote.failed(s))?.into_inner();
        Ok(Status {
            sandbox_id: id.to_owned(),
            ..status
        })
    }

    async fn shutdown(&self, ns: &Namespace, id: &str) -> Result<()> {
        let r = ControllerShutdownRequest {
            sandbox_id: id.to_owned(),
            sandboxer: self.name(),
        };
        let answer = self.client().shutdown(in_namespace(ns, r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }

    async fn metrics(&self, ns: &Namespace, id: &str) -> Result<Option<Metric>> {
        let r = ControllerMetricsRequest {
            sandbox_id: id.to_owned(),
            sandboxer: self.name(),
        };
        let answer = self.client().metrics(in_namespace(ns, r)).await;
        let answer = answer.map_err(|s| self.remote.failed(s))?;
        Ok(answer.into_inner().metrics)
    }

    async fn update(
        &self,
        ns: &Namespace,
        id: &str,
        sandbox: Sandbox,
        fields: Vec<String>,
    ) -> Result<()> {
        let r = ControllerUpdateRequest {
            sandbox_id: id.to_owned(),
            sandboxer: self.name(),
            sandbox: Some(sandbox),
            fields,
        };
        let answer = self.client().update(in_namespace(ns, r)).await;
        answer.map(drop).map_err(|s| self.remote.failed(s))
    }
}
