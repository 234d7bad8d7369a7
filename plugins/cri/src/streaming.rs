//! The streaming server: exec, attach and port-forward for the kubelet and crictl.
//!
//! A gRPC call of the CRI hands out a URL with a token that is good for one request; the client upgrades a connection
//! to that URL to SPDY/3.1 or WebSocket, and [`Runtime`] is given plain byte streams.
//!
//! - [`server`]: the listener, the tokens' URLs, HTTP up to the upgrade; [`tokens`], [`tls`]
//! - [`remote`]: exec and attach, whatever the wire; [`forward`]: port-forward, the same
//! - [`spdy`]: frames, headers, sessions; [`websocket`]: channels in messages; [`pipe`]: what both are made of
//!
//! Its limits are in [`crate::limits`].
//!
//! # Flow control
//! SPDY's windows are neither kept nor counted: no client of Kubernetes does either. A stream that its reader does
//! not take holds up its connection, so TCP holds up the client.

pub mod forward;
mod head;
pub mod pipe;
pub mod remote;
pub mod runtime;
pub mod server;
pub mod spdy;
pub mod status;
pub mod tls;
pub mod tokens;
pub mod upgrade;
pub mod websocket;

pub use runtime::{Duplex, Input, Output, Resize, Runtime, Size, Streams};
pub use server::{Config, Server};
pub use tls::Tls;

#[cfg(test)]
mod tests;
