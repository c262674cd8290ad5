//! Owns routes, access rules and wire forms.
//! May touch the published snapshot and a queue of commands.
//! Must not act directly, nor block on a worker or a disk.

mod accept;
pub mod access;
pub mod control;
mod dashboard;
pub mod ending;
pub mod events;
mod health;
mod jobs;
pub mod listen;
mod patient;
mod problem;
mod routes;
pub mod server;
mod throttle;
mod workers;

pub use access::{Access, CurrentAccess};
pub use events::EventSource;
pub use server::{Handle, Limits, Parts, spawn};
