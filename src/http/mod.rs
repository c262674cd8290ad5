//! Owns routes, access rules and wire forms.
//! May touch the published snapshot and a queue of commands.
//! Must not act directly, nor block on a worker or a disk.

pub mod control;
