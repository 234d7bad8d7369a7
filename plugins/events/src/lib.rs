//! What happened: the exchange that hands every event to all who subscribed, and the deprecations that were met.
//!
//! [`exchange`] and [`deprecations`] are the plugins; [`fields`] tells filters what an envelope holds.

pub mod deprecations;
pub mod exchange;
mod fields;

pub use exchange::{Exchange, registration};
