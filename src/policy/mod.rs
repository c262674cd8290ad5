//! Judges readings against rules and yields verdicts.
//! Works only on its arguments, time among them.
//! Never reads, awaits or acts; knows no actuator.

pub mod verdict;

pub mod engine;
pub mod forecast;
pub mod hysteresis;
pub mod leak;
pub mod rule;
mod steal;
pub mod stress;
pub mod window;

pub use engine::Engine;
pub use verdict::{Level, Resource, Verdict};

#[cfg(test)]
pub(crate) mod tests;
