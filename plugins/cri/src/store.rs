//! Pods and containers that are known: in memory, by id, by unambiguous prefix of an id, by name.
//!
//! A record's metadata is what is stored with the daemon (containerd's JSON, so that either daemon reads the other's);
//! its status changes in place.

pub mod container;
pub mod index;
pub mod names;
pub mod pod;

pub use container::Container;
pub use index::Index;
pub use names::{Names, Reservation};
pub use pod::Pod;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use corten_core::{Any, Context, Error, Result};

/// What every stored JSON of the CRI is wrapped in.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    #[serde(rename = "Version")]
    version: String,
    #[serde(rename = "Metadata")]
    metadata: T,
}

/// Wraps metadata as an extension of a record.
///
/// # Errors
/// Internal: not JSON; never for the types of this module.
pub fn encode<T: Serialize>(type_url: &str, metadata: &T) -> Result<Any> {
    #[derive(Serialize)]
    struct Borrowed<'a, T> {
        #[serde(rename = "Version")]
        version: &'static str,
        #[serde(rename = "Metadata")]
        metadata: &'a T,
    }
    let value = serde_json::to_vec(&Borrowed {
        version: "v1",
        metadata,
    })
    .map_err(|e| Error::internal(format!("encode {type_url}")).with_source(e))?;
    Ok(Any {
        type_url: type_url.into(),
        value,
    })
}

/// Reads what [`encode`] or containerd wrote.
///
/// # Errors
/// InvalidArgument: not JSON, or of another version.
pub fn decode<T: DeserializeOwned>(extension: &Any) -> Result<T> {
    let read: Versioned<T> = serde_json::from_slice(&extension.value)
        .map_err(|e| Error::invalid(e.to_string()))
        .with_context(|| format!("decode {}", extension.type_url))?;
    if read.version != "v1" {
        return Err(Error::invalid(format!(
            "decode {}: unsupported version: {:?}",
            extension.type_url, read.version
        )));
    }
    Ok(read.metadata)
}
