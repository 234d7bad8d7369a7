//! Owns the runtime options: which message they come in, and what of them this shim takes.
//!
//! `containerd.runc.v1.Options` comes from ctr, nerdctl and moby; CRI wraps a TOML or JSON table into
//! `runtimeoptions.v1.Options` for any runtime it does not know by name.

use corten_protos::any;
use corten_protos::containerd::runc::v1::Options as Runc;
use corten_protos::google::protobuf::{Any, Empty};
use corten_protos::runtimeoptions::v1::Options as Generic;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result};

/// The options this shim acts on. Serialised to `options.json`, for `delete` to find.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Options {
    #[serde(alias = "NoPivotRoot")]
    pub(crate) no_pivot_root: bool,
    #[serde(alias = "NoNewKeyring")]
    pub(crate) no_new_keyring: bool,
    #[serde(alias = "ShimCgroup")]
    pub(crate) shim_cgroup: String,
    #[serde(alias = "IoUid")]
    pub(crate) io_uid: u32,
    #[serde(alias = "IoGid")]
    pub(crate) io_gid: u32,
    #[serde(alias = "BinaryName")]
    pub(crate) binary_name: String,
    #[serde(alias = "Root")]
    pub(crate) root: String,
    #[serde(alias = "SystemdCgroup")]
    pub(crate) systemd_cgroup: bool,
    #[serde(alias = "CriuWorkPath")]
    pub(crate) criu_work_path: String,
}

// === impl Options ===

impl Options {
    /// Reads the options of a request. No options at all are the defaults.
    pub(crate) fn from_any(options: Option<&Any>) -> Result<Self> {
        let Some(options) = options.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        if any::is::<Generic>(options) {
            let generic: Generic =
                any::unpack(options).map_err(|e| Error::invalid(e.to_string()))?;
            return Self::from_generic(&generic);
        }
        if any::is::<Runc>(options) {
            let runc: Runc = any::unpack(options).map_err(|e| Error::invalid(e.to_string()))?;
            return Ok(Self::from(runc));
        }
        // What containerd's client sends for a sandbox without options.
        if any::is::<Empty>(options) {
            return Ok(Self::default());
        }
        Err(Error::invalid(format!(
            "unsupported runtime options of type {:?}",
            options.type_url
        )))
    }

    fn from_generic(generic: &Generic) -> Result<Self> {
        let body = if generic.config_body.is_empty() && !generic.config_path.is_empty() {
            std::fs::read(&generic.config_path)
                .context(format!("read runtime options {}", generic.config_path))?
        } else {
            generic.config_body.clone()
        };
        let text =
            String::from_utf8(body).map_err(|_| Error::invalid("runtime options: not UTF-8"))?;
        if text.trim_start().starts_with('{') {
            return serde_json::from_str(&text)
                .map_err(|e| Error::invalid(format!("runtime options: {e}")));
        }
        Self::from_flat_toml(&text)
    }

    /// The flat `Key = value` table CRI makes of `[runtimes.x.options]`; unknown keys are ignored as Go does.
    fn from_flat_toml(text: &str) -> Result<Self> {
        let mut map = serde_json::Map::new();
        for line in text.lines().map(str::trim) {
            let Some((key, value)) = line.split_once('=') else {
                continue;
            };
            let value = value.trim();
            let value = match value {
                "true" => serde_json::Value::Bool(true),
                "false" => serde_json::Value::Bool(false),
                _ => match (value.parse::<u64>(), unquote(value)) {
                    (Ok(number), _) => number.into(),
                    (_, Some(text)) => text.into(),
                    _ => continue,
                },
            };
            map.insert(key.trim().to_owned(), value);
        }
        serde_json::from_value(map.into())
            .map_err(|e| Error::invalid(format!("runtime options: {e}")))
    }
}

impl From<Runc> for Options {
    fn from(o: Runc) -> Self {
        Self {
            no_pivot_root: o.no_pivot_root,
            no_new_keyring: o.no_new_keyring,
            shim_cgroup: o.shim_cgroup,
            io_uid: o.io_uid,
            io_gid: o.io_gid,
            binary_name: o.binary_name,
            root: o.root,
            systemd_cgroup: o.systemd_cgroup,
            criu_work_path: o.criu_work_path,
        }
    }
}

/// A TOML string without its quotes: literal as is, basic with JSON's escapes.
fn unquote(value: &str) -> Option<String> {
    if let Some(literal) = value.strip_prefix('\'').and_then(|v| v.strip_suffix('\'')) {
        return Some(literal.to_owned());
    }
    serde_json::from_str(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_messages_mean_the_same() {
        let runc = any::pack(&Runc {
            systemd_cgroup: true,
            io_uid: 7,
            ..Runc::default()
        });
        let toml = any::pack(&Generic {
            type_url: String::new(),
            config_path: String::new(),
            config_body: b"SystemdCgroup = true\nIoUid = 7\nShimCgroup = \"\"\n".to_vec(),
        });
        let json = any::pack(&Generic {
            type_url: String::new(),
            config_path: String::new(),
            config_body: br#"{"systemd_cgroup":true,"io_uid":7}"#.to_vec(),
        });
        let want = Options::from_any(Some(&runc)).unwrap();
        assert!(want.systemd_cgroup && want.io_uid == 7);
        assert_eq!(Options::from_any(Some(&toml)).unwrap(), want);
        assert_eq!(Options::from_any(Some(&json)).unwrap(), want);
        assert_eq!(Options::from_any(None).unwrap(), Options::default());
    }
}
