//! The Kubernetes Container Runtime Interface: `runtime.v1` as the kubelet, crictl and critest expect it.
//!
//! [`Cri`] holds what all RPCs share: the daemon's other plugins, the configuration, the stores of pods and
//! containers. Each RPC is a method of it, in the file of its noun:
//!
//! - [`service`]: the gRPC face of [`Cri`]; one line per RPC
//! - [`config`]: containerd's CRI tables
//! - [`store`]: pods and containers known, names reserved, ids by prefix
//! - [`pods`]: sandboxes, their namespaces and networks; [`status`], [`events`]
//! - [`containers`]: containers, exec, attach; [`logs`]
//! - [`images`], [`stats`]: what they say
//! - [`metrics`]: figures for Prometheus
//! - [`spec`]: from CRI messages to an OCI runtime spec
//! - `nri`: what plugins of other processes are told, and what they change
//! - [`streaming`]: exec, attach and port-forward over SPDY and WebSocket
//! - [`plugin`]: how all of it starts
//!
//! Five plugins are registered, all but the last as containerd has them: `io.containerd.cri.v1.images`, `io.containerd.cri.v1.runtime`
//! (its instance is the configuration), `io.containerd.podsandbox.controller.v1.podsandbox` (pods with a pause
//! container), `io.containerd.grpc.v1.cri` (the services on the wire) and `io.containerd.metrics.v1.cri`.
//!
//! All limits are in one table: [`limits`].

pub mod config;
pub mod containers;
pub mod cri;
pub mod events;
pub mod images;
pub mod limits;
pub mod logs;
pub mod metrics;
mod nri;
pub mod plugin;
pub mod pods;
pub mod service;
pub mod spec;
pub mod stats;
pub mod status;
pub mod store;
pub mod streaming;

pub use cri::Cri;
pub use plugin::registrations;
