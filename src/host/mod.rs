//! Owns every word exchanged with the kernel, as typed calls.
//! May touch `/proc`, `/sys`, cgroupfs, pidfds and clocks, all under given roots.
//! Must not know thresholds, rules or why it was asked.

pub mod accounts;
pub mod advice;
pub mod beneath;
pub mod cgroupfs;
pub mod clock;
pub mod cputime;
pub mod diag;
pub mod durable;
pub mod filesystem;
pub mod folder;
pub mod foreign;
pub mod fork;
pub mod freezer;
pub mod group;
pub mod helper;
pub mod inventory;
pub mod journald;
pub mod kept;
pub mod ksm;
pub mod memory_group;
pub mod mounts;
pub mod open_files;
pub mod pages;
pub mod paths;
pub mod probe;
pub mod process;
pub mod procfs;
pub mod program;
pub mod psi;
pub mod random;
pub mod scan;
pub mod scheduling;
pub mod service_manager;
pub mod sockets;
pub mod spawn;
pub mod stops;

pub use paths::Paths;
