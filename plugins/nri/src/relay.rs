//! Tells plugins of events, one event at a time, and does what they want of other containers.

use std::sync::{Arc, Weak};

use async_trait::async_trait;
use corten_core::nri::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, Domain, LinuxResources,
    Nri, PodSandbox, SyncBlock,
};
use corten_core::tasks_set::TaskSet;
use corten_core::{Error, Kind, Result};
use corten_protos::nri::pkg::api::v1alpha1 as api;
use corten_protos::nri::pkg::api::v1alpha1::Event;
use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use tracing::{error, info, warn};

use crate::arrival::Listening;
use crate::config::{Config, DefaultValidator};
use crate::gate::Gate;
use crate::merge::{Change, Creation, Updates};
use crate::metrics::Metrics;
use crate::plugin::{self, Host, Plugin};
use crate::states::States;
use crate::validator;

/// Plugins and what they are told. It is always behind an `Arc`, of which plugins hold weak ones.
pub struct Relay {
    pub(crate) config: Config,
    pub(crate) host: Host,
    pub(crate) tasks: TaskSet,
    pub(crate) listening: Mutex<Option<Listening>>,
    pub(crate) me: Weak<Self>,
    domains: RwLock<Vec<Arc<dyn Domain>>>,
    /// By index. Ended ones are taken out as they end.
    plugins: RwLock<Vec<Arc<Plugin>>>,
    /// Held while one event is told.
    events: tokio::sync::Mutex<States>,
    gate: Gate,
    /// Held by the one newcomer that is being synchronized.
    newcomer: tokio::sync::Mutex<()>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Relay({:?})", self.plugins.read())
    }
}

// === impl Relay ===

impl Relay {
    /// A relay without plugins; `version` is the daemon's own.
    pub fn new(config: Config, version: String) -> Arc<Self> {
        Self::counting(config, version, Arc::default())
    }

    /// A relay that counts what plugins are asked.
    pub(crate) fn counting(config: Config, version: String, metrics: Arc<Metrics>) -> Arc<Self> {
        let config = config.complete();
        let host = Host {
            version,
            registration: config.plugin_registration_timeout,
            request: config.plugin_request_timeout,
            metrics,
        };
        Arc::new_cyclic(|me| Self {
            config,
            host,
            tasks: TaskSet::new(),
            listening: Mutex::new(None),
            me: me.clone(),
            domains: RwLock::default(),
            plugins: RwLock::default(),
            events: tokio::sync::Mutex::default(),
            gate: Gate::default(),
            newcomer: tokio::sync::Mutex::default(),
        })
    }

    /// The names of the plugins that hear events, in their order.
    pub fn plugins(&self) -> Vec<String> {
        let plugins = self.all();
        plugins.iter().map(|p| p.identity.to_string()).collect()
    }

    fn all(&self) -> Vec<Arc<Plugin>> {
        self.plugins.read().clone()
    }

    fn validator(&self) -> Option<&DefaultValidator> {
        Some(&self.config.default_validator).filter(|v| v.enable)
    }

    /// Synchronizes a configured plugin and lets it hear events.
    ///
    /// # Errors
    /// It failed; it is ended then.
    pub(crate) async fn admit(&self, plugin: Plugin) -> Result<()> {
        let _turn = self.newcomer.lock().await;
        let _closed = self.gate.close().await;
        let mut states = self.events.lock().await;
        if self.plugins.read().is_empty() {
            states.clear();
        }
        let domains = self.domains.read().clone();
        let (mut pods, mut containers) = (Vec::new(), Vec::new());
        for d in &domains {
            pods.extend(d.pods().await);
            containers.extend(d.containers().await);
        }
        states.learn(&pods, &containers);
        let updates = match plugin.synchronize(&pods, &containers).await {
            Ok(updates) => updates,
            Err(e) => {
                plugin.end().await;
                return Err(e.context("failed to synchronize plugin"));
            }
        };
        info!(nri.plugin = %plugin.identity, nri.pods = pods.len(), nri.containers = containers.len(),
            "plugin synchronized");
        self.add(plugin);
        if !self.update_all(&updates).await.is_empty() {
            warn!("some updates after a synchronization failed");
        }
        Ok(())
    }

    fn add(&self, plugin: Plugin) {
        let plugin = Arc::new(plugin);
        {
            let mut plugins = self.plugins.write();
            let at = plugins.partition_point(|p| p.identity.index <= plugin.identity.index);
            plugins.insert(at, plugin.clone());
            self.host.metrics.set_active(plugins.len());
        }
        let me = self.me.clone();
        self.tasks.spawn("nri plugin", async move {
            plugin.ended().await;
            info!(nri.plugin = %plugin.identity, "plugin is gone");
            if let Some(me) = me.upgrade() {
                let mut plugins = me.plugins.write();
                plugins.retain(|p| !Arc::ptr_eq(p, &plugin));
                me.host.metrics.set_active(plugins.len());
            }
            plugin.end().await;
        });
    }

    async fn tell(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
    ) -> Result<()> {
        for plugin in self.all() {
            plugin.tell(event, pod, container).await?;
        }
        Ok(())
    }

