//! One verb through all plugins of one network, as section 3 of the specification has it: ADD forwards with each
//! result handed on, DEL backwards with the last result, CHECK, STATUS and GC forwards.

use corten_core::{Context, Error, Kind, Result};
use serde_json::{Map, Value, json};

use crate::config::{NetworkList, Plugin};
use crate::exec::{Call, Executor, Verb};
use crate::result::NetworkResult;
use crate::{Capabilities, Version};

/// What the plugins are told about the one attachment.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub id: &'a str,
    pub netns: &'a str,
    pub interface: &'a str,
    pub args: &'a [(String, String)],
    pub capabilities: &'a Capabilities,
}

/// A container's interface, as GC names them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Valid {
    pub container: String,
    pub interface: String,
}

/// Runs plugins of one network at one version.
#[derive(Debug)]
pub struct Chain<'a> {
    pub executor: &'a Executor,
    pub list: &'a NetworkList,
    pub version: Version,
}

// === impl Chain ===

impl<'a> Chain<'a> {
    /// Settles the version: the only one, or the newest that all of the plugins say they speak.
    ///
    /// # Errors
    /// FailedPrecondition when there is none; those of asking the plugins.
    pub async fn negotiate(executor: &'a Executor, list: &'a NetworkList) -> Result<Self> {
        let mut version = list.newest();
        if list.versions.len() > 1 {
            let mut common = list.versions.clone();
            for plugin in &list.plugins {
                let spoken = executor.versions(&plugin.kind).await;
                let spoken = spoken.with_context(|| describe(plugin, "version"))?;
                common.retain(|v| spoken.contains(v));
            }
            version = *common.last().ok_or_else(|| {
                Error::precondition(format!(
                    "plugins of network {:?} speak none of its CNI versions",
                    list.name
                ))
            })?;
        }
        Ok(Self {
            executor,
            list,
            version,
        })
    }

    /// Attaches. On failure nothing is taken back: that is DEL's.
    ///
    /// # Errors
    /// Those of the first plugin that fails.
    pub async fn add(&self, target: Target<'_>) -> Result<NetworkResult> {
        let mut result: Option<NetworkResult> = None;
        for plugin in &self.list.plugins {
            let config = self.config(plugin, result.as_ref(), Some(target))?;
            let run = self
                .executor
                .run(&plugin.kind, &config, call(Verb::Add, target));
            let parsed = run
                .await
                .and_then(|out| NetworkResult::parse(&out, self.version));
            result = Some(parsed.with_context(|| describe(plugin, "add"))?);
        }
        result
            .ok_or_else(|| Error::invalid(format!("network {:?} without plugins", self.list.name)))
    }

    /// Detaches, going on after a plugin that fails so that the others give back what they hold.
    ///
    /// # Errors
    /// Those of the last plugin in the list that failed.
    pub async fn del(&self, target: Target<'_>, result: Option<&NetworkResult>) -> Result<()> {
        let result = result.filter(|_| self.version.has_check());
        let mut first = None;
        for plugin in self.list.plugins.iter().rev() {
            let config = self.config(plugin, result, Some(target))?;
            let run = self
                .executor
                .run(&plugin.kind, &config, call(Verb::Del, target));
            if let Err(e) = run.await
                && !gone_already(target, &e)
            {
                let e = e.context(describe(plugin, "delete"));
                first.get_or_insert(e);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// Asks whether all is as it was made.
    ///
    /// # Errors
    /// Those of the first plugin that is not content; FailedPrecondition for a version without CHECK.
    pub async fn check(&self, target: Target<'_>, result: Option<&NetworkResult>) -> Result<()> {
        if !self.version.has_check() {
            return Err(Error::new(
                Kind::FailedPrecondition,
                format!(
                    "configuration version {:?} does not support the CHECK command",
                    self.version.to_string()
                ),
            ));
        }
        if self.list.disable_check {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            let config = self.config(plugin, result, Some(target))?;
            let run = self
                .executor
                .run(&plugin.kind, &config, call(Verb::Check, target));
            run.await.with_context(|| describe(plugin, "check"))?;
        }
        Ok(())
    }

    /// Asks whether attaching would work; a version without STATUS always says yes.
    ///
    /// # Errors
    /// Those of the first plugin that is not ready, without any addition: a runtime shows them as the reason.
    pub async fn status(&self) -> Result<()> {
        if !self.version.has_status() {
            return Ok(());
        }
        for plugin in &self.list.plugins {
            let config = self.config(plugin, None, None)?;
            self.executor
                .run(&plugin.kind, &config, bare(Verb::Status))
                .await?;
        }
        Ok(())
    }

    /// Tells the plugins which attachments are still wanted, going on after one that fails.
    ///
    /// # Errors
    /// Those of the first plugin that failed.
    pub async fn gc(&self, valid: &[Valid]) -> Result<()> {
        if !self.version.has_status() || self.list.disable_gc {
            return Ok(());
        }
        let valid: Vec<Value> = valid
            .iter()
            .map(|v| json!({"containerID": v.container, "ifname": v.interface}))
            .collect();
        let mut first = None;
        for plugin in &self.list.plugins {
            let mut config = self.config(plugin, None, None)?;
            // The specification's text and its examples disagree on the name; libcni sends both.
            config["cni.dev/valid-attachments"] = valid.clone().into();
            config["cni.dev/attachments"] = valid.clone().into();
            if let Err(e) = self
                .executor
                .run(&plugin.kind, &config, bare(Verb::Gc))
                .await
            {
                let e = e.context(describe(plugin, "gc"));
                first.get_or_insert(e);
            }
        }
        first.map_or(Ok(()), Err)
    }

    /// What a plugin reads on stdin.
    fn config(
        &self,
        plugin: &Plugin,
        previous: Option<&NetworkResult>,
        target: Option<Target<'_>>,
    ) -> Result<Value> {
        let mut config = plugin.config.clone();
        config.insert("name".into(), self.list.name.clone().into());
        config.insert("cniVersion".into(), self.version.to_string().into());
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.to_value(self.version)?);
        }
        let given = target.map(|t| t.capabilities);
        let wanted: Map<String, Value> = plugin
            .capabilities
            .iter()
            .filter_map(|name| Some((name.clone(), given?.get(name)?.clone())))
            .collect();
        if !wanted.is_empty() {
            config.insert("runtimeConfig".into(), wanted.into());
        }
        Ok(config.into())
    }
}

fn call(verb: Verb, target: Target<'_>) -> Call<'_> {
    Call {
        verb,
        id: target.id,
        netns: target.netns,
        interface: target.interface,
        args: target.args,
    }
}

fn bare(verb: Verb) -> Call<'static> {
    Call {
        verb,
        id: "",
        netns: "",
        interface: "",
        args: &[],
    }
}

/// libcni's words, which end up in pod events.
fn describe(plugin: &Plugin, verb: &str) -> String {
    let mut text = format!("plugin type={:?}", plugin.kind);
    if let Some(name) = plugin.config.get("name").and_then(Value::as_str) {
        text.push_str(&format!(" name={name:?}"));
    }
    format!("{text} failed ({verb})")
}

/// DEL of what is gone is done. Plugins have no code for it; go-cni goes by the same words.
fn gone_already(target: Target<'_>, e: &Error) -> bool {
    // A plugin that is missing has given nothing back.
    if e.kind() == Kind::NotFound && e.to_string().starts_with("failed to find plugin") {
        return false;
    }
    let text = e.to_string();
    text.contains("not found")
        || (target.netns.is_empty() && text.contains("no such file or directory"))
}
