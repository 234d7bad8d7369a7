//! The plugin as a whole, over backends in memory.

mod content;
mod crash;
mod fakes;
mod gc;
mod load;
mod model;
mod plugins;
mod records;
mod snapshots;
mod stress;