    async fn ask_creation(&self, pod: PodSandbox, container: Container) -> Result<Creation> {
        let plugins = self.all();
        let validators: Vec<_> = plugins.iter().filter(|p| p.is_validator()).collect();
        let pristine = (self.validator().is_some() || !validators.is_empty())
            .then(|| (pod.clone(), container.clone()));
        let mut creation = Creation::new(pod, container);
        for plugin in &plugins {
            if let Some(answer) = plugin.create_container(&creation.request).await? {
                creation.add(answer, &plugin.identity.to_string())?;
            }
        }
        if let Some((pod, container)) = pristine {
            let own = self
                .validator()
                .map(|_| (validator::INDEX.to_owned(), validator::NAME.to_owned()));
            let others = plugins.iter().map(|p| &p.identity);
            let names = own
                .into_iter()
                .chain(others.map(|i| (i.index.clone(), i.name.clone())));
            let request = api::ValidateContainerAdjustmentRequest {
                pod: Some(pod),
                container: Some(container),
                adjust: Some(creation.adjust.clone().unwrap_or_default()),
                update: creation.updates.list().to_vec(),
                owners: Some(creation.owners.message().clone()),
                plugins: names
                    .map(|(index, name)| api::PluginInstance { name, index })
                    .collect(),
            };
            self.validate(&request, &validators).await?;
        }
        Ok(creation)
    }

    async fn validate(
        &self,
        request: &api::ValidateContainerAdjustmentRequest,
        validators: &[&Arc<Plugin>],
    ) -> Result<()> {
        if let Some(own) = self.validator()
            && let Err(reason) = own.check(request)
        {
            error!(error = reason, "rejecting adjustment");
            let name = format!("{}-{}", validator::INDEX, validator::NAME);
            return Err(plugin::rejection(&name, &reason));
        }
        let verdicts = validators.iter().map(|p| p.validate(request));
        join_all(verdicts).await.into_iter().collect()
    }

    /// Does what plugins want of others; what fails is logged.
    async fn carry_out(&self, mut updates: Updates) {
        for eviction in std::mem::take(&mut updates.evictions) {
            self.evict(&eviction).await;
        }
        self.update_all(&updates.take()).await;
    }

    /// Gives those that failed and may not.
    async fn update_all(&self, updates: &[ContainerUpdate]) -> Vec<ContainerUpdate> {
        let mut failed = Vec::new();
        for update in updates {
            let id = &update.container_id;
            let Some(domain) = self.domain_of(id) else {
                continue;
            };
            if let Err(e) = domain.update_container(update).await {
                error!(container.id = id, error = %e, "update of a container for a plugin failed");
                if !update.ignore_failure {
                    failed.push(update.clone());
                }
            }
        }
        failed
    }

    async fn evict(&self, eviction: &ContainerEviction) -> bool {
        let id = &eviction.container_id;
        let Some(domain) = self.domain_of(id) else {
            return true;
        };
        info!(
            container.id = id,
            reason = eviction.reason,
            "a plugin evicts a container"
        );
        let outcome = domain.evict_container(eviction).await;
        if let Err(e) = &outcome {
            error!(container.id = id, error = %e, "eviction of a container for a plugin failed");
        }
        outcome.is_ok()
    }

    fn domain_of(&self, container: &str) -> Option<Arc<dyn Domain>> {
        let domains = self.domains.read();
        domains.iter().find(|d| d.has_container(container)).cloned()
    }

    async fn stop_told(
        &self,
        states: &mut States,
        pod: &PodSandbox,
        container: &Container,
    ) -> Result<()> {
        if !states.stops(&container.id) {
            return Ok(());
        }
        states.stopped(&container.id);
        let request = api::StopContainerRequest {
            pod: Some(pod.clone()),
            container: Some(container.clone()),
        };
        let mut updates = Updates::default();
        let mut owners = crate::owners::Owners::default();
        for plugin in self.all() {
            let Some(answer) = plugin.stop_container(&request).await? else {
                continue;
            };
            for update in &answer.update {
                updates.add(&mut owners, update, &plugin.identity.to_string())?;
            }
        }
        self.carry_out(updates).await;
        Ok(())
    }
}

#[async_trait]
impl plugin::Updates for Relay {
    async fn update(&self, plugin: &str, request: api::UpdateContainersRequest) -> Result<()> {
        // Takes no lock of an event: the plugin may be in the middle of one.
        info!(
            nri.plugin = plugin,
            nri.updates = request.update.len(),
            nri.evictions = request.evict.len(),
            "plugin requested container updates"
        );
        let mut evicted = true;
        for eviction in &request.evict {
            evicted &= self.evict(eviction).await;
        }
        if !self.update_all(&request.update).await.is_empty() {
            return Err(Error::new(
                Kind::Unknown,
                "NRI update of some containers failed",
            ));
        }
        if !evicted {
            return Err(Error::new(
                Kind::Unknown,
                "NRI eviction of some containers failed",
            ));
        }
        Ok(())
    }
}

#[async_trait]
impl Nri for Relay {
    fn enabled(&self) -> bool {
        !self.config.disable
    }

