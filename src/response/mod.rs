//! Owns what to do about a verdict: who, how hard, how soon again.
//! May touch only its arguments.
//! Must not perform anything, nor read the machine a second time by itself.

pub mod action;

pub use action::{Action, Deed};
