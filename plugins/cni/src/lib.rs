//! The client side of the Container Network Interface: finds a node's network configuration, runs its plugins for
//! pods, and remembers what they did so that it can be taken back.
//!
//! [`Cni`] is what the CRI plugin holds. Below it: [`config`] reads configuration files, [`watch`] notices that they
//! changed, [`chain`] carries one verb through the plugins of one network, [`exec`] runs one plugin, [`result`] turns
//! what it said from any version of the specification into any other, [`cache`] keeps it on disk, and [`loopback`]
//! brings `lo` up without a plugin.
//!
//! # Invariants
//! - **Nothing is attached that is not on disk.** The attachment is recorded before the first plugin of a network
//!   runs and its result before the caller hears of it, so a daemon that dies in between still knows what to undo.
//! - **What is undone is what was done.** DEL runs with the configuration, arguments and result of the ADD, whatever
//!   the folder holds now. The current configuration is used only where nothing is recorded.
//! - **One operation per container id at a time;** different ids never wait for each other.
//! - **A plugin outlives neither its deadline nor its caller:** it is killed with all of its process group.
//!
//! # Limits
//! | what | limit |
//! |---|---|
//! | a configuration file | 1 MiB ([`config::MAX_FILE`]) |
//! | plugins of one network | 64 ([`config::MAX_PLUGINS`]) |
//! | stdout of a plugin | 1 MiB ([`exec::MAX_OUTPUT`]); more is an error |
//! | stderr of a plugin that is kept for the log | 64 KiB ([`exec::MAX_STDERR`]); the rest is read and dropped |
//! | a plugin's run | [`Options::timeout`], 2 min |
//! | a cache entry | 4 MiB ([`cache::MAX_ENTRY`]) |
//!
//! Versions: 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0 in full; results of 0.1.0 and 0.2.0 are understood and made.

pub mod cache;
pub mod capability;
pub mod chain;
pub mod client;
pub mod config;
pub mod exec;
pub mod loopback;
pub mod names;
pub mod result;
pub mod setup;
pub mod template;
pub mod version;
pub mod watch;

pub use capability::Capabilities;
pub use client::{Cni, Options, Pod};
pub use result::NetworkResult;
pub use setup::Setup;
pub use version::Version;
