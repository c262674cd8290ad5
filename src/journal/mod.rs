//! Owns the record of what was read, judged and done.
//! May touch memory, the log and its own database.
//! Must not influence any of it.

pub mod record;

pub use record::Event;
