//! Joins everything up: start, the loop, reload, shutdown.
//! May touch everything above it.
//! Must not be imported by any of it.

pub mod asked;
mod bell;
pub mod brakes;
pub mod controllers;
pub mod events;
pub mod explain;
pub mod folders;
pub mod foretold;
pub mod guardian;
pub mod jobs;
pub mod members;
pub mod pacing;
pub mod picture;
pub mod rationing;
pub mod reload;
pub mod renewal;
pub mod run;
pub mod self_watch;
pub mod sentinel;
pub mod service;
pub mod shutdown;
pub mod sight;
pub mod signals;
pub mod tick;
pub mod upgrade;
pub mod wiring;

pub use run::run;
