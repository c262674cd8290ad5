//! Why nothing (more) is done although a resource is over its line.

use std::time::Duration;

use crate::policy::Resource;

/// A resource is over its line and nothing is being tried or working. Told when it begins, when the reason changes, and once
/// a minute while it lasts.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    pub resource: Resource,
    /// A word of [`Reason`].
    pub reason: &'static str,
    /// For people, with the figures.
    pub detail: String,
    /// For how long nothing has been tried or working.
    pub unanswered: Duration,
}

/// The label values of `plimsoll_actions_suppressed_total{reason}`, the least telling first: of several the last is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Nothing is on the ladder, or nothing but notices.
    NoRung,
    /// It does not work here, or usage cannot be read.
    Unavailable,
    /// There is nobody to do it to.
    NoWorker,
    /// Something else has to end first.
    InFlight,
    /// It was done just now.
    Cooldown,
    /// Only protected workers could give it back.
    Protected,
    /// Not even all workers together could give it back.
    OutsideUsage,
    /// Everything is planned and nothing is done.
    DryRun,
}

impl Reason {
    pub const ALL: [Reason; 8] = [
        Reason::NoRung,
        Reason::Unavailable,
        Reason::NoWorker,
        Reason::InFlight,
        Reason::Cooldown,
        Reason::Protected,
        Reason::OutsideUsage,
        Reason::DryRun,
    ];

    pub fn word(self) -> &'static str {
        match self {
            Reason::NoRung => "no_rung",
            Reason::Unavailable => "unavailable",
            Reason::NoWorker => "no_worker",
            Reason::InFlight => "in_flight",
            Reason::Cooldown => "cooldown",
            Reason::Protected => "protected",
            Reason::OutsideUsage => "outside_usage",
            Reason::DryRun => "dry_run",
        }
    }
}
