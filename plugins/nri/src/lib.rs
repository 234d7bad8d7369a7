//! corten-nri: the daemon's end of NRI.
//!
//! ```text
//!   plugin process            this crate
//!   ┌─────────┐  socket  ┌─────┐ ttrpc  ┌────────┐        ┌───────┐
//!   │ Plugin  │◄────────►│ mux │◄──────►│ plugin │◄───────│ relay │◄── core::nri::Nri, called by the CRI plugin
//!   │ service │          │     │◄──────►│        │───────►│       │──► core::nri::Domain, implemented by it
//!   └─────────┘          └─────┘        └────────┘        └───────┘
//! ```
//! - [`mux`]: two ttrpc connections, one in each direction, over one socket
//! - [`plugin`]: one connected plugin: registration, its configuration, calls with their time-outs
//! - [`arrival`]: how plugins come: installed ones are launched, others connect to the socket
//! - [`relay`]: one event at a time to all plugins in the order of their indices; [`gate`] keeps newcomers out meanwhile
//! - [`merge`] and [`owners`]: the plugins' wishes become one, or a conflict
//! - [`validator`]: the built-in judge of that one
//! - [`metrics`]: what all of this is to Prometheus
//!
//! # Failures
//! A plugin that does not answer in time, breaks the protocol or goes away is dropped: it hears nothing more, and the event goes
//! on without it. One that answers with an error fails the event. A plugin may call us at any time, also from within an event:
//! its updates take no lock that an event holds.
//!
//! # Limits
//! A message is at most 4 MiB; longer synchronizations are sent in parts. At most 64 connections wait for their registration.
//! WebAssembly plugins are not run.

mod arrival;
mod config;
mod gate;
mod identity;
mod merge;
mod metrics;
mod mux;
mod owners;
mod plugin;
mod relay;
mod states;
#[cfg(test)]
mod tests;
mod validator;
mod yaml;

use std::sync::Arc;

use corten_core::kinds;
use corten_core::nri::Nri;
use corten_registry::Registration;
use tracing::info;

pub use config::{Config, DefaultValidator};
pub use relay::Relay;

/// The version of NRI whose messages we speak, as plugins are told.
pub const VERSION: &str = "v0.12.3";

/// The plugin, and its figures.
pub fn registrations() -> [Registration; 2] {
    let metrics = Arc::new(metrics::Metrics::default());
    [nri(metrics.clone()), metrics::registration(metrics)]
}

fn nri(metrics: Arc<metrics::Metrics>) -> Registration {
    Registration::new::<kinds::Nri>("nri")
        .config::<Config>()
        .init(|cx, config| {
            Box::pin(async move {
                if config.disable {
                    info!("nri is disabled by configuration");
                }
                // Plugins know containerd's versions with a v.
                let version = format!("v{}", cx.properties().version);
                Ok(Relay::counting(config, version, metrics) as Arc<dyn Nri>)
            })
        })
}
