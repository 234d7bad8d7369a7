//! The streaming server: exec, attach and port-forward for the kubelet and crictl.
//!
//! A gRPC call of the CRI hands out a URL with a token that is good for one request; the client upgrades a connection
//! to that URL to SPDY/3.1 or WebSocket, and [`Runtime`] is given plain byte streams.
//!
//! - [`server`]: the listener, the tokens' URLs, HTTP up to the upgrade; [`tokens`], [`tls`]
//! - [`remote`]: exec and attach, whatever the wire; [`forward`]: port-forward, the same
//! - [`spdy`]: frames, headers, sessions; [`websocket`]: channels in messages; [`pipe`]: what both are made of
//!
//! # Limits
//! | what | limit |
//! |---|---|
//! | tokens handed out and not used | 1,000 ([`tokens::MAX_TOKENS`]); more is ResourceExhausted |
//! | life of a token | 1 min ([`tokens::LIFE`]), one use |
//! | randomness of a token | 122 bits |
//! | connections | 4,096 ([`server::MAX_CONNECTIONS`]); more wait in the backlog |
//! | HTTP request head | 64 KiB, 10 s; TLS handshake 10 s |
//! | a connection without a byte in either direction | 4 h ([`Config::idle`]) |
//! | a client's time to make its streams | 30 s ([`Config::creation`]) |
//! | SPDY control frame, and header block inflated | 64 KiB each ([`spdy::MAX_CONTROL`], [`spdy::MAX_BLOCK`]) |
//! | headers of a SPDY stream | 100 ([`spdy::MAX_HEADERS`]) |
//! | SPDY data frame | as the protocol, 16 MiB; taken in parts, never held |
//! | streams of a SPDY connection at a time | 1,000 ([`spdy::MAX_STREAMS`]); more are refused |
//! | WebSocket message | 1 MiB ([`websocket::MAX_MESSAGE`]) |
//! | bytes of a stream held in each direction | 64 KiB ([`pipe::BUFFER`]) |
//! | a terminal size | 4 KiB of JSON ([`remote::MAX_RESIZE`]) |
//!
//! # Flow control
//! SPDY's windows are neither kept nor counted: no client of Kubernetes does either. A stream that its reader does
//! not take holds up its connection, so TCP holds up the client.

pub mod forward;
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
