//! The wishes of all plugins for one event, merged as they come in.
//!
//! Each plugin sees the container as those before it left it. A field that two want to set is a conflict, which fails the event;
//! so is, unless the plugin says that failures do not matter, an update of another container. What a plugin takes away (a key
//! with a leading `-`) it may set anew, whoever set it before.

mod listed;
mod resources;

use std::collections::BTreeMap;

use corten_core::nri::adjust::removal;
use corten_core::{Error, Kind, Result};
use corten_protos::nri::pkg::api::v1alpha1 as api;
use corten_protos::nri::pkg::api::v1alpha1::Field;

use crate::owners::Owners;

/// What plugins want of a container that is being created.
#[derive(Debug)]
pub(crate) struct Creation {
    /// What the next plugin is asked.
    pub(crate) request: api::CreateContainerRequest,
    /// What all want together. None while nobody wants anything.
    pub(crate) adjust: Option<api::ContainerAdjustment>,
    pub(crate) updates: Updates,
    pub(crate) owners: Owners,
}

/// What plugins want of containers that exist.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    /// In the order in which they were first asked for.
    list: Vec<api::ContainerUpdate>,
    pub(crate) evictions: Vec<api::ContainerEviction>,
}

/// What plugins make of a client's update.
#[derive(Debug)]
pub(crate) struct Change {
    /// What the next plugin is asked; its resources are what all want so far.
    pub(crate) request: api::UpdateContainerRequest,
    /// Whether any plugin changed them.
    pub(crate) changed: bool,
    pub(crate) others: Updates,
    owners: Owners,
}

// === impl Creation ===

impl Creation {
    pub(crate) fn new(pod: api::PodSandbox, container: api::Container) -> Self {
        Self {
            request: api::CreateContainerRequest {
                pod: Some(pod),
                container: Some(container),
            },
            adjust: None,
            updates: Updates::default(),
            owners: Owners::default(),
        }
    }

    /// Adds what `plugin` answered.
    pub(crate) fn add(&mut self, answer: api::CreateContainerResponse, plugin: &str) -> Result<()> {
        let id = self.container().id.clone();
        if let Some(wanted) = answer.adjust {
            self.adjust(&id, wanted, plugin)?;
        }
        self.updates.evictions.extend(answer.evict);
        for update in &answer.update {
            if update.container_id == id {
                return Err(Error::new(
                    Kind::Unknown,
                    format!("plugin {plugin:?} asked update of {id:?} during creation"),
                ));
            }
            self.updates.add(&mut self.owners, update, plugin)?;
        }
        Ok(())
    }

    fn container(&mut self) -> &mut api::Container {
        self.request.container.get_or_insert_default()
    }

