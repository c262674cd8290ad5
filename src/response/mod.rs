//! Owns what to do about a verdict: who, how hard, how soon again.
//! May touch only its arguments.
//! Must not perform anything, nor read the machine a second time by itself.

pub mod action;

pub mod budget;
pub mod candidate;
pub mod cooldown;
pub mod flight;
pub mod hold;
pub mod ladder;
pub mod lease;
pub mod members;
pub mod planner;
pub mod refusal;
pub mod victim;
pub mod words;

pub use action::{Action, Cause, Deed};
pub use candidate::Candidate;
pub use planner::{Measured, Plan, Planner, Status};
pub use refusal::{Reason, Refusal};

#[cfg(test)]
pub(crate) mod tests;
