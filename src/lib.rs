//! Plimsoll keeps a small server's workers below the load line.
//!
//! The library is the whole program; `main.rs` only turns arguments into an exit code. Modules are declared in the order
//! data flows through them: **readings → verdict → action → effect**, once per tick. `docs/architecture.md` is the map
//! and `tests/architecture.rs` holds the direction of imports.

// What is asked, and what it means.
pub mod config;
// Every word exchanged with the kernel.
pub mod host;

// The four stages of a tick. The first item of each is named for what it hands on.
pub mod actuators;
pub mod policy;
pub mod response;
pub mod sampling;

// What the daemon looks after.
pub mod jobs;
pub mod supervisor;

// What the outside sees.
pub mod http;
pub mod journal;
pub mod metrics;
pub mod snapshot;

// What joins it up, and the commands people type.
pub mod cli;
pub mod daemon;
