//! The Kubernetes Container Runtime Interface. So far only its streaming server.

pub mod streaming;
