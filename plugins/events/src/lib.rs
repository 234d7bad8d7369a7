//! Events: the exchange that hands every event to all who subscribed.
//!
//! [`exchange`] is the plugin; [`fields`] tells filters what an envelope holds.

pub mod exchange;
mod fields;

pub use exchange::{Exchange, registration};
