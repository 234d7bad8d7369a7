//! The plugin types: containerd's URIs tied to our traits.

use corten_registry::Kind;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $uri:literal => $interface:ty;)*) => {$(
        $(#[$doc])*
        #[derive(Debug)]
        pub struct $name;
        impl Kind for $name {
            const URI: &'static str = $uri;
            type Interface = $interface;
        }
    )*};
}

kinds! {
    /// Blob back ends.
    Content = "io.containerd.content.v1" => dyn crate::content::Backend;
    /// Snapshotter back ends.
    Snapshotter = "io.containerd.snapshotter.v1" => dyn crate::snapshots::Snapshotter;
    /// Differs.
    Differ = "io.containerd.differ.v1" => dyn crate::diff::Differ;
    /// The mount manager.
    MountManager = "io.containerd.mount-manager.v1" => dyn crate::mounts::Manager;
    /// Makers of one type of mount.
    MountHandler = "io.containerd.mount-handler.v1" => dyn crate::mounts::Handler;
    /// The metadata database.
    Metadata = "io.containerd.metadata.v1" => dyn crate::metadata::Metadata;
    /// The event exchange.
    Event = "io.containerd.event.v1" => dyn crate::events::Events;
    /// Leases.
    Lease = "io.containerd.lease.v1" => dyn crate::leases::Leases;
    /// The garbage collection scheduler.
    Gc = "io.containerd.gc.v1" => dyn crate::gc::Scheduler;
    /// The runtime manager.
    Runtime = "io.containerd.runtime.v2" => dyn crate::runtime::Tasks;
    /// The stream registry.
    Streaming = "io.containerd.streaming.v1" => dyn crate::streaming::Streams;
    /// Transfers.
    Transfer = "io.containerd.transfer.v1" => dyn crate::transfer::Transfer;
    /// Who may refuse images.
    ImageVerifier = "io.containerd.image-verifier.v1" => dyn crate::verify::ImageVerifier;
    /// The sandbox records.
    SandboxStore = "io.containerd.sandbox.store.v1" => dyn crate::sandbox::Sandboxes;
    /// Sandbox controllers.
    SandboxController = "io.containerd.sandbox.controller.v1" => dyn crate::sandbox::Controller;
    /// The CRI's own sandbox controllers, by a kind of their own as in containerd.
    PodSandbox = "io.containerd.podsandbox.controller.v1" => dyn crate::sandbox::Controller;
    /// What watches tasks and tells Prometheus of them.
    TaskMonitor = "io.containerd.monitor.task.v1" => dyn crate::metrics::Source;
    /// What watches containers and acts.
    ContainerMonitor = "io.containerd.monitor.container.v1" => dyn std::any::Any + Send + Sync;
    /// What makes spans of calls.
    Tracing = "io.containerd.internal.v1" => dyn crate::spans::Tracer;
    /// Other figures for Prometheus.
    Metrics = "io.containerd.metrics.v1" => dyn crate::metrics::Source;
    /// What is in use that will go.
    Warning = "io.containerd.warning.v1" => dyn crate::warnings::Warnings;
    /// What tells plugins of other processes about containers.
    Nri = "io.containerd.nri.v1" => dyn crate::nri::Nri;
    /// Services as such; a plugin of kind Grpc puts each on the sockets.
    Service = "io.containerd.service.v1" => dyn crate::service::GrpcService;
    /// gRPC façades.
    Grpc = "io.containerd.grpc.v1" => dyn crate::service::GrpcService;
    /// ttrpc façades.
    Ttrpc = "io.containerd.ttrpc.v1" => dyn crate::service::TtrpcService;
    /// What the daemon tells about itself.
    Internal = "io.containerd.internal.v1" => dyn std::any::Any + Send + Sync;
}
