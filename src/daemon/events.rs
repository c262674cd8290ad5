//! What can reach the loop, and what it means: a plain function answers, the loop performs.

use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM};

use crate::config::settings::Signal;
use crate::host::process::signal_name;
use crate::http::control::{Command, JobCommand, WorkerCommand};

/// What the loop is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub enum Order {
    /// A child may have ended.
    Reap,
    Reload,
    /// Say what a reload would do.
    PlanReload,
    Release,
    /// End in order; asked a second time: at once.
    Stop(String),
    /// Pass it on to the command of `run -- COMMAND`.
    Forward(Signal),
    Worker(WorkerCommand),
    Job(JobCommand),
    /// Become the program we were started from, as it is now.
    Upgrade,
}

/// What a signal means.
pub fn of_signal(signal: i32) -> Order {
    match signal {
        SIGCHLD => Order::Reap,
        SIGHUP => Order::Reload,
        // Fly sends SIGINT where others send SIGTERM.
        SIGTERM | SIGINT => Order::Stop(signal_name(signal).to_owned()),
        SIGQUIT => Order::Forward(Signal(SIGQUIT)),
        other => Order::Forward(Signal(other)),
    }
}

/// What a request means.
pub fn of_command(command: &Command) -> Order {
    match command {
        Command::Reload => Order::Reload,
        Command::PlanReload => Order::PlanReload,
        Command::Release => Order::Release,
        Command::Shutdown => Order::Stop("asked over the control socket".to_owned()),
        Command::Upgrade => Order::Upgrade,
        Command::Worker(command) => Order::Worker(command.clone()),
        Command::Job(command) => Order::Job(command.clone()),
    }
}
