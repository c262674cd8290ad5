//! Owns metric names, their help and their label sets.
//! May touch an in-memory registry, filled from the published snapshot.
//! Must not be read back to make a decision.

pub mod names;
pub mod openmetrics;
pub mod registry;

pub use registry::{Form, Scrape};
