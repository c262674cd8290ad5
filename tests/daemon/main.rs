//! The whole binary on real processes, seen from outside: `/proc`, control groups, its exit code, its log, its socket.
//!
//! What the machine does not grant is shown as `skipped: reason`; where `CI` is set that is a failure.

#![expect(clippy::disallowed_methods, reason = "the tests are the outside world, which has clocks, sleeps and starts processes")]

#[path = "../kernel/mod.rs"]
mod kernel;
mod machine;
mod outside;
mod stage;
mod yard;

mod adopt;
mod bad_input;
mod brakes;
mod budget;
mod commands;
mod crash;
mod disks;
mod doctor;
mod environment;
mod faults;
mod instants;
mod jobs;
mod machines;
mod memory;
mod memory_truth;
mod output;
mod reload;
mod service_manager;
mod serving;
mod sidecar;
mod starved;
mod supervision;
mod upgrade;
mod workers;
