//! One end of a transfer, as the API's messages describe it.

use corten_core::protos::any;
use corten_core::protos::containerd::types::transfer as api;
use corten_core::{Any, Error, Result};

use crate::store::Store;

/// One end of a transfer.
pub(crate) enum End {
    Registry(api::OciRegistry),
    Store(Box<Store>),
    Import(api::ImageImportStream),
    Export(api::ImageExportStream),
    Other(String),
}

// === impl End ===

impl End {
    /// What the message describes. One that nobody here knows is kept by its name, for the error.
    pub(crate) fn of(any: &Any) -> Result<Self> {
        let bad = |e: any::UnpackError| Error::invalid(format!("unmarshal {}: {e}", any.type_url));
        Ok(match any::name(&any.type_url) {
            "containerd.types.transfer.OCIRegistry" => {
                Self::Registry(any::unpack(any).map_err(bad)?)
            }
            "containerd.types.transfer.ImageStore" => {
                let store: api::ImageStore = any::unpack(any).map_err(bad)?;
                Self::Store(Box::new(store.into()))
            }
            "containerd.types.transfer.ImageImportStream" => {
                Self::Import(any::unpack(any).map_err(bad)?)
            }
            "containerd.types.transfer.ImageExportStream" => {
                Self::Export(any::unpack(any).map_err(bad)?)
            }
            _ => Self::Other(any.type_url.clone()),
        })
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Registry(r) => write!(f, "OCI Registry ({})", r.reference),
            Self::Store(s) => write!(f, "{s}"),
            Self::Import(_) => f.write_str("*archive.ImageImportStream"),
            Self::Export(_) => f.write_str("*archive.ImageExportStream"),
            Self::Other(url) => f.write_str(url),
        }
    }
}
