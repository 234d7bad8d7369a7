//! What is said to a shim's `start` on stdin, and what it answers (containerd.runtime.bootstrap.v1).
//!
//! The answer comes in one of three forms, tried in this order: the binary message, its JSON, the bare address of
//! an old shim (task v2 over ttrpc). `bootstrap.json` keeps it for a restart, in the JSON that Go's encoding/json
//! makes of the message, so that a stock daemon can take over and back; extensions of any type survive.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use corten_core::{Any, Context, Error, Kind, Result};
use corten_protos::containerd::runtime::bootstrap::v1::{BootstrapResult, Extension};
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;

/// Name of the file in a bundle.
const FILE: &str = "bootstrap.json";
/// The newest task API that we speak.
pub(crate) const NEWEST: i32 = 3;

/// The message as Go's encoding/json writes it.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Document {
    #[serde(skip_serializing_if = "is_zero")]
    version: i32,
    #[serde(skip_serializing_if = "String::is_empty")]
    address: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    protocol: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<i32>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    extensions: Vec<DocumentExtension>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct DocumentExtension {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<DocumentAny>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct DocumentAny {
    #[serde(skip_serializing_if = "String::is_empty")]
    type_url: String,
    /// Base64.
    #[serde(skip_serializing_if = "String::is_empty")]
    value: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde's skip_serializing_if"
)]
fn is_zero(n: &i32) -> bool {
    *n == 0
}

/// Reads an answer in any of its forms.
pub(crate) fn parse(answer: &[u8]) -> Result<BootstrapResult> {
    let result = match BootstrapResult::decode(answer) {
        Ok(r) if !r.address.is_empty() => r,
        _ => parse_text(answer)?,
    };
    if result.version > NEWEST {
        return Err(Error::not_implemented(format!(
            "unsupported shim version ({})",
            result.version
        )));
    }
    Ok(result)
}

fn parse_text(answer: &[u8]) -> Result<BootstrapResult> {
    let text = String::from_utf8_lossy(answer);
    let text = text.trim();
    if let Ok(d) = serde_json::from_str::<Document>(text)
        && d.version >= 2
    {
        return d.try_into();
    }
    if text.is_empty() || text.contains('\n') {
        return Err(Error::new(
            Kind::Unknown,
            format!("shim answered {text:?}, not its address"),
        ));
    }
    Ok(BootstrapResult {
        version: 2,
        address: text.to_owned(),
        protocol: "ttrpc".into(),
        ..Default::default()
    })
}

impl TryFrom<Document> for BootstrapResult {
    type Error = Error;
    fn try_from(d: Document) -> Result<Self> {
        let extension = |e: DocumentExtension| {
            let value = e.value.map(|v| {
                let value = STANDARD
                    .decode(&v.value)
                    .map_err(|e| Error::new(Kind::Unknown, format!("decode extension: {e}")))?;
                Ok::<_, Error>(Any {
                    type_url: v.type_url,
                    value,
                })
            });
            Ok::<_, Error>(Extension {
                value: value.transpose()?,
            })
        };
        Ok(Self {
            version: d.version,
            address: d.address,
            protocol: d.protocol,
            capabilities: d.capabilities,
            metadata: d.metadata.into_iter().collect(),
            extensions: d
                .extensions
                .into_iter()
                .map(extension)
                .collect::<Result<_>>()?,
        })
    }
}

impl From<&BootstrapResult> for Document {
    fn from(r: &BootstrapResult) -> Self {
        Self {
            version: r.version,
            address: r.address.clone(),
            protocol: r.protocol.clone(),
            capabilities: r.capabilities.clone(),
            metadata: r
                .metadata
                .iter()
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
            extensions: r
                .extensions
                .iter()
                .map(|e| DocumentExtension {
                    value: e.value.as_ref().map(|v| DocumentAny {
                        type_url: v.type_url.clone(),
                        value: STANDARD.encode(&v.value),
                    }),
                })
                .collect(),
        }
    }
}

/// Keeps `result` in the bundle.
pub(crate) async fn save(bundle: &Bundle, result: &BootstrapResult) -> Result<()> {
    let json = serde_json::to_vec(&Document::from(result))
        .map_err(|e| Error::internal(format!("encode {FILE}: {e}")))?;
    bundle.write(FILE, json, 0o644).await
}

/// Reads what [`save`] kept, or the `address` file of an old daemon (which is then kept in the new form).
pub(crate) async fn load(bundle: &Bundle) -> Result<BootstrapResult> {
    match bundle.read(FILE).await {
        Ok(data) => parse(&data).with_context(|| format!("read {FILE} of {}", bundle.id)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let address = bundle.read("address").await.with_context(|| {
                format!("get socket address of bundle {}", bundle.path.display())
            })?;
            let result = parse_text(&address)?;
            save(bundle, &result).await?;
            Ok(result)
        }
        Err(e) => Err(Error::from(e).context(format!("read {FILE} of {}", bundle.id))),
    }
}

#[cfg(test)]
mod tests {
    use corten_core::Namespace;

    use super::*;

    fn full() -> BootstrapResult {
        BootstrapResult {
            version: 3,
            address: "unix:///run/containerd/s/ab".into(),
            protocol: "ttrpc".into(),
            capabilities: vec![0],
            metadata: [("k".to_owned(), "v".to_owned())].into_iter().collect(),
            extensions: vec![Extension {
                value: Some(Any {
                    type_url: "x/unknown.Type".into(),
                    value: vec![1, 2, 255],
                }),
            }],
        }
    }

    #[test]
    fn all_three_forms_are_read() {
        assert_eq!(parse(&full().encode_to_vec()).unwrap(), full());
        let json = br#" {"version":3,"address":"unix:///a","protocol":"ttrpc"}
"#;
        let r = parse(json).unwrap();
        assert_eq!(
            (r.version, r.address.as_str(), r.protocol.as_str()),
            (3, "unix:///a", "ttrpc")
        );
        let r = parse(b"unix:///run/s/old\n").unwrap();
        assert_eq!(
            (r.version, r.address.as_str(), r.protocol.as_str()),
            (2, "unix:///run/s/old", "ttrpc")
        );
    }

    #[test]
    fn nonsense_and_the_future_are_refused() {
        parse(b"").unwrap_err();
        parse(b"panic: oh no\ngoroutine 1").unwrap_err();
        let e = parse(br#"{"version":4,"address":"unix:///a","protocol":"ttrpc"}"#).unwrap_err();
        assert_eq!(e.kind(), Kind::NotImplemented);
        assert_eq!(
            e.to_string(),
            "unsupported shim version (4): not implemented"
        );
    }

    #[tokio::test]
    async fn the_file_is_go_json_and_loses_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let ns = Namespace::new("ns").unwrap();
        std::fs::create_dir_all(temp.path().join("ns/c")).unwrap();
        let bundle = Bundle::load(temp.path(), &ns, "c");
        save(&bundle, &full()).await.unwrap();
        let text = std::fs::read_to_string(bundle.path.join(FILE)).unwrap();
        assert_eq!(
            text,
            r#"{"version":3,"address":"unix:///run/containerd/s/ab","protocol":"ttrpc","capabilities":[0],"metadata":{"k":"v"},"extensions":[{"value":{"type_url":"x/unknown.Type","value":"AQL/"}}]}"#
        );
        assert_eq!(load(&bundle).await.unwrap(), full());

        std::fs::remove_file(bundle.path.join(FILE)).unwrap();
        std::fs::write(bundle.path.join("address"), "unix:///old").unwrap();
        assert_eq!(load(&bundle).await.unwrap().version, 2);
        assert!(bundle.path.join(FILE).exists());
    }
}
