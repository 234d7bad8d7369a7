//! The Kubernetes Container Runtime Interface: `runtime.v1` as the kubelet, crictl and critest expect it.
//!
//! [`Cri`] holds what all RPCs share: the daemon's other plugins, the configuration, the stores of pods and
//! containers. Each RPC is a method of it, in the file of its noun:
//!
//! - [`service`]: the gRPC face of [`Cri`]; one line per RPC
//! - [`config`]: containerd's CRI tables
//! - [`store`]: pods and containers known, names reserved, ids by prefix
//! - `pods`: sandboxes, their namespaces and networks; `status`, `events`
//! - `containers`: containers, exec, attach; `logs`
//! - `images`, `stats`: what they say
//! - `spec`: from CRI messages to an OCI runtime spec
//! - [`streaming`]: exec, attach and port-forward over SPDY and WebSocket
//!
//! Three plugins are registered, as containerd has them: `io.containerd.cri.v1.images`,
//! `io.containerd.cri.v1.runtime` (configuration and pods) and `io.containerd.grpc.v1.cri` (the services on the wire).

pub mod config;
pub mod cri;
pub mod service;
pub mod store;
pub mod streaming;

pub use cri::Cri;
