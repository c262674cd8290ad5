//! Owns starting, stopping, restarting and reaping workers, and where what they print goes.
//! May touch the processes of `host`, and the files of output.
//! Must not decide by resource use: it is told.

pub mod adopting;
pub mod adoption;
pub mod asking;
pub mod capture;
mod ending;
pub mod environment;
pub mod handover;
pub mod health;
pub mod leftovers;
mod orphans;
pub mod output;
pub mod plan;
pub mod readiness;
pub mod recycling;
pub mod replica;
mod restarting;
pub mod roster;
pub mod rotation;
pub mod slot;
pub mod sockets;
mod starting;
pub mod state;
#[expect(clippy::module_inception, reason = "the module is named for its one actor")]
pub mod supervisor;
pub mod totals;

pub use replica::Replica;
pub use supervisor::Supervisor;
