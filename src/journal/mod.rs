//! Owns the record of what was read, judged and done.
//! May touch memory, the log and its own database.
//! Must not influence any of it.

mod database;
pub mod history;
#[expect(clippy::module_inception, reason = "the module is named for its one actor")]
pub mod journal;
pub mod log;
pub mod record;
pub mod runs;

pub use journal::{Journal, Ring};
pub use record::Event;
