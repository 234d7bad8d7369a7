//! Starting the plugins, one after the other, and remembering how each fared.

use std::any::Any;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use crate::context::{Context, Meta, Properties, Started, typed};
use crate::graph::{GraphError, order};
use crate::registration::{InitError, Kind, Registration};

/// How the boot of one set of plugins is to go.
#[derive(Debug, Default)]
pub struct BootOptions {
    /// Facts handed to every plugin.
    pub properties: Properties,
    /// `type.id` of plugins that are left out entirely.
    pub disabled: HashSet<String>,
    /// `type.id` of plugins without which the daemon must not run.
    pub required: Vec<String>,
    /// Config tables by `type.id`, already merged over the defaults.
    pub config: BTreeMap<String, toml::Table>,
}

/// How a plugin fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    Ok,
    /// Not for this host; the reason.
    Skipped(String),
    /// The error's text with its causes.
    Failed(String),
}

/// What introspection shows of one plugin.
#[derive(Debug, Clone)]
pub struct Record {
    pub kind: &'static str,
    pub id: String,
    pub requires: Vec<&'static str>,
    pub meta: Meta,
    pub status: Status,
    pub took: Duration,
}

impl Record {
    /// `type.id`.
    pub fn uri(&self) -> String {
        format!("{}.{}", self.kind, self.id)
    }
}

/// The started plugins.
#[derive(Debug)]
pub struct Plugins {
    records: Vec<Record>,
    started: Arc<Vec<Started>>,
}

/// A boot that must not go on.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error(transparent)]
    Graph(#[from] GraphError),
    #[error("load required plugin {uri}: {reason}")]
    Required { uri: String, reason: String },
}

impl Plugins {
    /// Orders `all`, starts each, and keeps the outcome of each.
    ///
    /// # Errors
    /// No order exists, or a required plugin did not start or does not exist.
    pub async fn boot(all: Vec<Registration>, mut options: BootOptions) -> Result<Self, BootError> {
        let all: Vec<_> = all
            .into_iter()
            .filter(|r| !options.disabled.contains(&r.uri()))
            .collect();
        let properties = Arc::new(options.properties);
        let mut plugins = Self {
            records: Vec::new(),
            started: Arc::new(Vec::new()),
        };
        for registration in order(all)? {
            let uri = registration.uri();
            let config = options
                .config
                .remove(&uri)
                .or_else(|| registration.default_config.clone())
                .unwrap_or_default();
            let status = plugins.start(registration, config, &properties).await;
            if let (Status::Skipped(reason) | Status::Failed(reason), true) =
                (&status, options.required.contains(&uri))
            {
                return Err(BootError::Required {
                    uri,
                    reason: reason.clone(),
                });
            }
        }
        for uri in options.required {
            if !plugins.records.iter().any(|r| r.uri() == uri) {
                return Err(BootError::Required {
                    uri,
                    reason: "no such plugin".into(),
                });
            }
        }
        Ok(plugins)
    }

    async fn start(
        &mut self,
        registration: Registration,
        config: toml::Table,
        properties: &Arc<Properties>,
    ) -> Status {
        let begun = Instant::now();
        let Registration {
            kind,
            id,
            requires,
            init,
            ..
        } = registration;
        let mut cx = Context {
            kind,
            id: id.clone(),
            requires: requires.clone(),
            properties: properties.clone(),
            started: self.started.clone(),
            meta: Meta::default(),
        };
        let outcome = init(&mut cx, config).await;
        let meta = std::mem::take(&mut cx.meta);
        // The context holds the only other reference to the list; without it the push below does not copy.
        drop(cx);
        let (status, instance) = match outcome {
            Ok(i) => {
                info!(plugin.r#type = kind, plugin.id = %id, "loaded plugin");
                (Status::Ok, Ok(Arc::from(i as Box<dyn Any + Send + Sync>)))
            }
            Err(InitError::Skip(reason)) => {
                info!(plugin.r#type = kind, plugin.id = %id, %reason, "skip loading plugin");
                (Status::Skipped(reason.clone()), Err(reason))
            }
            Err(InitError::Failed(e)) => {
                let text = chain(e.as_ref());
                warn!(plugin.r#type = kind, plugin.id = %id, error = %text, "failed to load plugin");
                (Status::Failed(text.clone()), Err(text))
            }
        };
        let started = Started {
            kind,
            id: id.clone(),
            instance,
            meta: meta.clone(),
        };
        match Arc::get_mut(&mut self.started) {
            Some(list) => list.push(started),
            // A plugin kept its context alive: give it the old list and go on with a new one.
            None => {
                let mut list: Vec<Started> = self.started.iter().map(Started::share).collect();
                list.push(started);
                self.started = Arc::new(list);
            }
        }
        self.records.push(Record {
            kind,
            id,
            requires,
            meta,
            status: status.clone(),
            took: begun.elapsed(),
        });
        status
    }

    /// How each plugin fared, in starting order.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// All started plugins of kind `K`, in starting order.
    pub fn all<K: Kind>(&self) -> Vec<(String, Arc<K::Interface>)> {
        self.started
            .iter()
            .filter(|s| s.kind == K::URI)
            .filter_map(|s| Some((s.id.clone(), typed::<K>(s.instance.as_ref().ok()?)?)))
            .collect()
    }
}

impl Started {
    fn share(&self) -> Self {
        Self {
            kind: self.kind,
            id: self.id.clone(),
            instance: self.instance.clone(),
            meta: self.meta.clone(),
        }
    }
}

/// An error with its causes, `: ` between them.
fn chain(e: &(dyn std::error::Error + 'static)) -> String {
    let mut text = e.to_string();
    let mut next = e.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests;
