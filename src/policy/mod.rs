//! Judges readings against rules and yields verdicts.
//! Works only on its arguments, time among them.
//! Never reads, awaits or acts; knows no actuator.

pub mod verdict;

pub use verdict::{Level, Resource, Verdict};
