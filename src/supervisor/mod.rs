//! Owns starting, stopping, restarting and reaping workers, and where what they print goes.
//! May touch the processes of `host`, and the files of output.
//! Must not decide by resource use: it is told.

pub mod capture;
pub mod environment;
pub mod output;
pub mod replica;
pub mod rotation;
pub mod state;
#[expect(clippy::module_inception, reason = "the module is named for its one actor")]
pub mod supervisor;

pub use replica::Replica;
pub use supervisor::Supervisor;
