//! Checks that need the runtime's own word, from `-info`.
//!
//! runc-like runtimes ignore what they do not know. Where that would be harmful (an id-mapped mount that silently is
//! not mapped exposes a volume to the wrong users) the daemon asks first.

use corten_core::runtime::CreateOptions;
use corten_core::{Context, Error, Kind, Result};
use corten_protos::any;
use serde::Deserialize;

use crate::command;
use crate::manager::Manager;
use crate::task::options_of;

#[derive(Deserialize, Default)]
#[serde(default)]
struct Spec {
    mounts: Option<Vec<SpecMount>>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct SpecMount {
    options: Option<Vec<String>>,
    uid_mappings: Option<serde_json::Value>,
    gid_mappings: Option<serde_json::Value>,
}

/// Refuses a spec that the runtime would misunderstand.
pub(crate) async fn validate(manager: &Manager, o: &CreateOptions) -> Result<()> {
    check(manager, o)
        .await
        .context("failed to validate OCI runtime features")
}

async fn check(manager: &Manager, o: &CreateOptions) -> Result<()> {
    let Some(spec) = o.spec.as_ref().filter(|s| !s.value.is_empty()) else {
        return Ok(());
    };
    let spec: Spec = serde_json::from_slice(&spec.value)
        .map_err(|e| Error::new(Kind::Unknown, format!("unmarshal spec: {e}")))?;
    if !maps_ids(&spec) {
        return Ok(());
    }
    let binary = manager.discovery.resolve(&o.runtime)?;
    let info = command::info(&binary, options_of(o).as_ref())
        .await
        .context("runtime info")?;
    let Some(features) = &info.features else {
        return Ok(());
    };
    // Other runtimes tell their features in their own way, and may not be affected.
    let Ok(json) = any::unpack_json(features, any::OCI_FEATURES) else {
        return Ok(());
    };
    let json: serde_json::Value = serde_json::from_slice(json)
        .map_err(|e| Error::new(Kind::Unknown, format!("unmarshal runtime features: {e}")))?;
    let why = match json.pointer("/linux/mountExtensions/idmap") {
        None => "missing `mountExtensions.idmap` entry in `features` command",
        Some(idmap) if idmap["enabled"] == true => return Ok(()),
        Some(_) => {
            "entry `mountExtensions.idmap.Enabled` in `features` command not present or disabled"
        }
    };
    Err(Error::new(
        Kind::Unknown,
        format!("idmap mounts not supported: {why}"),
    ))
}

fn maps_ids(spec: &Spec) -> bool {
    let set = |v: &Option<serde_json::Value>| v.as_ref().is_some_and(|v| !v.is_null());
    spec.mounts.iter().flatten().any(|m| {
        set(&m.uid_mappings)
            || set(&m.gid_mappings)
            || m.options
                .iter()
                .flatten()
                .any(|o| o == "idmap" || o == "ridmap")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_mapped_mounts_are_noticed() {
        let check = |json: &str, want| {
            assert_eq!(
                maps_ids(&serde_json::from_str(json).unwrap()),
                want,
                "{json}"
            );
        };
        check("{}", false);
        check(
            r#"{"mounts":[{"options":["rbind"],"uidMappings":null}]}"#,
            false,
        );
        check(r#"{"mounts":[{"options":["ridmap"]}]}"#, true);
        check(r#"{"mounts":[{"uidMappings":[{"containerID":0}]}]}"#, true);
    }
}
