//! Owns one consistent look at the machine.
//! May touch the reading half of `host`.
//! Must not write anything, nor judge what it saw.

pub mod readings;

pub use readings::Readings;
