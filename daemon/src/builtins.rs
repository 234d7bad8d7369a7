//! THE list of built-in plugins, one line each.

use corten_registry::Registration;
use corten_services::introspection::PluginCell;

use crate::server::{self, CallTable};

/// What the daemon shares with plugins that look back at it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    /// Filled after boot; introspection reads it.
    pub(crate) plugins: PluginCell,
    /// Filled by the plugin that counts calls; the servers read it.
    pub(crate) calls: CallTable,
    /// Whether anybody will read that count.
    pub(crate) counted: bool,
}

/// All of them, in the order in which they start where dependencies leave a choice.
pub(crate) fn all(shared: &Shared) -> Vec<Registration> {
    let mut all = vec![
        corten_otlp::otlp(),
        corten_otlp::tracing(),
        corten_runtime::opt::registration(),
        corten_content::registration(),
        corten_events::exchange::registration(),
        corten_events::deprecations::registration(),
        corten_snapshots::overlayfs::registration(),
        corten_snapshots::native::registration(),
        corten_snapshots::erofs::registration(),
        corten_metadata::bolt::registration(),
        corten_metadata::manager::registration(),
        corten_metadata::scheduler::registration(),
        corten_metadata::local::registration(),
        corten_mount::handlers::erofs(),
        corten_mount::handlers::loop_device(),
        corten_mount::bolt::registration(),
        corten_diff::registration(),
        corten_diff::erofs::registration(),
        corten_transfer::streaming::registration(),
        corten_transfer::verifier::registration(),
        corten_transfer::local::registration(),
        corten_runtime::manager::registration(),
        corten_runtime::task::registration(),
        corten_runtime::sandbox::registration(),
        corten_monitor::cgroups::registration(),
        corten_monitor::restart::registration(),
        corten_services::events::registration(),
        corten_services::health::registration(),
        corten_services::leases::registration(),
        corten_services::mounts::registration(),
        corten_services::sandbox::registration(),
        corten_services::sandbox_controller::registration(),
        corten_services::streaming::registration(),
        corten_services::transfer::registration(),
        corten_services::version::registration(),
    ];
    let services = [
        corten_services::containers::registrations(),
        corten_services::content::registrations(),
        corten_services::diff::registrations(),
        corten_services::images::registrations(),
        corten_services::introspection::registrations(shared.plugins.clone()),
        corten_services::namespaces::registrations(),
        corten_services::snapshots::registrations(),
        corten_services::tasks::registrations(),
    ];
    all.extend(services.into_iter().flatten());
    all.extend(corten_nri::registrations());
    all.extend(corten_cri::registrations());
    all.extend(server::registrations(&shared.calls, shared.counted));
    all
}
