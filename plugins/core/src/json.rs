//! JSON as Go writes it: what Go's marshaller does to documents that we read.

use serde::{Deserialize, Deserializer};

/// For `#[serde(deserialize_with)]`: `null`, which Go writes for empty lists and maps, is the default.
///
/// # Errors
/// Those of `T`.
pub fn nullable<'de, D, T>(d: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(d)?.unwrap_or_default())
}
