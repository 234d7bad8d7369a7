//! NRI: who makes containers tells plugins of other processes of it, and they may change what is made.
//!
//! The CRI plugin calls [`Nri`], one method per event, and implements [`Domain`], through which plugins learn what exists and
//! change it unasked. Both speak NRI's own messages. What a plugin wants of a new container is applied to its specification
//! by [`adjust`]; [`oci`] reads from a specification what plugins are told.
//!
//! # Order
//! All plugins hear of one event, in the order of their indices, before any hears of the next one; a call here may therefore
//! take several request timeouts. A plugin that fails to answer is dropped and does not fail the call; one that answers with
//! an error does.
//!
//! # Synchronization
//! A new plugin is first told of everything that exists. So that it neither misses a container nor hears of one twice, a
//! request that fires events holds a [`SyncBlock`] from its first event to the moment when the [`Domain`] lists what it made.

use std::any::Any;
use std::sync::Arc;

use async_trait::async_trait;

pub use corten_protos::nri::pkg::api::v1alpha1::{
    Container, ContainerAdjustment, ContainerEviction, ContainerState, ContainerUpdate,
    LinuxResources, PodSandbox,
};

use crate::Result;

pub mod adjust;
pub mod oci;

/// Keeps new plugins from being synchronized until it is dropped. May be held several times over by one request.
pub struct SyncBlock(Option<Box<dyn Any + Send + Sync>>);

/// Tells plugins of events.
///
/// An event that is none (stopping what is stopped, removing what is unknown) reaches no plugin and is no error.
#[async_trait]
pub trait Nri: Send + Sync {
    /// Whether the configuration wants NRI at all.
    fn enabled(&self) -> bool;

    /// Whether anyone listens. If not, events need not be fired: later plugins are told by synchronization.
    fn active(&self) -> bool;

    /// Adds a domain. Comes before [`Nri::start`].
    ///
    /// # Errors
    /// The domain's namespace has one already.
    fn register(&self, domain: Arc<dyn Domain>) -> Result<()>;

    /// Launches the installed plugins and opens the socket for others.
    ///
    /// # Errors
    /// The socket cannot be opened. Plugins that fail are logged and left out.
    async fn start(&self) -> Result<()>;

    /// Closes the socket, tells plugins to shut down and ends those that were launched.
    async fn stop(&self);

    /// See the module's page.
    async fn block_sync(&self) -> SyncBlock;

    /// A pod runs.
    ///
    /// # Errors
    /// A plugin refused; plugins were told of the pod's stop and removal again.
    async fn run_pod_sandbox(&self, pod: PodSandbox) -> Result<()>;

    /// A pod's resources are about to change.
    ///
    /// # Errors
    /// A plugin refused.
    async fn update_pod_sandbox(
        &self,
        pod: PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<()>;

    /// A pod's resources changed.
    ///
    /// # Errors
    /// A plugin's. As with all events that tell of what happened, callers log it and go on.
    async fn post_update_pod_sandbox(&self, pod: PodSandbox) -> Result<()>;

    /// A pod stopped; its network is still there.
    ///
    /// # Errors
    /// A plugin's.
    async fn stop_pod_sandbox(&self, pod: PodSandbox) -> Result<()>;

    /// A pod is removed.
    ///
    /// # Errors
    /// A plugin's.
    async fn remove_pod_sandbox(&self, pod: PodSandbox) -> Result<()>;

    /// A container's specification is ready. Gives what all plugins together want of it; what they want of other containers
    /// is done by the time it returns.
    ///
    /// # Errors
    /// A plugin refused, two wanted different things, or a validator rejected the whole.
    async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Option<ContainerAdjustment>>;

    /// A container was created.
    ///
    /// # Errors
    /// A plugin's.
    async fn post_create_container(&self, pod: PodSandbox, container: Container) -> Result<()>;

    /// A container is about to start.
    ///
    /// # Errors
    /// A plugin refused.
    async fn start_container(&self, pod: PodSandbox, container: Container) -> Result<()>;

    /// A container started.
    ///
    /// # Errors
    /// A plugin's.
    async fn post_start_container(&self, pod: PodSandbox, container: Container) -> Result<()>;

    /// A client wants these resources for a container. Gives what to set instead, if plugins have an opinion.
    ///
    /// # Errors
    /// A plugin refused, or two wanted different things.
    async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<Option<LinuxResources>>;

    /// A container's resources changed.
    ///
    /// # Errors
    /// A plugin's.
    async fn post_update_container(&self, pod: PodSandbox, container: Container) -> Result<()>;

    /// A container stopped, was killed, or will not be started after all. Told once, whoever says so first.
    ///
    /// # Errors
    /// A plugin's.
    async fn stop_container(&self, pod: PodSandbox, container: Container) -> Result<()>;

    /// A container ended by itself: [`Nri::stop_container`] in the background.
    fn notify_container_exit(&self, pod: PodSandbox, container: Container);

    /// A container is removed. Tells of its stop first, if nobody has.
    ///
    /// # Errors
    /// A plugin's.
    async fn remove_container(&self, pod: PodSandbox, container: Container) -> Result<()>;
}

/// Whose pods and containers plugins see and change.
///
/// Its methods run while an event is being told, or at any time when a plugin asks by itself: they must not wait for an
/// event of their own.
#[async_trait]
pub trait Domain: Send + Sync {
    /// The containerd namespace of all that is in it.
    fn namespace(&self) -> &str;

    /// The pods that plugins are told of when they arrive.
    async fn pods(&self) -> Vec<PodSandbox>;

    /// The containers that are created or running.
    async fn containers(&self) -> Vec<Container>;

    /// Whether this container is one of it, in whatever state.
    fn has_container(&self, id: &str) -> bool;

    /// Sets resources of a container.
    ///
    /// # Errors
    /// They cannot be set.
    async fn update_container(&self, update: &ContainerUpdate) -> Result<()>;

    /// Stops a container at once.
    ///
    /// # Errors
    /// It does not stop.
    async fn evict_container(&self, eviction: &ContainerEviction) -> Result<()>;
}

// === impl SyncBlock ===

impl SyncBlock {
    /// Keeps `guard` as long as the block is held.
    pub fn new(guard: impl Any + Send + Sync) -> Self {
        Self(Some(Box::new(guard)))
    }

    /// Blocks nothing.
    pub fn none() -> Self {
        Self(None)
    }
}

impl std::fmt::Debug for SyncBlock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SyncBlock({})", self.0.is_some())
    }
}
