//! Where images may be unpacked to: what the configuration allows, and what of it a client gets.

use std::sync::Arc;

use corten_core::diff::Differ;
use corten_core::{Context, Error, Result};
use serde::{Deserialize, Serialize};

use crate::local::{Config, Parts};
use crate::platform::{Matcher, Platform};
use crate::unpack::UnpackTarget;

/// Snapshotter of clients that name none.
const DEFAULT_SNAPSHOTTER: &str = "overlayfs";
/// Differ that is tried first.
const DEFAULT_DIFFER: &str = "walking";

/// One allowed way to unpack.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct UnpackConfig {
    pub platform: String,
    pub snapshotter: String,
    pub differ: String,
    pub config_type: String,
    /// Media types of layers beside the usual ones.
    pub layer_types: Vec<String>,
    /// No failure of the plugin when the snapshotter or differ is not there.
    pub optional: bool,
}

/// All that are allowed.
#[derive(Debug)]
pub(crate) struct Targets(Vec<UnpackTarget>);

// === impl Targets ===

impl Targets {
    /// What the configuration allows; without one, every snapshotter for this host.
    ///
    /// # Errors
    /// It names what is not there.
    pub(crate) fn new(parts: &Parts, config: &Config) -> Result<Self> {
        let host = Platform::host();
        let loaded = parts.snapshots.names();
        let rules = match &config.unpack_config {
            Some(rules) => rules.clone(),
            None => loaded
                .iter()
                .map(|s| UnpackConfig {
                    platform: host.to_string(),
                    snapshotter: s.clone(),
                    // The erofs snapshotter has a differ of its own.
                    differ: if parts.differs.contains_key(s) {
                        s.clone()
                    } else {
                        String::new()
                    },
                    ..UnpackConfig::default()
                })
                .collect(),
        };
        let mut out = Vec::new();
        for rule in rules {
            let platform = Platform::parse(&rule.platform).with_context(|| {
                format!(
                    "io.containerd.transfer.v1: platform configuration {} invalid",
                    rule.platform
                )
            })?;
            if !loaded.contains(&rule.snapshotter) {
                if rule.optional {
                    continue;
                }
                return Err(Error::not_found(format!(
                    "snapshotter {:?}",
                    rule.snapshotter
                )));
            }
            let differs = differs_for(parts, &rule);
            if differs.is_empty() {
                if rule.optional || config.unpack_config.is_none() {
                    continue;
                }
                return Err(Error::not_found("no matching diff plugins"));
            }
            let matcher = match config.check_platform_supported {
                true => Matcher::only(&platform),
                false => Matcher::only_os(&platform),
            };
            out.push(UnpackTarget {
                platform: matcher,
                rebase: parts.rebase.contains(&rule.snapshotter),
                snapshotter: rule.snapshotter,
                differs,
                config_type: rule.config_type,
                layer_types: rule.layer_types,
                sync_fs: false,
            });
        }
        Ok(Self(out))
    }

    /// Those for what a client asked for; unsupported wishes are skipped, as stock does.
    pub(crate) fn of(&self, wanted: &[(Platform, String)]) -> Vec<UnpackTarget> {
        let mut out = Vec::new();
        for (platform, snapshotter) in wanted {
            let fits = |t: &&UnpackTarget| t.platform.matches(platform);
            let found = match snapshotter.as_str() {
                "" => {
                    let mut fitting = self.0.iter().filter(fits);
                    let first = fitting.clone().next();
                    fitting
                        .find(|t| t.snapshotter == DEFAULT_SNAPSHOTTER)
                        .or(first)
                }
                name => self.0.iter().filter(fits).find(|t| t.snapshotter == name),
            };
            match found {
                None => tracing::warn!(
                    %platform,
                    snapshotter,
                    "unpack configuration not supported, skipping"
                ),
                // Any architecture of the system is allowed, but this image is wanted for this platform.
                Some(t) => out.push(UnpackTarget {
                    platform: Matcher::only(platform),
                    ..t.clone()
                }),
            }
        }
        out
    }
}

// The named one only, or all: walking first, those of special snapshotters not at all.
fn differs_for(parts: &Parts, rule: &UnpackConfig) -> Vec<Arc<dyn Differ>> {
    if !rule.differ.is_empty() {
        let mut named: Vec<_> = parts
            .differs
            .get(&rule.differ)
            .cloned()
            .into_iter()
            .collect();
        // A native differ knows only its own layers; the usual ones go through the usual differ.
        named.extend(
            parts
                .differs
                .get(DEFAULT_DIFFER)
                .filter(|_| rule.differ != DEFAULT_DIFFER)
                .cloned(),
        );
        return named;
    }
    let first = parts.differs.get(DEFAULT_DIFFER).into_iter();
    let special = parts.snapshots.names();
    let others = parts
        .differs
        .iter()
        .filter(|(id, _)| id.as_str() != DEFAULT_DIFFER && !special.contains(id))
        .map(|(_, d)| d);
    first.chain(others).cloned().collect()
}
