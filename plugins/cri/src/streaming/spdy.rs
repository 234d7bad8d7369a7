//! SPDY/3.1 as Kubernetes' clients speak it: streams of bytes with headers over an upgraded HTTP connection.
//!
//! [`frame`] is the byte layout, [`header`] the compressed name-value blocks, [`session`] the streams. There is no
//! server push, no priority and no flow control (see the module above).

pub(crate) mod frame;
pub(crate) mod header;
pub(crate) mod session;

pub use frame::MAX_CONTROL;
pub use header::{MAX_BLOCK, MAX_HEADERS};
pub use session::MAX_STREAMS;
