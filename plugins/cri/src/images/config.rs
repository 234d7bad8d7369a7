//! The configuration blob of an image, as lenient as Go reads it: absent, null and unknown fields are all fine.
//!
//! Written again it has Go's field order and leaves out what Go leaves out: ImageStatus shows it.

use std::collections::BTreeMap;

use corten_core::json::nullable;
use corten_core::{Digest, Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the image's maker wrote (image-spec, config).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    #[serde(deserialize_with = "nullable")]
    pub architecture: String,
    #[serde(deserialize_with = "nullable")]
    pub os: String,
    #[serde(
        rename = "os.version",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    #[serde(
        rename = "os.features",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
    #[serde(deserialize_with = "nullable")]
    pub config: Process,
    #[serde(deserialize_with = "nullable")]
    pub rootfs: RootFs,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
}

/// How containers of the image are run, unless the pod says otherwise.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct Process {
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "nullable", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// By the path in the container.
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub volumes: BTreeMap<String, Value>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub args_escaped: bool,
}

/// The layers, unpacked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootFs {
    #[serde(rename = "type", deserialize_with = "nullable")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub diff_ids: Vec<String>,
}

/// How a layer came to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    #[serde(
        deserialize_with = "nullable",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub empty_layer: bool,
}

// === impl ImageConfig ===

impl ImageConfig {
    /// Reads a blob.
    ///
    /// # Errors
    /// InvalidArgument: not such a document.
    pub fn parse(data: &[u8]) -> Result<Self> {
        serde_json::from_slice(data).map_err(|e| Error::invalid(format!("image config: {e}")))
    }

    /// The chain id of the top layer; empty for an image without layers.
    ///
    /// # Errors
    /// InvalidArgument: a malformed diff id.
    pub fn chain_id(&self) -> Result<String> {
        let diff_ids = self
            .rootfs
            .diff_ids
            .iter()
            .map(|d| Digest::parse(d))
            .collect::<Result<Vec<_>>>()?;
        let chain = corten_core::digest::chain_ids(&diff_ids);
        Ok(chain.last().map(ToString::to_string).unwrap_or_default())
    }
}

impl Process {
    /// The uid of the image's user, or else its name; a group after a colon does not count.
    pub fn uid_or_name(&self) -> (Option<i64>, String) {
        let user = self.user.split(':').next().unwrap_or_default();
        match user.parse() {
            _ if user.is_empty() => (None, String::new()),
            Ok(uid) => (Some(uid), String::new()),
            Err(_) => (None, user.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_go_reads() {
        let c = ImageConfig::parse(
            br#"{"created":null,"config":{"User":"1000:9","Env":null,"Cmd":["a"],"Volumes":{"/v":{}},"OnBuild":[]},
            "rootfs":{"type":"layers","diff_ids":null},"os":"linux","history":null,"x":1}"#,
        )
        .unwrap();
        assert_eq!(c.config.cmd, ["a"]);
        assert!(c.config.volumes.contains_key("/v"));
        assert_eq!(c.chain_id().unwrap(), "");
        assert_eq!(
            serde_json::to_string(&c).unwrap(),
            r#"{"architecture":"","os":"linux","config":{"User":"1000:9","Cmd":["a"],"Volumes":{"/v":{}}},"rootfs":{"type":"layers","diff_ids":[]}}"#
        );
        assert!(ImageConfig::parse(b"1").is_err());
    }

    #[test]
    fn users_are_numbers_or_names() {
        let of = |user: &str| {
            let p = Process {
                user: user.into(),
                ..Process::default()
            };
            p.uid_or_name()
        };
        assert_eq!(of(""), (None, String::new()));
        assert_eq!(of("0"), (Some(0), String::new()));
        assert_eq!(of("1000:users"), (Some(1000), String::new()));
        assert_eq!(of("www-data:www"), (None, "www-data".into()));
        assert_eq!(of("-1"), (Some(-1), String::new()));
    }
}