    fn adjust(&mut self, id: &str, wanted: api::ContainerAdjustment, plugin: &str) -> Result<()> {
        let container = self.request.container.get_or_insert_default();
        let adjust = self.adjust.get_or_insert_default();
        let mut claims = Claims {
            owners: &mut self.owners,
            id,
            plugin,
        };
        claims.keyed(
            Field::Annotations,
            &wanted.annotations,
            &mut container.annotations,
            &mut adjust.annotations,
        )?;
        let added = claims.listed(Field::Mounts, &wanted.mounts, &mut adjust.mounts)?;
        listed::replace(&mut container.mounts, &wanted.mounts, added);
        let added = claims.listed(Field::Env, &wanted.env, &mut adjust.env)?;
        listed::replace_env(&mut container.env, &wanted.env, added);
        if let Some((first, rest)) = wanted.args.split_first() {
            let args = if first.is_empty() {
                claims.clear(Field::Args);
                rest
            } else {
                &wanted.args
            };
            claims.claim(Field::Args)?;
            adjust.args = args.to_vec();
            container.args = args.to_vec();
        }
        if let Some(hooks) = wanted.hooks {
            claims.hooks(
                hooks,
                container.hooks.get_or_insert_default(),
                adjust.hooks.get_or_insert_default(),
            );
        }
        for l in wanted.rlimits {
            claims.entry(Field::Rlimits, &l.r#type)?;
            container.rlimits.retain(|old| old.r#type != l.r#type);
            container.rlimits.push(l.clone());
            adjust.rlimits.push(l);
        }
        for d in wanted.cdi_devices {
            claims.entry(Field::CdiDevices, &d.name)?;
            adjust.cdi_devices.push(d);
        }
        if let Some(linux) = wanted.linux {
            claims.linux(
                linux,
                container.linux.get_or_insert_default(),
                adjust.linux.get_or_insert_default(),
            )?;
        }
        Ok(())
    }
}

// === impl Updates ===

impl Updates {
    /// The merged updates.
    pub(crate) fn take(&mut self) -> Vec<api::ContainerUpdate> {
        std::mem::take(&mut self.list)
    }

    /// The merged updates, for validators.
    pub(crate) fn list(&self) -> &[api::ContainerUpdate] {
        &self.list
    }

    /// Adds what `plugin` wants of another container.
    pub(crate) fn add(
        &mut self,
        owners: &mut Owners,
        update: &api::ContainerUpdate,
        plugin: &str,
    ) -> Result<()> {
        let id = &update.container_id;
        let at = self.list.iter().position(|u| u.container_id == *id);
        let known = at.map(|i| self.list[i].clone());
        let mut merged = known.unwrap_or_else(|| api::ContainerUpdate {
            container_id: id.clone(),
            linux: Some(api::LinuxContainerUpdate {
                resources: Some(api::LinuxResources::default()),
            }),
            ignore_failure: true,
        });
        merged.ignore_failure &= update.ignore_failure;
        if let Some(wanted) = update.linux.as_ref().and_then(|l| l.resources.as_ref()) {
            // On a copy: of a failure that does not matter nothing remains.
            let mut claimed = owners.clone();
            match resources::claim(&mut claimed, id, wanted, plugin) {
                Ok(()) => {
                    *owners = claimed;
                    let linux = merged.linux.get_or_insert_default();
                    resources::apply(wanted, linux.resources.get_or_insert_default());
                }
                Err(_) if update.ignore_failure => {}
                Err(e) => return Err(e),
            }
        }
        match at {
            Some(i) => self.list[i] = merged,
            None => self.list.push(merged),
        }
        Ok(())
    }
}

// === impl Change ===

impl Change {
    pub(crate) fn new(
        pod: api::PodSandbox,
        container: api::Container,
        resources: api::LinuxResources,
    ) -> Self {
        Self {
            request: api::UpdateContainerRequest {
                pod: Some(pod),
                container: Some(container),
                linux_resources: Some(resources),
            },
            changed: false,
            others: Updates::default(),
            owners: Owners::default(),
        }
    }

    /// Adds what `plugin` answered.
    pub(crate) fn add(&mut self, answer: api::UpdateContainerResponse, plugin: &str) -> Result<()> {
        let id = self.request.container.as_ref().map(|c| c.id.clone());
        self.others.evictions.extend(answer.evict);
        for update in &answer.update {
            if Some(&update.container_id) != id.as_ref() {
                self.others.add(&mut self.owners, update, plugin)?;
                continue;
            }
            let Some(wanted) = update.linux.as_ref().and_then(|l| l.resources.as_ref()) else {
                continue;
            };
            let mut claimed = self.owners.clone();
            match resources::claim(&mut claimed, &update.container_id, wanted, plugin) {
                Ok(()) => {
                    self.owners = claimed;
                    self.changed = true;
                    resources::apply(wanted, self.request.linux_resources.get_or_insert_default());
                }
                Err(_) if update.ignore_failure => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// One plugin's claims on one container.
struct Claims<'a> {
    owners: &'a mut Owners,
    id: &'a str,
    plugin: &'a str,
}

// === impl Claims ===

impl Claims<'_> {
    fn claim(&mut self, field: Field) -> Result<()> {
        self.owners.claim(self.id, field, self.plugin)
    }

    fn entry(&mut self, field: Field, key: &str) -> Result<()> {
        self.owners.claim_entry(self.id, field, key, self.plugin)
    }

    fn clear(&mut self, field: Field) {
        self.owners.clear(self.id, field, self.plugin);
    }

    /// Merges entries of a map into what the next plugin sees and into what all want.
    fn keyed<V: Clone + Default>(
        &mut self,
        field: Field,
        wanted: &BTreeMap<String, V>,
        seen: &mut BTreeMap<String, V>,
        all: &mut BTreeMap<String, V>,
    ) -> Result<()> {
        for marked in wanted.keys() {
            let (key, true) = removal(marked) else {
                continue;
            };
            if all.remove(key).is_some() || wanted.contains_key(key) {
                self.owners.clear_entry(self.id, field, key, self.plugin);
            }
            seen.remove(key);
            all.insert(marked.clone(), V::default());
        }
        for (key, value) in wanted.iter().filter(|(k, _)| !removal(k).1) {
            self.entry(field, key)?;
            seen.insert(key.clone(), value.clone());
            all.insert(key.clone(), value.clone());
        }
        Ok(())
    }

    fn hooks(&mut self, wanted: api::Hooks, seen: &mut api::Hooks, all: &mut api::Hooks) {
        let mut any = false;
        for (wanted, seen, all) in [
            (wanted.prestart, &mut seen.prestart, &mut all.prestart),
            (
                wanted.create_runtime,
                &mut seen.create_runtime,
                &mut all.create_runtime,
            ),
            (
                wanted.create_container,
                &mut seen.create_container,
                &mut all.create_container,
            ),
            (
                wanted.start_container,
                &mut seen.start_container,
                &mut all.start_container,
            ),
            (wanted.poststart, &mut seen.poststart, &mut all.poststart),
            (wanted.poststop, &mut seen.poststop, &mut all.poststop),
        ] {
            any |= !wanted.is_empty();
            seen.extend_from_slice(&wanted);
            all.extend(wanted);
        }
        if any {
            self.owners.join(self.id, Field::OciHooks, self.plugin);
        }
    }

    fn linux(
        &mut self,
        wanted: api::LinuxContainerAdjustment,
        seen: &mut api::LinuxContainer,
        all: &mut api::LinuxContainerAdjustment,
    ) -> Result<()> {
        let added = self.listed(Field::Devices, &wanted.devices, &mut all.devices)?;
        listed::replace(&mut seen.devices, &wanted.devices, added);
        if let Some(r) = wanted.resources {
            resources::claim(self.owners, self.id, &r, self.plugin)?;
            for to in [&mut seen.resources, &mut all.resources] {
                let to = to.get_or_insert_default();
                resources::apply(&r, to);
                to.devices.extend_from_slice(&r.devices);
            }
        }
        if !wanted.cgroups_path.is_empty() {
            self.claim(Field::CgroupsPath)?;
            seen.cgroups_path.clone_from(&wanted.cgroups_path);
            all.cgroups_path = wanted.cgroups_path;
        }
        if wanted.oom_score_adj.is_some() {
            self.claim(Field::OomScoreAdj)?;
            seen.oom_score_adj = wanted.oom_score_adj;
            all.oom_score_adj = wanted.oom_score_adj;
        }
        if wanted.io_priority.is_some() {
            self.claim(Field::IoPriority)?;
            seen.io_priority = wanted.io_priority;
            all.io_priority = wanted.io_priority;
        }
        if wanted.seccomp_policy.is_some() {
            self.claim(Field::SeccompPolicy)?;
            seen.seccomp_policy.clone_from(&wanted.seccomp_policy);
            all.seccomp_policy = wanted.seccomp_policy;
        }
        for n in wanted.namespaces {
            let (kind, removed) = removal(&n.r#type);
            self.entry(Field::Namespace, kind)?;
            seen.namespaces.retain(|old| old.r#type != kind);
            if !removed {
                seen.namespaces.push(n.clone());
            }
            all.namespaces.push(n);
        }
        self.keyed(
            Field::Sysctl,
            &wanted.sysctl,
            &mut seen.sysctl,
            &mut all.sysctl,
        )?;
        self.keyed(
            Field::LinuxNetDevices,
            &wanted.net_devices,
            &mut seen.net_devices,
            &mut all.net_devices,
        )?;
        if wanted.scheduler.is_some() {
            self.claim(Field::LinuxSched)?;
            seen.scheduler.clone_from(&wanted.scheduler);
            all.scheduler = wanted.scheduler;
        }
        if let Some(r) = wanted.rdt {
            self.rdt(r, &mut all.rdt)?;
        }
        if wanted.memory_policy.is_some() {
            self.claim(Field::MemoryPolicy)?;
            all.memory_policy = wanted.memory_policy;
        }
        Ok(())
    }

    fn rdt(&mut self, wanted: api::LinuxRdt, all: &mut Option<api::LinuxRdt>) -> Result<()> {
        if wanted.remove {
            for field in [
                Field::RdtClosId,
                Field::RdtSchemata,
                Field::RdtEnableMonitoring,
            ] {
                self.clear(field);
            }
            *all = Some(api::LinuxRdt {
                remove: true,
                ..Default::default()
            });
        }
        let all = all.get_or_insert_default();
        if wanted.clos_id.is_some() {
            self.claim(Field::RdtClosId)?;
            all.clos_id = wanted.clos_id;
        }
        if wanted.schemata.is_some() {
            self.claim(Field::RdtSchemata)?;
            all.schemata = wanted.schemata;
        }
        if wanted.enable_monitoring.is_some() {
            self.claim(Field::RdtEnableMonitoring)?;
            all.enable_monitoring = wanted.enable_monitoring;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
