//! The mount manager (plugin `io.containerd.mount-manager.v1.bolt`) and the mount handlers.
//!
//! ```text
//! bolt       the plugin: activations by name, leases, garbage
//!   plan       who does what: the manager, a handler, or the caller
//!   transform  format, mkdir, mkfs: what a recipe needs before it is a mount
//!   targets    the folder of activations, which is also their store
//! handlers   erofs, loop
//! ```

pub mod bolt;
pub mod handlers;
mod plan;
mod targets;
mod transform;

pub use bolt::MountManager;

#[cfg(test)]
mod tests;
