//! The figures of a cgroup as shims tell them: of the first or of the unified hierarchy.

use corten_core::protos::any;
use corten_core::protos::io::containerd::cgroups::{v1, v2};
use corten_core::{Any, Error, Result};

/// The figures of a cgroup.
#[derive(Debug, Clone)]
pub enum Cgroup {
    V1(Box<v1::Metrics>),
    V2(Box<v2::Metrics>),
}

impl Cgroup {
    /// Reads what a shim or a controller told.
    ///
    /// # Errors
    /// InvalidArgument: neither of the two.
    pub fn of(any: &Any) -> Result<Self> {
        let bad = |e| Error::invalid(format!("failed to extract container metrics: {e}"));
        if any::is::<v1::Metrics>(any) {
            return Ok(Self::V1(Box::new(any::unpack(any).map_err(bad)?)));
        }
        if any::is::<v2::Metrics>(any) {
            return Ok(Self::V2(Box::new(any::unpack(any).map_err(bad)?)));
        }
        Err(Error::invalid(format!(
            "unexpected metrics type: {}",
            any.type_url
        )))
    }

    /// Nanoseconds of CPU time.
    pub fn cpu_time(&self) -> Option<u64> {
        match self {
            Self::V1(m) => Some(m.cpu.as_ref()?.usage.as_ref()?.total),
            Self::V2(m) => Some(m.cpu.as_ref()?.usage_usec.saturating_mul(1000)),
        }
    }

    /// Processes and their threads.
    pub fn tasks(&self) -> Option<u64> {
        match self {
            Self::V1(m) => Some(m.pids.as_ref()?.current),
            Self::V2(m) => Some(m.pids.as_ref()?.current),
        }
    }
}