    fn active(&self) -> bool {
        self.enabled() && (self.validator().is_some() || !self.plugins.read().is_empty())
    }

    fn register(&self, domain: Arc<dyn Domain>) -> Result<()> {
        let mut domains = self.domains.write();
        if domains.iter().any(|d| d.namespace() == domain.namespace()) {
            let what = format!("domain of namespace {:?}", domain.namespace());
            return Err(Error::already_exists(what));
        }
        domains.push(domain);
        Ok(())
    }

    async fn start(&self) -> Result<()> {
        if !self.enabled() {
            return Ok(());
        }
        self.launch_installed().await;
        self.listen().await
    }

    async fn stop(&self) {
        self.listening.lock().take();
        join_all(self.all().iter().map(|p| p.shut_down())).await;
        self.tasks.drain(std::time::Duration::from_secs(1)).await;
    }

    async fn block_sync(&self) -> SyncBlock {
        if self.enabled() {
            SyncBlock::new(self.gate.enter().await)
        } else {
            SyncBlock::none()
        }
    }

    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<()> {
        let mut states = self.events.lock().await;
        states.running(&pod.id);
        let outcome = self.tell(Event::RunPodSandbox, &pod, None).await;
        if outcome.is_err() {
            for event in [Event::StopPodSandbox, Event::RemovePodSandbox] {
                if let Err(e) = self.tell(event, &pod, None).await {
                    warn!(error = %e, "plugin failed to undo a pod that was refused");
                }
            }
            states.removed(&pod.id);
        }
        outcome
    }

    async fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<()> {
        let _states = self.events.lock().await;
        let request = api::UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        for plugin in self.all() {
            plugin.update_pod_sandbox(&request).await?;
        }
        Ok(())
    }

    async fn post_update_pod_sandbox(&self, pod: PodSandbox) -> Result<()> {
        let _states = self.events.lock().await;
        self.tell(Event::PostUpdatePodSandbox, &pod, None).await
    }

    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<()> {
        let mut states = self.events.lock().await;
        if !states.stops(&pod.id) {
            return Ok(());
        }
        states.stopped(&pod.id);
        self.tell(Event::StopPodSandbox, &pod, None).await
    }

    async fn remove_pod_sandbox(&self, pod: PodSandbox) -> Result<()> {
        let mut states = self.events.lock().await;
        if !states.is_known(&pod.id) {
            return Ok(());
        }
        states.removed(&pod.id);
        self.tell(Event::RemovePodSandbox, &pod, None).await
    }

    async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Option<ContainerAdjustment>> {
        let mut states = self.events.lock().await;
        states.created(&container.id);
        // Boxed: it is large, and most of its life it waits.
        let creation = Box::pin(self.ask_creation(pod, container)).await?;
        self.carry_out(creation.updates).await;
        Ok(creation.adjust)
    }

    async fn post_create_container(&self, pod: PodSandbox, container: Container) -> Result<()> {
        let _states = self.events.lock().await;
        self.tell(Event::PostCreateContainer, &pod, Some(&container))
            .await
    }

    async fn start_container(&self, pod: PodSandbox, container: Container) -> Result<()> {
        let mut states = self.events.lock().await;
        states.running(&container.id);
        self.tell(Event::StartContainer, &pod, Some(&container))
            .await
    }

    async fn post_start_container(&self, pod: PodSandbox, container: Container) -> Result<()> {
        let _states = self.events.lock().await;
        self.tell(Event::PostStartContainer, &pod, Some(&container))
            .await
    }

    async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<Option<LinuxResources>> {
        let _states = self.events.lock().await;
        let mut change = Change::new(pod, container, resources);
        for plugin in self.all() {
            if let Some(answer) = plugin.update_container(&change.request).await? {
                change.add(answer, &plugin.identity.to_string())?;
            }
        }
        self.carry_out(change.others).await;
        Ok(change.request.linux_resources.filter(|_| change.changed))
    }

    async fn post_update_container(&self, pod: PodSandbox, container: Container) -> Result<()> {
        let _states = self.events.lock().await;
        self.tell(Event::PostUpdateContainer, &pod, Some(&container))
            .await
    }

    async fn stop_container(&self, pod: PodSandbox, container: Container) -> Result<()> {
        let mut states = self.events.lock().await;
        self.stop_told(&mut states, &pod, &container).await
    }

    fn notify_container_exit(&self, pod: PodSandbox, container: Container) {
        let Some(me) = self.me.upgrade() else {
            return;
        };
        self.tasks.spawn("nri exit", async move {
            if let Err(e) = me.stop_container(pod, container).await {
                warn!(error = %e, "plugin failed to handle a container's exit");
            }
        });
    }

    async fn remove_container(&self, pod: PodSandbox, container: Container) -> Result<()> {
        let mut states = self.events.lock().await;
        if !states.is_known(&container.id) {
            return Ok(());
        }
        if let Err(e) = self.stop_told(&mut states, &pod, &container).await {
            warn!(error = %e, "plugin failed to handle a container's stop");
        }
        states.removed(&container.id);
        self.tell(Event::RemoveContainer, &pod, Some(&container))
            .await
    }
}
