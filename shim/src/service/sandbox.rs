//! Owns `containerd.runtime.sandbox.v1.Sandbox`: one fn per RPC.

use std::collections::BTreeMap;
use std::rc::Rc;

use corten_protos::any;
use corten_protos::containerd::runtime::sandbox::v1::{
    CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest, PlatformResponse,
    SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest, SandboxStatusResponse,
    ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest, StartSandboxResponse,
    StopSandboxRequest, StopSandboxResponse, UpdateSandboxRequest, UpdateSandboxResponse,
    WaitSandboxRequest, WaitSandboxResponse,
};
use corten_protos::containerd::types::{Metric, Platform};
use corten_protos::time;

use super::{decode, encode};
use crate::error::{Error, Result};
use crate::sandbox::{self, Sandbox};
use crate::stats;
use crate::task::Shim;

pub(super) const NAME: &str = "containerd.runtime.sandbox.v1.Sandbox";

/// The one call that does nothing but wait.
pub(super) const WAIT: &str = "WaitSandbox";

/// All methods of the service.
pub(super) const METHODS: &[&str] = &[
    "CreateSandbox",
    "StartSandbox",
    "Platform",
    "StopSandbox",
    WAIT,
    "SandboxStatus",
    "PingSandbox",
    "ShutdownSandbox",
    "SandboxMetrics",
    "UpdateSandbox",
];

/// Decodes, serves, encodes.
pub(super) async fn call(shim: &Rc<Shim>, method: &str, payload: &[u8]) -> Result<Vec<u8>> {
    match method {
        "CreateSandbox" => {
            sandbox::create(shim, decode(payload)?).await?;
            encode(CreateSandboxResponse {})
        }
        "StartSandbox" => encode(start(shim, &decode(payload)?)?),
        "Platform" => encode(platform(shim, &decode(payload)?)?),
        "StopSandbox" => encode(stop(shim, decode(payload)?).await?),
        WAIT => encode(wait(shim, decode(payload)?).await?),
        "SandboxStatus" => encode(status(shim, &decode(payload)?)?),
        "PingSandbox" => encode(ping(shim, &decode(payload)?)?),
        "ShutdownSandbox" => encode(shutdown(shim, decode(payload)?).await?),
        "SandboxMetrics" => encode(metrics(shim, &decode(payload)?)?),
        "UpdateSandbox" => encode(update(shim, &decode(payload)?)?),
        other => Err(Error::unimplemented(format!("method {other}"))),
    }
}

fn find(shim: &Shim, id: &str) -> Result<Rc<Sandbox>> {
    shim.sandbox()
        .filter(|sandbox| sandbox.id == id)
        .ok_or_else(|| sandbox::unknown(id))
}

fn start(shim: &Shim, r: &StartSandboxRequest) -> Result<StartSandboxResponse> {
    let sandbox = find(shim, &r.sandbox_id)?;
    let spec = sandbox.start()?;
    Ok(StartSandboxResponse {
        pid: sandbox.pid(),
        created_at: Some(sandbox.created_at),
        spec: Some(any::pack_json(any::OCI_SPEC, spec)),
    })
}

/// Containers run on this kernel, on whatever this program was built for.
fn platform(shim: &Shim, r: &PlatformRequest) -> Result<PlatformResponse> {
    find(shim, &r.sandbox_id)?;
    let (architecture, variant) = match std::env::consts::ARCH {
        "x86_64" => ("amd64", ""),
        "aarch64" => ("arm64", "v8"),
        "x86" => ("386", ""),
        "powerpc64" if cfg!(target_endian = "little") => ("ppc64le", ""),
        "loongarch64" => ("loong64", ""),
        other => (other, ""),
    };
    Ok(PlatformResponse {
        platform: Some(Platform {
            os: "linux".to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            ..Platform::default()
        }),
    })
}

/// The holder has nothing to finish, so the time the request allows is not needed.
async fn stop(shim: &Shim, r: StopSandboxRequest) -> Result<StopSandboxResponse> {
    find(shim, &r.sandbox_id)?.stop().await?;
    Ok(StopSandboxResponse {})
}

async fn wait(shim: &Shim, r: WaitSandboxRequest) -> Result<WaitSandboxResponse> {
    let exit = find(shim, &r.sandbox_id)?.wait().await?;
    Ok(WaitSandboxResponse {
        exit_status: exit.status,
        exited_at: Some(exit.at),
    })
}

fn status(shim: &Shim, r: &SandboxStatusRequest) -> Result<SandboxStatusResponse> {
    let sandbox = find(shim, &r.sandbox_id)?;
    let state = if sandbox.is_ready() {
        "SANDBOX_READY"
    } else {
        "SANDBOX_NOTREADY"
    };
    let info = r.verbose.then(|| ("info".to_owned(), sandbox.info()));
    Ok(SandboxStatusResponse {
        sandbox_id: sandbox.id.clone(),
        pid: sandbox.pid(),
        state: state.to_owned(),
        info: info.into_iter().collect::<BTreeMap<_, _>>(),
        created_at: Some(sandbox.created_at),
        exited_at: Some(sandbox.exit().map_or(time::GO_ZERO, |exit| exit.at)),
        extra: None,
    })
}

fn ping(shim: &Shim, r: &PingRequest) -> Result<PingResponse> {
    find(shim, &r.sandbox_id).map(|_| PingResponse {})
}

async fn shutdown(shim: &Rc<Shim>, r: ShutdownSandboxRequest) -> Result<ShutdownSandboxResponse> {
    sandbox::shutdown(shim, &r.sandbox_id).await?;
    Ok(ShutdownSandboxResponse {})
}

fn metrics(shim: &Shim, r: &SandboxMetricsRequest) -> Result<SandboxMetricsResponse> {
    let sandbox = find(shim, &r.sandbox_id)?;
    let stats = sandbox.stats()?;
    Ok(SandboxMetricsResponse {
        metrics: Some(Metric {
            timestamp: Some(time::now()),
            id: sandbox.id.clone(),
            data: Some(stats::metrics(&stats)),
        }),
    })
}

fn update(shim: &Shim, r: &UpdateSandboxRequest) -> Result<UpdateSandboxResponse> {
    find(shim, &r.sandbox_id)?.update(r)?;
    Ok(UpdateSandboxResponse {})
}
